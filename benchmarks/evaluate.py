"""Measure detectors on labelled faces, one row a detector and test set: `make evaluate`.

    python benchmarks/evaluate.py DETECTOR… --data FOLDER… [--output benchmarks/results.json]

DETECTOR is a detector folder or one of MesoNet's published .h5 files; each FOLDER holds real/,
fake/ or both, and is scored whole (--face none), as face crops are. Prints a Markdown table with
95 % bootstrap intervals for the AUC and the recall of each class at the detector's own threshold.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.commands import open_detector, run
from pipeline.dataset import load_samples
from pipeline.detector import Detector
from pipeline.errors import UserError
from pipeline.files import atomic_write
from pipeline.inputs import Photo
from pipeline.metrics import auc, bootstrap_interval, recall
from pipeline.scoring import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="+", type=Path, metavar="DETECTOR")
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    results = []
    print("| detector | test set | pictures real + fake | AUC | fakes found | real called fake |")
    print("|---|---|---|---|---|---|")
    for path in args.detectors:
        detector = open_detector(path)
        for folder in args.data:
            result = measure(detector, folder)
            results.append(result)
            print(as_row(result), flush=True)
    if args.output:
        with atomic_write(args.output) as file:
            json.dump(results, file, indent=1)


def measure(detector: Detector, folder: Path) -> dict:
    """The figures of a detector on one test set: each a number and its 95 % interval."""
    samples = load_samples(folder)
    labels = np.array([sample.label for sample in samples])
    scorer = Scorer(detector, face_mode="none")
    rows = [row for (row,) in scorer.score(Photo(str(sample.path)) for sample in samples)]
    failed = [row for row in rows if row.error]
    if failed:
        raise UserError(f"{failed[0].path}: {failed[0].error}")
    probabilities = np.array([row.fake_probability for row in rows])
    threshold = detector.calibration.threshold
    figures = {}
    if 0 < labels.sum() < len(labels):
        figures["auc"] = auc
    if labels.any():
        figures["recall_fake"] = lambda labels, p: recall(labels == 1, p >= threshold)
    if not labels.all():
        figures["called_fake"] = lambda labels, p: recall(labels == 0, p >= threshold)
    return {
        "detector": detector.name,
        "test_set": folder.name,
        "images": {"real": int((labels == 0).sum()), "fake": int((labels == 1).sum())},
        **{
            name: [
                figure(labels, probabilities),
                *bootstrap_interval(labels, probabilities, figure),
            ]
            for name, figure in figures.items()
        },
    }


def as_row(result: dict) -> str:
    def percent(name: str) -> str:
        if name not in result:
            return "–"
        return "{:.1%} ({:.1%}–{:.1%})".format(*result[name])

    area = "{:.3f} ({:.3f}–{:.3f})".format(*result["auc"]) if "auc" in result else "–"
    images = result["images"]
    return (
        f"| {result['detector']} | {result['test_set']} | {images['real']} + {images['fake']} | "
        f"{area} | {percent('recall_fake')} | {percent('called_fake')} |"
    )


if __name__ == "__main__":
    run(main)
