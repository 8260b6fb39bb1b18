"""Measure what it changes that a verdict must hold (--stability of the scoring scripts).

    python benchmarks/stability.py weights/efficientnet_lite0 --data FACES/test/*
    python benchmarks/stability.py weights/vit weights/efficientnet_lite0 --data FACES/test/* \
        --sample 100

Two detectors score as one. TEST is a folder with real/, fake/ or both; --sample takes so many
pictures of each, evenly spread. Every picture is taken whole. Prints a Markdown table and writes
benchmarks/stability.json, in which the rows of other detectors are kept; `python
benchmarks/readme_tables.py` then puts the table into place.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from benchmarks.results import TITLES, bare, percent
from pipeline.common.command_line import positive_int, run
from pipeline.common.files import atomic_write
from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.detectors.detector import Detector, load_detector
from pipeline.detectors.together import together
from pipeline.evaluation.shares import share_of
from pipeline.photos.images import PHOTO_SUFFIXES
from pipeline.photos.photo import Photo
from pipeline.rows.rows import Row
from pipeline.scoring.scoring import Scorer

ALL = "all"  # the row of all test sets together


def main() -> None:
    args, detector = what_to_measure(__doc__, ROOT / "benchmarks" / "stability.json")
    scorer = Scorer(detector, face_mode="none")
    sets = {}
    for folder in sorted(args.data):
        photos, labels = pictures_in(folder, args.sample)
        rows = [row for rows in scorer.score(photos, stability=True) for row in rows]
        sets[folder.name] = (rows, labels)
        print(f"{folder}: {len(rows)} faces", file=sys.stderr)
    sets[ALL] = (
        [row for rows, _ in sets.values() for row in rows],
        [label for _, labels in sets.values() for label in labels],
    )
    measured = [
        {"detector": detector.name, "test_set": name, **figures_of(rows, labels, detector)}
        for name, (rows, labels) in sets.items()
    ]
    earlier = json.loads(args.output.read_text("utf-8"))["rows"] if args.output.exists() else []
    others = [row for row in earlier if row["detector"] != detector.name]
    with atomic_write(args.output) as file:
        json.dump({**machine(), "rows": others + measured}, file, indent=1)
    print(table({"rows": measured}))


def what_to_measure(docstring: str, output: Path) -> tuple[argparse.Namespace, Detector]:
    """The command line of a benchmark of one detector, or of two that score as one, and that
    detector; `output` is where its figures go unless it says otherwise."""
    parser = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="+", type=Path, metavar="DETECTOR")
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="TEST")
    parser.add_argument("--sample", type=positive_int, metavar="N")
    parser.add_argument("--output", type=Path, default=output)
    args = parser.parse_args()
    if len(args.detectors) > 2:
        parser.error("name one detector, or two that score as one")
    detector = load_detector(args.detectors[0])
    for other in args.detectors[1:]:
        detector = together(detector, load_detector(other))
    return args, detector


def pictures_in(folder: Path, sample: int | None) -> tuple[list[Photo], list[int]]:
    """The pictures of a test set, at most `sample` of each class, and their labels."""
    photos, labels = [], []
    for label in (REAL, FAKE):
        paths = [
            path
            for path in sorted((folder / CLASS_NAMES[label]).glob("*"))
            if path.suffix.lower() in PHOTO_SUFFIXES
        ]
        count = min(sample or len(paths), len(paths))
        photos += [Photo(str(paths[number * len(paths) // count])) for number in range(count)]
        labels += [label] * count
    return photos, labels


def figures_of(rows: Iterable[Row], labels: Iterable[int], detector: Detector) -> dict:
    """What was measured of a test set; `before` is without the requirement that verdicts hold, and
    `raised` with a threshold that finds as few fakes as are found `after`.

    `looked_again` is a share, 0…1, and the others are [value, low, high].
    """
    labels = np.array(labels)
    probabilities = np.array([row.fake_probability for row in rows])
    before = np.array([detector.calibration.verdict(value) for value in probabilities])
    after = np.array([row.verdict for row in rows])
    real, fake = labels == REAL, labels == FAKE
    result = {"real": int(real.sum()), "fake": int(fake.sum())}
    result["looked_again"] = float(np.mean([row.stability is not None for row in rows]))
    for name, verdicts in (("before", before), ("after", after)):
        result[name] = {
            "called_fake": share_of(verdicts[real] == "fake") if real.any() else None,
            "uncertain_real": share_of(verdicts[real] == "uncertain") if real.any() else None,
            "recall_fake": share_of(verdicts[fake] == "fake") if fake.any() else None,
        }
    found = int(np.sum(after[fake] == "fake"))
    if found and real.any():
        raised = np.sort(probabilities[fake])[::-1][found - 1]
        result["raised"] = share_of(probabilities[real] >= raised)
    return result


def table(result: dict) -> str:
    """Each detector on each test set, before → after, with intervals."""
    lines = [
        "| detector | test set | real + fake | looked at again | real called fake "
        "| the same by a higher threshold | real uncertain | fakes found |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        before, after = row["before"], row["after"]
        title = (
            "All of these"
            if row["test_set"] == ALL
            else TITLES.get(row["test_set"], row["test_set"])
        )
        lines.append(
            f"| {row['detector']} | {title} | {row['real']} + {row['fake']} "
            f"| {bare([row['looked_again']])} "
            f"| {percent(before['called_fake'])} → {percent(after['called_fake'])} "
            f"| {percent(row.get('raised'))} "
            f"| {bare(before['uncertain_real'])} → {bare(after['uncertain_real'])} "
            f"| {percent(before['recall_fake'])} → {percent(after['recall_fake'])} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
