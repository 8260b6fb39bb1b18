"""Show what some pictures of a new generator teach a detector that has seen none of them.

    python benchmarks/new_generator.py --data FACES --new nano_banana --tests FACES/test/gpt_4o \
        --output FOLDER

FACES is a dataset as training wants it. A detector like weights/vit is fitted to --faces of its
pictures, as many of each source as there are, without those whose file names begin with --new
(FOLDER/base). Then it learns further from --pictures of those, and a quarter as many to validate,
by incremental_train_vit.py with its defaults and the base's pictures to replay (FOLDER/10, …). All
are tried on 49 others of the new generator and on the folders of --tests (real/, fake/ or both),
whose pictures are taken whole. Prints a Markdown table and keeps it as
benchmarks/new_generator.json. What is finished in FOLDER is not trained again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.forgetting import train
from benchmarks.measuring import ROOT, machine
from benchmarks.results import TITLES, percent
from benchmarks.subsets import begins_with, without, write_table
from pipeline.common.command_line import positive_int, run
from pipeline.common.files import atomic_write
from pipeline.common.labels import CLASS_NAMES, FAKE
from pipeline.data.dataset import Dataset, Sample, load_dataset
from pipeline.detectors.detector import load_detector
from pipeline.detectors.versions import versions_of
from pipeline.evaluation.metrics import evaluate_with_intervals
from pipeline.evaluation.precision import probabilities_of
from pipeline.feeding.sampling import source_of
from pipeline.photos.images import PHOTO_SUFFIXES, read_image, resize

HELD_OUT = 49
VALIDATION = 180  # pictures; with 200 each detector would also be tried in other precisions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--new", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--tests", type=Path, nargs="*", default=[], metavar="TEST")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--pictures", type=positive_int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--faces", type=positive_int, default=2400)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset(args.data)
    old = evenly_by_source(without(dataset, args.new), args.faces)
    base_data = write_table(old, args.output / "base.csv")
    found = begins_with(dataset, args.new)
    new = [sample for sample in found.train + found.validate if sample.label == FAKE]
    order = np.random.default_rng(0).permutation(len(new))
    held_out = [new[index] for index in order[:HELD_OUT]]
    to_learn = [new[index] for index in order[HELD_OUT:]]

    base = args.output / "base"
    if not base.exists():
        script = ["train_vit.py", "--architecture", "vit_clip", "--init", "packaged"]
        options = ["--tuning", "probe", "--epochs", 2, "--self-blended", 0]
        options += ["--threshold-rule", "each-fpr=0.03"]
        train([*script, *options, "--data", base_data, "--output", base])
    detectors, minutes = {0: base}, {}
    for pictures in args.pictures:
        folder = args.output / str(pictures)
        if max(versions_of(folder), default=1) < 2:
            chosen = to_learn[: pictures + max(2, pictures // 4)]
            parts = Dataset(dataset.root, chosen[:pictures], chosen[pictures:])
            table_of_new = write_table(parts, args.output / f"{pictures}.csv")
            began = time.perf_counter()
            options = ["--from", base, "--new-data", table_of_new, "--replay", base_data]
            train(["incremental_train_vit.py", *options, "--margin", 1, "--output", folder])
            minutes[str(pictures)] = (time.perf_counter() - began) / 60
        detectors[pictures] = max(versions_of(folder).items())[1]
    tests = {"new": held_out} | {test.name: samples_in(test) for test in args.tests}
    result = machine() | {"faces": len(old.train), "held_out": len(held_out), "minutes": minutes}
    result["results"] = {
        str(pictures): figures_of(folder, {"old": old.validate} | tests)
        for pictures, folder in detectors.items()
    }
    print(table(result))
    with atomic_write(ROOT / "benchmarks" / "new_generator.json") as file:
        json.dump(result, file, indent=1)


def evenly_by_source(dataset: Dataset, faces: int) -> Dataset:
    """So many pictures to train on, half of them real, and VALIDATION to validate with; within a
    class as many of each source as there are."""

    def chosen(samples: list[Sample], count: int) -> list[Sample]:
        taken = []
        for label in range(len(CLASS_NAMES)):
            by_source: dict[str, list[Sample]] = {}
            for sample in samples:
                if sample.label == label:
                    by_source.setdefault(source_of(sample), []).append(sample)
            places = [
                (place, source, sample)
                for source, of_source in by_source.items()
                for place, sample in enumerate(of_source)
            ]
            places.sort(key=lambda each: each[:2])
            taken += [sample for *_, sample in places[: count // 2]]
        return taken

    return Dataset(dataset.root, chosen(dataset.train, faces), chosen(dataset.validate, VALIDATION))


def samples_in(folder: Path) -> list[Sample]:
    """The pictures of a test set."""
    return [
        Sample(path, label)
        for label, name in enumerate(CLASS_NAMES)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in PHOTO_SUFFIXES
    ]


def figures_of(folder: Path, tests: dict[str, list[Sample]]) -> dict:
    """Of each test set `auc`, `recall_fake` and `recall_real`, as [value, low, high], where there
    are pictures for it."""
    detector, figures = load_detector(folder), {}
    size = detector.architecture.input_size
    for name, samples in tests.items():
        pixels = np.stack(
            [resize(read_image(sample.path), size, detector.resize_filter) for sample in samples]
        )
        probabilities, _ = probabilities_of(detector, folder, "fp32", pixels)
        labels = np.array([sample.label for sample in samples])
        found = evaluate_with_intervals(labels, probabilities, detector.calibration.threshold)
        wanted = ("auc", "recall_fake", "recall_real")
        figures[name] = {kind: list(found[kind]) for kind in wanted if kind in found}
    return figures


def table(result: dict) -> str:
    """The figures as a Markdown table: a column for each number of pictures."""
    results = result["results"]
    heads = ["none" if pictures == "0" else pictures for pictures in results]
    lines = [f"| pictures learned | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    titles = {"new": "the new generator, others of its pictures", "old": "old validation faces"}
    words = {"auc": "AUC", "recall_fake": "found", "recall_real": "real called fake"}
    for name in dict.fromkeys(["new", *next(iter(results.values()))]):
        for kind in next(iter(results.values()))[name]:
            cells = [_cell(kind, of[name][kind]) for of in results.values()]
            title = titles.get(name) or TITLES.get(name, name)
            lines.append(f"| {title}: {words[kind]} | {' | '.join(cells)} |")
    if result["minutes"]:
        cells = [
            f"{result['minutes'][pictures]:.0f}" if pictures in result["minutes"] else "–"
            for pictures in results
        ]
        lines.append(f"| minutes | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(kind: str, estimate: list[float]) -> str:
    if kind == "auc":
        value, low, high = estimate
        return f"{value:.3f} ({low:.3f}–{high:.3f})"
    value, low, high = estimate
    return percent([1 - value, 1 - high, 1 - low] if kind == "recall_real" else estimate)


if __name__ == "__main__":
    run(main)
