"""Measure what recompression, shrinking and blur cost a detector, or two that score as one.

    python benchmarks/robustness.py weights/vit weights/efficientnet_lite0 --data FACES/test/* \
        --sample 50

TEST is a folder with real/ and fake/ (others are skipped); --sample takes so many pictures of each,
evenly spread. Every picture is taken whole. Prints a Markdown table of the AUC of unchanged
pictures, and of how much of it each change costs, with 95 % intervals of the difference (DeLong's,
over the same pictures), and writes benchmarks/robustness.json, in which the rows of other detectors
are kept; `python benchmarks/readme_tables.py` then puts the table into place.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from benchmarks.results import TITLES
from benchmarks.stability import pictures_in, what_to_measure
from pipeline.common.command_line import run
from pipeline.common.files import atomic_write
from pipeline.common.labels import CLASS_NAMES
from pipeline.evaluation.metrics import auc, bootstrap_interval, delong_test
from pipeline.evaluation.robustness import CLEAN, GRID
from pipeline.photos.images import read_image
from pipeline.photos.photo import Photo, Picture
from pipeline.scoring.scoring import Scorer

CHANGES = ("JPEG 50", "resize 1/2", "resize 1/4", "blur σ 2", "social network")


def main() -> None:
    args, detector = what_to_measure(__doc__, ROOT / "benchmarks" / "robustness.json")
    scorer, measured = Scorer(detector, face_mode="none"), []
    for folder in sorted(args.data):
        if not all((folder / name).is_dir() for name in CLASS_NAMES):
            continue
        photos, labels = pictures_in(folder, args.sample)
        scores = {name: scored(scorer, photos, name) for name in (CLEAN, *CHANGES)}
        figures = figures_of(np.array(labels), scores)
        measured.append({"detector": detector.name, "test_set": folder.name, **figures})
        print(f"{folder}: {len(photos)} faces", file=sys.stderr)
    earlier = json.loads(args.output.read_text("utf-8"))["rows"] if args.output.exists() else []
    others = [row for row in earlier if row["detector"] != detector.name]
    with atomic_write(args.output) as file:
        json.dump({**machine(), "rows": others + measured}, file, indent=1)
    print(table({"rows": measured}))


def scored(scorer: Scorer, photos: list[Photo], change: str) -> np.ndarray:
    """fake_probability of each photo after a change of robustness.GRID."""

    def read(path: str) -> Picture:
        return Picture(GRID[change](read_image(Path(path))))

    changed = [Photo(photo.path, read=partial(read, photo.path)) for photo in photos]
    return np.array([row.fake_probability for rows in scorer.score(changed) for row in rows])


def figures_of(labels: np.ndarray, scores: dict[str, np.ndarray]) -> dict:
    """`auc` of unchanged pictures and, of each change, the `loss` of AUC: [value, low, high]."""
    clean = scores[CLEAN]
    loss = {
        change: list(delong_test(labels, clean, scores[change]).difference) for change in CHANGES
    }
    area = [auc(labels, clean), *bootstrap_interval(labels, clean, auc)]
    return {"pictures": len(labels), "auc": area, "loss": loss}


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    heads = ["detector", "test set", "pictures", "AUC", *CHANGES]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in result["rows"]:
        cells = ["{:.3f} ({:.3f}–{:.3f})".format(*row["auc"])]
        cells += [
            f"{value:.3f} ({low:.3f} to {high:.3f})".replace("-0.000", "0.000").replace("-", "−")
            for value, low, high in (row["loss"][change] for change in CHANGES)
        ]
        title = TITLES.get(row["test_set"], row["test_set"])
        lines.append(f"| {row['detector']} | {title} | {row['pictures']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    run(main)
