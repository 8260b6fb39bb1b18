"""Draw how trainings went: validation AUC by epoch, a line each.

    python benchmarks/curves.py FOLDER… --output curves.png

FOLDER is a detector folder, or the .run folder of a training that still goes on. Labels are the
folders' names and, where it is known, what the training started from.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files; no window system needed
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.commands import run
from pipeline.errors import UserError
from pipeline.files import atomic_write
from pipeline.runs import read_history


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    args = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for folder in args.folders:
        try:
            history = read_history(folder)
        except OSError as error:
            raise UserError(f"{folder}: it has no history.jsonl ({error.strerror}).") from None
        epochs = [line["epoch"] for line in history]
        aucs = [line["val_auc"] for line in history]
        axes.plot(epochs, aucs, "o-", markersize=3, label=label_of(folder))
    axes.axhline(0.5, color="0.6", linestyle=":", label="chance")
    axes.set(xlabel="epoch", ylabel="validation AUC", ylim=(0.45, 1.005))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right", fontsize="small")
    with atomic_write(args.output, "wb") as file:
        figure.savefig(file, dpi=110, format="png")


def label_of(folder: Path) -> str:
    """The folder's name, with what its training started from."""
    for name, key in (("detector.json", "training"), ("run.json", "settings")):
        if (folder / name).exists():
            start = json.loads((folder / name).read_text(encoding="utf-8"))[key]["start"]
            return f"{folder.name.removesuffix('.run')}, start: {start}"
    return folder.name


if __name__ == "__main__":
    run(main)
