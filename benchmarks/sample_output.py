"""Keep what the recommended detector says of the sample photos, for README.md to show.

    python benchmarks/sample_output.py

Runs `make demo`'s scoring command and writes benchmarks/sample_output.json: the rows of SHOWN and
the summary, as they were printed. `python benchmarks/readme_tables.py` then puts them into place.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from pipeline.common.command_line import run
from pipeline.common.files import atomic_write

COMMAND = ["infer_vit.py", "samples"]
SHOWN = (
    "fake_hopper_face_on_collins.jpg",
    "fake_hopper_mouth_on_collins.jpg",
    "fake_self_blended_collins.jpg",
    "no_face_coffee.webp",
    "real_hopper_face.heic",
    "two_people.jpg",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "sample_output.json")
    args = parser.parse_args()
    done = subprocess.run(
        [sys.executable, *COMMAND], cwd=ROOT, capture_output=True, text=True, check=True
    )
    head, *rows = done.stdout.splitlines()
    chosen = [row for row in rows if row.endswith(SHOWN)]
    result = {**machine(), "lines": [head, *chosen, done.stderr.splitlines()[-1]]}
    with atomic_write(args.output) as file:
        json.dump(result, file, indent=1, ensure_ascii=False)
    print(as_code(result), end="")


def as_code(result: dict) -> str:
    """The kept lines as a block of code in Markdown."""
    return "\n".join(["```", *result["lines"], "```", ""])


if __name__ == "__main__":
    run(main)
