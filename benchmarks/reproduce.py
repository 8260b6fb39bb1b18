"""Train a shipped detector again: is it as good as the shipped one?

    make reproduce FACES=faces NETWORK=efficientnet_b0        all of it: an hour on two idle cores
    python benchmarks/reproduce.py --data faces --epochs 1    a short try, which will be worse
    python benchmarks/reproduce.py --data faces.csv --tests faces/test/*

NETWORK is one of those below; without one it is efficientnet_lite0. FACES is a dataset as training
wants it; its test sets are the folders in FACES/test/, or --tests: each holds real/, fake/ or both.
The network is trained in the stages of `NETWORKS`, each from the one before, then the new detector
and the shipped one are tested on the same pictures.

Only what is worse than shipped counts: by more than 0.02 of AUC, which is about the half of the
shipped one's 95 % interval, or more than 10 of 100 pictures at the threshold, which each training
chooses anew. How far another processor's, or another seed's, lie apart was not measured.

Stopped, the same command goes on where it was. Prints a table: figure, shipped, reproduced,
tolerance. Exit codes: 0 as good as shipped; 1 worse; 2 wrong use, or a training that failed; 130
Ctrl-C. (make itself makes 2 of any but 0.)
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import ablation, forgetting
from pipeline.common.command_line import positive_int, run
from pipeline.common.errors import UserError
from pipeline.detectors.detector import WEIGHTS, load_detector
from pipeline.training import weight_average

PREVIOUS = "the stage before"


class Stage(NamedTuple):
    """One training: a script with its options, and what it starts from. Or, without a script, an
    average of the first stage and of the one before."""

    script: str
    start: str
    options: tuple[str, ...]


class Network(NamedTuple):
    minutes: int  # that all stages take on two idle cores
    stages: tuple[Stage, ...]


def _stages(script: str, *stages: tuple[str, str]) -> tuple[Stage, ...]:
    return tuple(Stage(script, start, tuple(options.split())) for start, options in stages)


_LITE0 = "train_efficientnet.py --architecture efficientnet_lite0 --seed 0"
_BLENDED = "--learning-rate 3e-4 --epochs"
NETWORKS = {
    # With one seed in the first four stages, as the shipped one was trained; and its first was
    # stopped after 7 of 10 epochs, which is when it reached this accuracy.
    "efficientnet_lite0": Network(
        250,
        (
            *_stages(
                _LITE0,
                ("imagenet", "--target-accuracy 0.92"),
                (
                    PREVIOUS,
                    f"{_BLENDED} 3 --self-blended 0.2 --augmentation "
                    "soften=0.3,sharpen=0.15,screenshot=0.15",
                ),
                (
                    PREVIOUS,
                    f"{_BLENDED} 4 --self-blended 0.25 --augmentation crop=0.7,smallest_crop=0.6,"
                    "rescale=0.2,jpeg=0.4,soften=0.35,sharpen=0.15,screenshot=0.15",
                ),
                (
                    PREVIOUS,
                    "--learning-rate 4e-4 --epochs 8 --patience 8 --self-blended 0.2 "
                    "--augmentation crop=0.6,smallest_crop=0.65,soften=0.25,sharpen=0.1,"
                    "screenshot=0.1",
                ),
            ),
            Stage("", PREVIOUS, ("--shares", "1", "3", "--threshold-rule", "degraded-fpr=0.05")),
            *_stages(
                "train_efficientnet.py --architecture efficientnet_lite0",
                (
                    PREVIOUS,
                    "--learning-rate 5e-4 --epochs 5 --self-blended 0.15 --balance generator "
                    "--alike group --threshold-rule degraded-fpr=0.02 --augmentation crop=0.6,"
                    "smallest_crop=0.65,rescale=0.15,webp=0.05,soften=0.25,sharpen=0.1,"
                    "screenshot=0.1,margin=0.5,resave=0.4",
                ),
            ),
        ),
    ),
    "efficientnet_b0": Network(
        60,
        _stages(
            "train_efficientnet.py",
            (
                "weights/efficientnet_lite0",
                "--epochs 3 --head-epochs 0 --learning-rate 4e-5 --seed 7 --dropout 0.2 "
                "--self-blended 0.15 --balance generator --alike group --precision fp32 "
                "--threshold-rule degraded-fpr=0.03 --augmentation crop=0.6,smallest_crop=0.65,"
                "rescale=0.15,webp=0.05,soften=0.15,sharpen=0.1,screenshot=0.1,margin=0.5,"
                "resave=0.25",
            ),
        ),
    ),
    "vit": Network(
        90,
        _stages(
            "train_vit.py --architecture vit_clip",
            (
                "packaged",
                "--tuning probe --epochs 3 --self-blended 0 --threshold-rule degraded-fpr=0.02",
            ),
        ),
    ),
    # From what on_a_card.py makes in ten minutes on an NVIDIA card (docs/networks.md).
    "resnet50": Network(
        75,
        _stages(
            "train_resnet50.py",
            (
                "card/resnet50/weights.safetensors",
                "--epochs 3 --batch-size 32 --learning-rate 4e-4 --precision bf16 --seed 11 "
                "--alike group --threshold-rule degraded-fpr=0.01 --augmentation crop=0.5,"
                "smallest_crop=0.75,rescale=0.1,blur=0.05,noise=0.05,jpeg=0.2,webp=0.03,margin=0.3,"
                "resave=0.1",
            ),
        ),
    ),
    "meso4": Network(
        110,
        _stages("train_meso.py", ("weights/Meso4_DF.h5", "--epochs 14"), (PREVIOUS, "--epochs 42")),
    ),
    "mesoinception4": Network(
        95,
        _stages(
            "train_meso.py --architecture mesoinception4",
            ("weights/MesoInception_DF.h5", "--epochs 16"),
        ),
    ),
}
TOLERANCES = {"auc": 0.02, "recall_real": 0.1, "recall_fake": 0.1}


class Row(NamedTuple):
    """A figure of both detectors; higher is better."""

    test_set: str
    figure: str
    shipped: float
    reproduced: float

    @property
    def is_worse(self) -> bool:
        return self.reproduced < self.shipped - TOLERANCES[self.figure]

    @property
    def title(self) -> str:
        return f"{self.test_set}, {ablation.TITLES[self.figure]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--network", choices=NETWORKS, default="efficientnet_lite0")
    parser.add_argument(
        "--tests", type=Path, nargs="+", metavar="DIR", help="default: FACES/test/*"
    )
    parser.add_argument("--output", type=Path, default=Path("reports/reproduce"), metavar="DIR")
    parser.add_argument("--epochs", type=positive_int, help="of each stage; default: as shipped")
    args = parser.parse_args(arguments)
    tests = args.tests or test_sets(args.data)
    shipped, network = WEIGHTS / args.network, NETWORKS[args.network]
    reproduced = args.output.resolve() / args.network
    if not args.epochs:
        print(
            f"{args.network}: {len(network.stages)} stages, {network.minutes} minutes on two idle "
            "cores.",
            file=sys.stderr,
        )
    train(network, args.data.resolve(), args.epochs, reproduced)
    if fingerprint(reproduced) != fingerprint(shipped):
        print(
            f"{args.data} is not what the shipped detector was trained on: differences may come "
            "from that.",
            file=sys.stderr,
        )
    store = args.output / "scores.sqlite"
    rows = compared(*(ablation.test(folder, tests, store) for folder in (shipped, reproduced)))
    print(as_table(rows))
    worse = [row.title for row in rows if row.is_worse]
    if worse:
        print(f"Worse than shipped by more than the tolerance: {'; '.join(worse)}.")
        return 1
    print("As good as shipped, within the tolerance.")
    return 0


def test_sets(data: Path) -> list[Path]:
    """The folders of FACES/test. Raises UserError where FACES is not there, or has none."""
    for needed in (data / "train", data / "validate", data / "test"):
        if not needed.is_dir():
            raise UserError(
                f"{needed}: there is no such folder. Name labelled faces that have train/, "
                "validate/ and test/, as in make reproduce FACES=faces, or a CSV file and --tests."
            )
    found = sorted(path for path in (data / "test").iterdir() if path.is_dir())
    if not found:
        raise UserError(f"{data / 'test'}: there is no test set here, a folder of real/ and fake/.")
    return found


def train(network: Network, data: Path, epochs: int | None, folder: Path) -> None:
    """Train the detector folder in all stages, of `epochs` each if given; the stages before the
    last leave their detectors beside it. What is done is left, what was stopped goes on. Raises
    UserError."""
    *earlier, last = network.stages
    targets = [folder.with_name(f"{folder.name}-{n}") for n in range(1, len(network.stages))]
    commands, before = [], None
    for stage, target in zip((*earlier, last), (*targets, folder), strict=True):
        start = str(before) if stage.start == PREVIOUS else stage.start
        if stage.script:
            command = [*stage.script.split(), "--data", str(data), "--init", start, *stage.options]
            command += ["--epochs", str(epochs)] if epochs else []
        else:
            command = ["average", str(targets[0]), start, *stage.options, "--data", str(data)]
        commands.append((command, target))
        before = target
    whole = [word for command, _ in commands for word in command]
    if ablation.is_trained(whole, folder):
        return
    for command, target in commands:
        if target == folder or not ablation.is_trained(command, target):
            if command[0] == "average":
                with contextlib.redirect_stdout(sys.stderr):
                    weight_average.main([*command[1:], "--output", str(target)])
            else:
                forgetting.train([*command, "--output", target])


def fingerprint(folder: Path) -> str | None:
    """That of the pictures that a detector was trained on."""
    return load_detector(folder).description["training"].get("fingerprint")


def compared(shipped: dict, reproduced: dict) -> list[Row]:
    """Every figure that has a tolerance, of two results of `ablation.test` on the same sets."""
    return [
        Row(name, figure, figures[figure], reproduced[name][figure])
        for name, figures in shipped.items()
        for figure in TOLERANCES
        if figure in figures
    ]


def as_table(rows: list[Row]) -> str:
    """As Markdown; in bold what is worse by more than the tolerance."""
    lines = ["| figure | shipped | reproduced | tolerance |", "|---|---|---|---|"]
    for row in rows:
        number = "{:.3f}" if row.figure == "auc" else "{:.1%}"
        cells = (row.shipped, row.reproduced, TOLERANCES[row.figure])
        shipped, reproduced, tolerance = map(number.format, cells)
        reproduced = f"**{reproduced}**" if row.is_worse else reproduced
        lines.append(f"| {row.title} | {shipped} | {reproduced} | −{tolerance} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, after_stop="The same command goes on from here.")
