"""Show what a detector forgets when it learns a new kind of fake, with and without replay.

    python benchmarks/forgetting.py --data FACES --old stylegan ffhq --new dfdc --output FOLDER

FACES is a dataset as training wants it. Pictures whose file names begin with one of the names after
--old are the old data, those after --new the new data. An EfficientNet-Lite0 is trained on the old
data (FOLDER/first) and then on the new: once without a single old picture, once with three of them
among ten. Prints a Markdown table of the AUC on the validation pictures of both, and keeps it as
FOLDER/forgetting.json. Every training is a script of its own; what is finished in FOLDER is not
trained again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from benchmarks.subsets import begins_with, write_table
from pipeline.common.command_line import positive_int, run
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.data.dataset import load_dataset
from pipeline.detectors.versions import versions_of

SHARES = {"without replay": 0.0, "30 % replayed": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--old", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--new", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--init", default="imagenet")
    parser.add_argument("--epochs", type=positive_int, default=4, help="on the old data")
    parser.add_argument("--new-epochs", type=positive_int, default=3, help="on the new data")
    args = parser.parse_args()
    dataset = load_dataset(args.data)
    args.output.mkdir(parents=True, exist_ok=True)
    old, new = (
        write_table(begins_with(dataset, names), args.output / f"{title}.csv")
        for title, names in (("old", args.old), ("new", args.new))
    )
    first = args.output / "first"
    if not first.exists():
        script = ["train_efficientnet.py", "--architecture", "efficientnet_lite0"]
        options = ["--data", old, "--init", args.init, "--epochs", args.epochs]
        train([*script, *options, "--output", first])
    results = {
        title: train_further(first, new, old, share, args) for title, share in SHARES.items()
    }
    result = machine() | {"old": args.old, "new": args.new, "epochs": args.epochs}
    result |= {"new_epochs": args.new_epochs, "results": results}
    print(table(result))
    with atomic_write(args.output / "forgetting.json") as file:
        json.dump(result, file, indent=1)


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    rows = {"(before)": next(iter(result["results"].values()))}
    rows |= result["results"]
    lines = [
        "| trained on the new data | AUC on the old data | AUC on the new data |",
        "|---|---|---|",
    ]
    for title, figures in rows.items():
        when = "before" if title == "(before)" else "after"
        old, new = (_auc(figures[data][when]) for data in ("old data", "new data"))
        lines.append(f"| {title} | {old} | {new} |")
    return "\n".join([*lines, ""])


def _auc(metrics: dict) -> str:
    low, high = metrics["auc_95"]
    return f"{metrics['auc']:.3f} ({low:.3f}–{high:.3f})"


def train_further(first: Path, new: Path, old: Path, share: float, args) -> dict:
    """The figures on both data before and after, as incremental training keeps them."""
    family = args.output / f"replay-{share:g}"
    if max(versions_of(family), default=1) < 2:
        options = ["--from", first, "--new-data", new, "--replay", old, "--replay-fraction", share]
        options += ["--epochs", args.new_epochs, "--margin", 1, "--output", family]
        train(["incremental_train_vit.py", *options])
    newest = max(versions_of(family).items())[1]
    return json.loads(newest.with_name(f"{newest.name}.json").read_text(encoding="utf-8"))[
        "results"
    ]


def train(command: list) -> None:
    """Run a training script, or go on with it; its progress bar shows. Raises UserError."""
    arguments = [sys.executable, *map(str, command), "--resume"]
    if subprocess.run(arguments, cwd=ROOT, stdout=sys.stderr).returncode:
        raise UserError(f"{command[0]} did not finish; the same command goes on from there.")


if __name__ == "__main__":
    run(main)
