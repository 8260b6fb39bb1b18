"""Draw how the validation AUC of trainings rose, and say from what each started.

    python benchmarks/training_curves.py DETECTOR… [--output NAME]

Each DETECTOR is a folder that a training script wrote. Prints a Markdown table, and writes
NAME.png, NAME.svg and NAME.json.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from pipeline.common.command_line import run
from pipeline.common.files import atomic_write
from pipeline.comparison.figures import draw_training_curves, save
from pipeline.detectors.detector import load_detector


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="+", type=Path, metavar="DETECTOR")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "training_curves")
    args = parser.parse_args()
    result = machine() | {"trainings": [training(folder) for folder in args.detectors]}
    save(
        draw_training_curves(
            {f"{row['network']}, {row['start']}": row["history"] for row in result["trainings"]}
        ),
        args.output,
    )
    print(table(result))
    with atomic_write(f"{args.output}.json") as file:
        json.dump(result, file, indent=1)


def training(folder: Path) -> dict:
    description = load_detector(folder).description
    made = description["training"]
    lines = (folder / "history.jsonl").read_text("utf-8").splitlines()
    start = {"scratch": "from scratch", "imagenet": "ImageNet"}.get(made["start"], made["start"])
    keys = ("epoch", "val_auc")
    return {
        "network": description["architecture"],
        "start": start,
        "pictures": sum(made["images"].values()),
        "minutes": made["minutes"],
        "auc_95": description["metrics"]["auc_95"],
        "history": [{key: line[key] for key in keys} for line in map(json.loads, lines)],
    }


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| network | start | pictures | minutes | validation AUC, first epoch → best |",
        "|---|---|---|---|---|",
    ]
    for row in result["trainings"]:
        aucs = [line["val_auc"] for line in row["history"]]
        low, high = row["auc_95"]
        lines.append(
            f"| {row['network']} | {row['start']} | {row['pictures']:,} | {row['minutes']:.0f} "
            f"| {aucs[0]:.3f} → {max(aucs):.3f} ({low:.3f}–{high:.3f}), "
            f"epoch {aucs.index(max(aucs)) + 1} of {len(aucs)} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    run(main)
