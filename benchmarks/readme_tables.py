"""Put what the benchmarks found into README.md and docs/, so that no figure is typed by hand.

    python benchmarks/readme_tables.py             rewrite README.md and docs/*.md
    python benchmarks/readme_tables.py --check     exit code 1 where one of them is out of date

What stands between <!-- NAME --> and <!-- end --> is generated: TABLES says from which of the
benchmarks' JSON files, and how.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import (
    ablation,
    cluster_cost,
    forgetting,
    leave_one_out,
    new_generator,
    probe_study,
    quality_bins,
    results,
    robustness,
    sample_output,
    service_load,
    speed_tables,
    stability,
    training_curves,
    training_speed,
    tunings,
)
from benchmarks.measuring import ROOT
from pipeline.common.command_line import run
from pipeline.common.files import atomic_write


class Table(NamedTuple):
    """A block of Markdown: made by `render` from what benchmarks/`source`.json holds; below it
    stands on what machine and when that was measured, unless `dated` is false."""

    source: str
    render: Callable[[dict], str]
    dated: bool = True


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = {
    "sample_output": Table("sample_output", sample_output.as_code, dated=False),
    "how_good": Table("results", results.summary),
    "blind_spots": Table("results", results.blind_spots, dated=False),
    "results": Table("results", results.table),
    "scoring_speed": Table("scoring_speed", speed_tables.tables),
    "cluster_cost": Table("cluster_cost", cluster_cost.table),
    "training_speed": Table("training_speed", training_speed.table),
    "training_curves": Table("training_curves", training_curves.table),
    "service_load": Table("service_load", service_load.table),
    "forgetting": Table("forgetting", forgetting.table),
    "tunings": Table("tunings", tunings.table),
    "ablation": Table("ablation", ablation.table),
    "quality_bins": Table("quality_bins", quality_bins.tables),
    "stability": Table("stability", stability.table),
    "robustness": Table("robustness", robustness.table),
    "new_generator": Table("new_generator", new_generator.table),
    "leave_one_out": Table("leave_one_out", leave_one_out.table),
    "probe_study": Table("probe_study", probe_study.table),
    "probe_left_out": Table("probe_study", probe_study.left_out, dated=False),
}
PLACE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    stale = {
        page: text
        for page in PAGES
        if (text := filled(before := page.read_text("utf-8"))) != before
    }
    for page, text in stale.items():
        print(f"{page.relative_to(ROOT)}: {'out of date' if args.check else 'rewritten'}")
        if not args.check:
            with atomic_write(page) as file:
                file.write(text)
    return int(args.check and bool(stale))


def filled(text: str) -> str:
    """The text with each block made anew from its benchmark's figures."""
    return PLACE.sub(lambda found: found[1] + _block(found[2]) + found[3], text)


def _block(name: str) -> str:
    table = TABLES[name]
    result = json.loads((ROOT / "benchmarks" / f"{table.source}.json").read_text("utf-8"))
    if not table.dated:
        return table.render(result)
    parts = result if name == "scoring_speed" else {name: result}
    return f"{table.render(result)}\n{speed_tables.measured(parts)}\n"


if __name__ == "__main__":
    run(main)
