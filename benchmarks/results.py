"""Measure detectors on labelled pictures, and keep the figures that README.md and docs/ show.

    python benchmarks/results.py weights/* --data FACES/test/*

DETECTOR is whatever compare_models.py takes; TEST is a folder with real/, fake/ or both. Every
picture is taken whole and scored once; the scores are kept in reports/results.sqlite, so the same
command goes on after an interruption. Prints a Markdown table and writes benchmarks/results.json:
for each detector and test set the number of pictures, AUC, the fakes found and the real faces
called fake at the detector's own threshold, each with its 95 % interval, and how many
of both are called uncertain. `python benchmarks/readme_tables.py` then puts the tables into place.
compare_models.py makes a full report of the same detectors and pictures.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from pipeline.common.command_line import run
from pipeline.common.files import atomic_write
from pipeline.common.labels import FAKE, REAL
from pipeline.comparison.entries import (
    ENSEMBLE,
    Entry,
    TestSet,
    find,
    kind_of,
    read_training_data,
)
from pipeline.comparison.scores import Scores, score
from pipeline.evaluation.metrics import Estimate, evaluate_with_intervals

RECOMMENDED = "vit+efficientnet_lite0"
# What a test set holds, for people who have never seen the folder.
TITLES = {
    "stylegan": "StyleGAN portraits, FFHQ photos",
    "dfdc": "Face swaps in videos (DFDC)",
    "faceswap": "Face swaps by a 3-D model, LFW photos",
    "text_to_image": "FLUX, SDXL and DALL·E 3 portraits",
    "gpt_4o": "GPT-4o portraits, All-Age-Faces photos",
    "utkface": "Soft and small real photos (UTKFace)",
}
IN_THE_README = ("text_to_image", "dfdc", "gpt_4o", "utkface")
KINDS = {"seen": "yes", "unseen": "no", "not stated": "not stated"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="+", type=Path, metavar="DETECTOR")
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="TEST")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results.json")
    parser.add_argument("--store", type=Path, default=ROOT / "reports" / "results.sqlite")
    args = parser.parse_args()
    inputs = find(args.detectors, args.data, sample=None, grid_sample=0)
    for sentence in inputs.skipped + inputs.failed:
        print(sentence, file=sys.stderr)
    detectors = [entry for entry in inputs.entries if entry.label != ENSEMBLE]
    training_data = read_training_data(None, detectors)
    scores = score(inputs, args.store)
    rows = [
        {
            "detector": entry.label,
            "test_set": test_set.name,
            "kind": kind_of(entry, test_set.name, training_data),
            **figures_of(entry, test_set, scores),
        }
        for entry in detectors
        for test_set in inputs.sets
    ]
    result = {**machine(), "rows": rows}
    with atomic_write(args.output) as file:
        json.dump(result, file, indent=1)
    print(table(result))


def figures_of(entry: Entry, test_set: TestSet, scores: Scores) -> dict:
    """Pictures of each class, `auc`, `recall_fake` and `called_fake` as [value, low, high] (None
    where there is no such class), `uncertain_real` and `uncertain_fake` as shares, 0…1."""
    labels, probabilities = scores.labelled(entry, test_set)
    calibration = entry.calibration
    figures = evaluate_with_intervals(labels, probabilities, calibration.threshold)
    passed = figures.get("recall_real")
    uncertain = (probabilities >= calibration.uncertain_from) & (
        probabilities < calibration.threshold
    )
    real, fake = int(np.sum(labels == REAL)), int(np.sum(labels == FAKE))
    called_fake = passed and Estimate(1 - passed.value, 1 - passed.high, 1 - passed.low)
    return {
        "real": real,
        "fake": fake,
        "auc": figures.get("auc"),
        "recall_fake": figures.get("recall_fake"),
        "called_fake": called_fake,
        "uncertain_real": _share(uncertain[labels == REAL]),
        "uncertain_fake": _share(uncertain[labels == FAKE]),
    }


def summary(result: dict) -> str:
    """The README's table: the recommended detector alone, four rows."""
    lines = [
        "| faces | kind seen in training? | fakes found | real called fake "
        "| uncertain: fakes, real | AUC |",
        "|---|---|---|---|---|---|",
    ]
    for row in _of(result, RECOMMENDED, IN_THE_README):
        lines.append(
            f"| {TITLES[row['test_set']]} | {KINDS[row['kind']]} | {bare(row['recall_fake'])} "
            f"| {bare(row['called_fake'])} | {bare([row['uncertain_fake']])}, "
            f"{bare([row['uncertain_real']])} | {_auc(row['auc'], interval=False)} |"
        )
    return "\n".join(lines) + "\n"


def blind_spots(result: dict) -> str:
    """A list item for each test set with fakes that the recommended detector has never seen."""
    lines = []
    for row in _of(result, RECOMMENDED, TITLES):
        if row["kind"] == "unseen" and row["fake"]:
            lines.append(
                f"* {TITLES[row['test_set']]}: {row['recall_fake'][0]:.1%} of the fakes found, "
                f"{row['uncertain_fake']:.1%} uncertain, AUC {row['auc'][0]:.3f}"
            )
    return "\n".join(lines) + "\n"


def table(result: dict) -> str:
    """Every detector on every test set, with intervals."""
    lines = [
        "| detector | test set | seen? | real + fake | AUC | fakes found | real called fake "
        "| uncertain, real | uncertain, fake |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['detector']} | {TITLES.get(row['test_set'], row['test_set'])} "
            f"| {KINDS[row['kind']]} | {row['real']} + {row['fake']} | {_auc(row['auc'])} "
            f"| {percent(row['recall_fake'])} | {percent(row['called_fake'])} "
            f"| {bare([row['uncertain_real']])} | {bare([row['uncertain_fake']])} |"
        )
    return "\n".join(lines) + "\n"


def _of(result: dict, detector: str, names: tuple[str, ...] | dict[str, str]) -> list[dict]:
    """A detector's rows on these test sets, in their order."""
    rows = {row["test_set"]: row for row in result["rows"] if row["detector"] == detector}
    return [rows[name] for name in names if name in rows]


def _share(chosen: np.ndarray) -> float | None:
    return float(np.mean(chosen)) if len(chosen) else None


def _auc(estimate: list[float] | None, interval: bool = True) -> str:
    if estimate is None:
        return "–"
    value, low, high = estimate
    return f"{value:.3f} ({low:.3f}–{high:.3f})" if interval else f"{value:.3f}"


def percent(estimate: list[float] | None) -> str:
    if estimate is None:
        return "–"
    value, low, high = (100 * number for number in estimate)
    return f"{value:.1f} % ({low:.1f}–{high:.1f})"


def bare(estimate: list[float] | None) -> str:
    """The value without its interval."""
    return "–" if estimate is None or estimate[0] is None else f"{100 * estimate[0]:.1f} %"


if __name__ == "__main__":
    run(main, after_stop="The same command goes on from there.")
