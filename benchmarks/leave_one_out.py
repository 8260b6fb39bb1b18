"""What does a detector make of a kind of fake that was left out of its training?

    python benchmarks/leave_one_out.py --data FACES --output FOLDER \\
        --kind stylegan ffhq --kind dfdc --kind sd21 ciplab --tests FACES/test/text_to_image

FACES is a dataset as training wants it. The pictures of a --kind are those whose file names begin
with one of the names after it: the first names the kind, its fakes' real counterparts belong to it,
since a detector that knew these alone would call all that looks like them real. The detector is
trained once on all kinds and once without each; with --pictures on so many each time, both classes
alike, and half as many validate. It is tested on all validation pictures of each kind, which the
trainings without the kind have never seen, and on the --tests, which no training has. Every
training is a script of its own, FOLDER/without-NAME; stopped, the same command goes on where it
was. Writes FOLDER/leave_one_out.json and prints its table: AUC with 95 % bootstrap intervals, in
italics where the kind was left out.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import ablation
from benchmarks.measuring import machine
from benchmarks.subsets import begins_with, evenly, without, write_table
from pipeline.common.command_line import positive_int, run, whole_number
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.data.dataset import Dataset, load_dataset

NOTHING = "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--kind", nargs="+", action="append", required=True, metavar="NAME")
    parser.add_argument("--tests", nargs="+", type=Path, default=[], metavar="TEST")
    parser.add_argument(
        "--script", default="train_efficientnet.py --architecture efficientnet_lite0"
    )
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument("--epochs", type=positive_int, help="default: as the script has it")
    parser.add_argument("--pictures", type=positive_int, help="default: all")
    args = parser.parse_args()
    refuse_equal_names(args.kind, args.tests)
    dataset = load_dataset(args.data)
    kinds = {names[0]: names for names in args.kind}
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    validation = write_validation(dataset, kinds, output)
    settings = {"script": args.script, "epochs": args.epochs, "pictures": args.pictures}
    results = {}
    for left_out in (NOTHING, *kinds):
        rest = without(dataset, kinds[left_out]) if left_out in kinds else dataset
        rest = evenly(rest, args.pictures) if args.pictures else rest
        folder = output / f"without-{left_out}"
        table_file = write_table(rest, output / f"without-{left_out}.csv")
        command = [*shlex.split(args.script), "--data", str(table_file), "--seed", str(args.seed)]
        command += ["--epochs", str(args.epochs)] if args.epochs else []
        ablation.train(command, folder)
        store = output / f"without-{left_out}.scores.sqlite"
        results[left_out] = ablation.test(folder, [*validation, *args.tests], store)
    result = {**machine(), **settings, "seed": args.seed, "results": results}
    with atomic_write(output / "leave_one_out.json") as file:
        json.dump(result, file, indent=1)
    print(table(result))


def refuse_equal_names(kinds: list[list[str]], tests: list[Path]) -> None:
    """Raises UserError where two rows or columns of the table would have one name."""
    names = [NOTHING, *(kind[0] for kind in kinds), *(test.resolve().stem for test in tests)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{', '.join(twice)}: each --kind and each of the --tests needs a name of its own, and "
            f"none may be called {NOTHING}. Name another prefix first, or copy the test set."
        )


def write_validation(dataset: Dataset, kinds: dict[str, list[str]], output: Path) -> list[Path]:
    """A CSV file of each kind's validation pictures, named as it. Raises UserError where a kind has
    none of one class there, or nothing to train on."""
    files = []
    for kind, names in kinds.items():
        chosen = begins_with(dataset, names)
        classes = {sample.label for sample in chosen.validate}
        if len(classes) < 2 or not chosen.train:
            raise UserError(
                f"{dataset.root}: the files whose names begin with {' or '.join(names)} must be "
                "there to train on, and both real and fake to validate with. Name a kind's fakes "
                "and the real pictures that belong to them: --kind stylegan ffhq."
            )
        validation = Dataset(dataset.root, [], chosen.validate)
        files.append(write_table(validation, output / f"{kind}.csv"))
    return files


def table(result: dict) -> str:
    """What leave_one_out.json holds as a Markdown table."""
    tests = [
        name
        for name, figures in result["results"][NOTHING].items()
        if "auc" in figures  # a set of one class has none
    ]
    lines = [f"| left out | {' | '.join(tests)} |", "|---" * (len(tests) + 1) + "|"]
    for left_out, figures in result["results"].items():
        cells = [as_cell(figures[name], is_new=name == left_out) for name in tests]
        lines.append(f"| {' | '.join([left_out, *cells])} |")
    return "\n".join([*lines, ""])


def as_cell(figures: dict, is_new: bool) -> str:
    low, high = figures["auc_95"]
    cell = f"{figures['auc']:.3f} ({low:.3f}–{high:.3f})"
    return f"*{cell}*" if is_new else cell


if __name__ == "__main__":
    run(main, after_stop="The same command goes on from here.")
