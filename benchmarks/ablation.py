"""Does an idea help? Train variants of a recipe with several seeds, and test each on other data.

    python benchmarks/ablation.py --data FACES --tests FACES/test/* --output ablation/
    python benchmarks/ablation.py --data FACES --tests FACES/test/* --output ablation/ \\
        --script "train_efficientnet.py --architecture efficientnet_lite0" --seeds 0 --epochs 6 \\
        --variant "baseline=" --variant "half blended=--self-blended 0.5"

FACES is a dataset as training wants it; each test set holds real/, fake/ or both. A variant is a
name and further options of the training script; without any, VARIANTS are compared. With --pictures
only so many of the dataset are trained on, both classes alike, and half as many validate. Every run
is a training of its own, OUTPUT/NAME/seed-N. Stopped, the same command goes on where it was:
finished runs are skipped, a half-finished one is resumed. Writes OUTPUT/ablation.md, which it also
prints, and OUTPUT/ablation.json: for each test set the mean AUC over the seeds and its standard
deviation, and for one without fakes the share of real faces that pass.
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import machine
from benchmarks.subsets import evenly, write_table
from benchmarks.tunings import run_script
from pipeline.common.command_line import positive_int, run, whole_number
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.comparison.entries import find
from pipeline.comparison.scores import score
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.metrics import evaluate_with_auc_interval

HARSH = "--augmentation soften=0.2,sharpen=0.2,screenshot=0.2"
VARIANTS = {
    "baseline": "",
    "balanced": "--balance generator",
    "harsh": HARSH,
    "half blended": "--self-blended 0.5",
    "all blended": "--self-blended 1",
    "smoothed": "--label-smoothing 0.1",
    "mixup": "--mixup 0.2",
    "cutmix": "--cutmix 1",
    "together": f"--balance generator --self-blended 0.3 {HARSH}",
}
# What a test set is judged by, the first that it has: without fakes there is no AUC.
TITLES = {"auc": "AUC", "recall_real": "real passed", "recall_fake": "fakes found"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--tests", nargs="+", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--script", default="train_meso.py --architecture meso4")
    parser.add_argument("--variant", action="append", type=named_options, metavar="NAME=OPTIONS")
    parser.add_argument("--seeds", nargs="+", type=whole_number, default=[0, 1, 2])
    parser.add_argument("--epochs", type=positive_int, help="default: as the script has it")
    parser.add_argument("--pictures", type=positive_int, help="default: all")
    args = parser.parse_args()
    variants = dict(args.variant) if args.variant else VARIANTS
    if len({test.name for test in args.tests}) < len(args.tests):
        raise UserError("Two of the --tests have the same name, and would be one column: copy one.")
    data = args.data.resolve()
    if args.pictures:
        args.output.mkdir(parents=True, exist_ok=True)
        some = evenly(load_dataset(data), args.pictures)
        data = write_table(some, args.output.resolve() / f"{args.pictures}.csv")
    common = [*shlex.split(args.script), "--data", str(data)]
    common += ["--epochs", str(args.epochs)] if args.epochs else []
    settings = {"script": args.script, "epochs": args.epochs, "pictures": args.pictures}
    results = []
    for seed in args.seeds:  # all variants with one seed say more than one with all seeds
        for name, options in variants.items():
            folder = args.output.resolve() / re.sub(r"\W+", "-", name) / f"seed-{seed}"
            train([*common, *shlex.split(options), "--seed", str(seed)], folder)
            figures = test(folder, args.tests, folder.with_name(f"{folder.name}.scores.sqlite"))
            results.append({"variant": name, "options": options, "seed": seed, "tests": figures})
            report(results, settings, args.output)
    print((args.output / "ablation.md").read_text(encoding="utf-8"))


def named_options(text: str) -> tuple[str, str]:
    name, equals, options = text.partition("=")
    if not equals or not re.search(r"\w", name):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=OPTIONS, such as none=")
    return name, options


def train(command: list[str], folder: Path) -> None:
    """Train the detector folder `folder` unless that is done, going on with what there is.

    Raises UserError where the training fails, or `folder` comes from another command.
    """
    if is_trained(command, folder):
        return
    print(f"{folder.parent.name}, {folder.name}: {shlex.join(command)}", file=sys.stderr)
    script, *options = command
    run_script([script], [*options, "--output", folder, "--resume"])


def is_trained(command: list[str], folder: Path) -> bool:
    """Whether a training has written its detector folder; notes by which command it is trained.

    Raises UserError where that was another one.
    """
    note = folder.with_name(f"{folder.name}.command.json")
    if note.exists():
        earlier = json.loads(note.read_text(encoding="utf-8"))
        if earlier != command:
            raise UserError(
                f"{folder} was trained by another command, `{shlex.join(earlier)}`: choose another "
                "--output, or another name for a variant."
            )
    else:
        with atomic_write(note) as file:
            json.dump(command, file)
    return (folder / "detector.json").exists()


def test(folder: Path, tests: list[Path], store: Path) -> dict:
    """Test set → the figures of a detector folder, as metrics.evaluate_with_auc_interval has them.
    Each picture is scored once; the scores are kept in the SQLite file `store`."""
    inputs = find([folder], tests, sample=None, grid_sample=0)
    if inputs.failed:
        raise UserError(" ".join(inputs.failed))
    scores = score(inputs, store)
    [entry] = inputs.entries
    threshold = entry.calibration.threshold
    return {
        test_set.name: evaluate_with_auc_interval(*scores.labelled(entry, test_set), threshold)
        for test_set in inputs.sets
    }


def report(results: list[dict], settings: dict, output: Path) -> None:
    """Write ablation.json (machine, settings, the runs, the table's numbers) and ablation.md."""
    rows = summary(results)
    with atomic_write(output / "ablation.json") as file:
        json.dump({**machine(), **settings, "summary": rows, "runs": results}, file, indent=1)
    with atomic_write(output / "ablation.md") as file:
        file.write(as_table(rows))


def summary(results: list[dict]) -> list[dict]:
    """A row a variant: `variant`, `options`, `seeds`, and `tests`: test set → `figure` ("auc" or,
    without fakes or real pictures, the recall there is), its `mean` and its `std` over the
    seeds (with n - 1; None of a single one)."""
    rows = []
    for name in dict.fromkeys(result["variant"] for result in results):
        runs = [result for result in results if result["variant"] == name]
        tests = {}
        for test_set, first in runs[0]["tests"].items():
            figure = next(key for key in TITLES if key in first)
            values = [run["tests"][test_set][figure] for run in runs]
            tests[test_set] = {
                "figure": figure,
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            }
        seeds = [run["seed"] for run in runs]
        rows.append(
            {"variant": name, "options": runs[0]["options"], "seeds": seeds, "tests": tests}
        )
    return rows


def table(result: dict) -> str:
    """What ablation.json holds as a Markdown table."""
    return as_table(result["summary"])


def as_table(rows: list[dict]) -> str:
    """The summary as a Markdown table, the best of each column in bold."""
    tests = rows[0]["tests"]
    head = ["variant", "options", "seeds"]
    head += [f"{name}, {TITLES[test['figure']]}" for name, test in tests.items()]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["variant"], f"`{row['options']}`" if row["options"] else "–"]
        cells.append(str(len(row["seeds"])))
        for name, test in row["tests"].items():
            best = max(other["tests"][name]["mean"] for other in rows)
            cells.append(as_cell(test, bold=test["mean"] == best and len(rows) > 1))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_cell(test: dict, bold: bool) -> str:
    number = "{:.3f}" if test["figure"] == "auc" else "{:.1%}"
    cell = number.format(test["mean"])
    if test["std"] is not None:
        cell += f" ± {number.format(test['std'])}"
    return f"**{cell}**" if bold else cell


if __name__ == "__main__":
    run(main, after_stop="The same command goes on from here.")
