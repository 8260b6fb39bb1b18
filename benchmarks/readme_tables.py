"""Put the tables of the benchmarks into the README, so that no figure there is typed by hand.

    python benchmarks/readme_tables.py             rewrite README.md
    python benchmarks/readme_tables.py --check     exit code 1 where it is not what they say

A table stands between <!-- NAME --> and <!-- end -->; what is there is made from
benchmarks/NAME.json, which the benchmark of that name wrote.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import (
    ablation,
    cluster_cost,
    forgetting,
    leave_one_out,
    service_load,
    speed_tables,
    training_curves,
    training_speed,
    tunings,
)
from benchmarks.measuring import ROOT
from pipeline.commands import run
from pipeline.files import atomic_write

README = ROOT / "README.md"
TABLES = {
    "scoring_speed": speed_tables.tables,
    "cluster_cost": cluster_cost.table,
    "training_speed": training_speed.table,
    "training_curves": training_curves.table,
    "service_load": service_load.table,
    "forgetting": forgetting.table,
    "tunings": tunings.table,
    "ablation": ablation.table,
    "leave_one_out": leave_one_out.table,
}
PLACE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    before = README.read_text("utf-8")
    after = filled(before)
    if args.check:
        return int(before != after)
    with atomic_write(README) as file:
        file.write(after)
    return 0


def filled(text: str) -> str:
    """The text with each table made anew from its benchmark's figures."""
    return PLACE.sub(lambda found: found[1] + _table(found[2]) + found[3], text)


def _table(name: str) -> str:
    result = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text("utf-8"))
    parts = result if name == "scoring_speed" else {name: result}
    return f"{TABLES[name](result)}\n{speed_tables.measured(parts)}\n"


if __name__ == "__main__":
    run(main)
