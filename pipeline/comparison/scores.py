"""The scores of a comparison: each picture is decoded once, scored once, and never again.

They are kept in an SQLite file, so that an interrupted comparison goes on where it stopped.
"""

import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.common.errors import ImageError, UserError
from pipeline.common.files import sha256_of
from pipeline.common.machine import usable_cores
from pipeline.comparison.entries import ComparisonInputs, Entry, TestSet, key_of
from pipeline.data.dataset import Sample
from pipeline.detectors.calibration import sigmoid
from pipeline.detectors.detector import Detector
from pipeline.detectors.runtime import Runtime
from pipeline.evaluation.robustness import CLEAN, GRID, fingerprint
from pipeline.photos.images import read_image, resize

BATCH_SIZE = 32


@dataclass(frozen=True)
class Scores:
    """The scores of all entries: logits by detector, degradation and picture (its SHA-256).

    `pictures` has the checksum of each sample by its path; `unreadable` a sentence.
    """

    logits: dict[tuple[str, str], dict[str, float]]
    pictures: dict[Path, str]
    unreadable: dict[Path, str]

    def readable(self, test_set: TestSet, degradation: str = CLEAN) -> np.ndarray:
        """Which samples of a set have scores, (N,) bool."""
        readable = np.array([s.path not in self.unreadable for s in test_set.samples], bool)
        return readable if degradation == CLEAN else readable & test_set.grid

    def labelled(
        self, entry: Entry, test_set: TestSet, degradation: str = CLEAN
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels (n,) and fake_probabilities (n,) of the `readable` samples."""
        readable = self.readable(test_set, degradation)
        logits = self._calibrated_logits(entry, test_set, degradation, readable)
        return test_set.labels[readable], sigmoid(logits)

    def can_be_ranked(self, test_set: TestSet) -> bool:
        """Whether it has a ROC curve with an interval: two readable pictures of each class."""
        return min(np.bincount(test_set.labels[self.readable(test_set)], minlength=2)) >= 2

    def _calibrated_logits(self, entry, test_set, degradation, readable) -> np.ndarray:
        if entry.members:
            logits = [
                self._calibrated_logits(member, test_set, degradation, readable)
                for member in entry.members
            ]
            return np.mean(logits, axis=0) / entry.calibration.temperature
        logits = self.logits[key_of(entry.detector), degradation]
        chosen = (test_set.samples[index] for index in np.flatnonzero(readable))
        logits = np.array([logits[self.pictures[sample.path]] for sample in chosen])
        return logits / entry.calibration.temperature


def score(inputs: ComparisonInputs, store: Path, device: str = "auto") -> Scores:
    """Score every picture with every detector, decoding it once; show a progress bar.

    `store` is the SQLite file that keeps the scores, a batch at a time: whatever is in it already
    is not scored again. Raises UserError where it is damaged or cannot be written.
    """
    detectors = {key_of(c.detector): c.detector for c in inputs.entries if c.detector}
    runtimes = {key: Runtime.of(detector, device) for key, detector in detectors.items()}
    degradations = {name: fingerprint(name) for name in GRID}
    scores = Scores({}, {}, {})
    total = sum(
        len(test_set.samples) + int(test_set.grid.sum()) * (len(GRID) - 1)
        for test_set in inputs.sets
    )
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with (
            closing(sqlite3.connect(store)) as database,
            ThreadPoolExecutor(usable_cores()) as pool,
            tqdm(total=total * len(detectors), unit=" scores", smoothing=0.05) as bar,
        ):
            database.execute(
                "CREATE TABLE IF NOT EXISTS scores (detector TEXT, degradation TEXT, picture TEXT, "
                "logit REAL, PRIMARY KEY (detector, degradation, picture)) WITHOUT ROWID"
            )
            for key in detectors:
                for name, stored in degradations.items():
                    rows = database.execute(
                        "SELECT picture, logit FROM scores WHERE detector = ? AND degradation = ?",
                        (key, stored),
                    )
                    scores.logits[key, name] = dict(rows)
            for test_set in inputs.sets:
                bar.set_description(test_set.name)
                for first in range(0, len(test_set.samples), BATCH_SIZE):
                    batch = slice(first, first + BATCH_SIZE)
                    new = _score_batch(
                        test_set.samples[batch],
                        test_set.grid[batch],
                        detectors,
                        runtimes,
                        scores,
                        pool,
                        bar,
                    )
                    with database:
                        database.executemany(
                            "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)",
                            (
                                (key, degradations[name], picture, logit)
                                for key, name, picture, logit in new
                            ),
                        )
    except (sqlite3.Error, OSError) as error:
        raise UserError(
            f"{store}: the scores cannot be kept there ({error}); if no other comparison writes "
            "to it now, delete this file, or choose another --output."
        ) from None
    return scores


def _score_batch(
    samples: list[Sample],
    in_grid: np.ndarray,
    detectors: dict[str, Detector],
    runtimes: dict[str, Runtime],
    scores: Scores,
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> list[tuple[str, str, str, float]]:
    """Score what is missing of a batch; add it to the scores and return it."""
    new: list[tuple[str, str, str, float]] = []
    for sample, read in zip(samples, pool.map(_checksum, samples), strict=True):
        if isinstance(read, ImageError):
            scores.unreadable[sample.path] = str(read)
        else:
            scores.pictures[sample.path] = read
    images: dict[Path, np.ndarray] = {}
    for degradation in GRID:
        wanted = [
            sample
            for sample, degraded in zip(samples, in_grid, strict=True)
            if (degradation == CLEAN or degraded) and sample.path not in scores.unreadable
        ]
        missing = {
            key: [
                sample
                for sample in wanted
                if scores.pictures[sample.path] not in scores.logits[key, degradation]
            ]
            for key in detectors
        }
        any_missing = {sample.path: sample for lacking in missing.values() for sample in lacking}
        _read(any_missing.values(), images, scores, pool)
        pictures = [path for path in any_missing if path in images]
        degraded = dict(
            zip(pictures, pool.map(GRID[degradation], map(images.get, pictures)), strict=True)
        )
        for key, detector in detectors.items():
            paths = [sample.path for sample in missing[key] if sample.path in degraded]
            if paths:
                inputs = pool.map(input_of(detector), map(degraded.get, paths))
                logits = runtimes[key].logits(np.stack(list(inputs)))
                for path, logit in zip(paths, logits.tolist(), strict=True):
                    picture = scores.pictures[path]
                    scores.logits[key, degradation][picture] = logit
                    new.append((key, degradation, picture, logit))
            bar.update(int(in_grid.sum()) if degradation != CLEAN else len(samples))
    return new


def _checksum(sample: Sample) -> str | ImageError:
    try:
        return sha256_of(sample.path)
    except OSError as error:
        return ImageError(f"the file cannot be read ({error.strerror})")


def _read(
    samples: Iterable[Sample],
    images: dict[Path, np.ndarray],
    scores: Scores,
    pool: ThreadPoolExecutor,
) -> None:
    """Decode what is not among the images yet; note what cannot be."""
    paths = [
        sample.path
        for sample in samples
        if sample.path not in images and sample.path not in scores.unreadable
    ]
    for path, image in zip(paths, pool.map(_decode, paths), strict=True):
        if isinstance(image, ImageError):
            scores.unreadable[path] = str(image)
        else:
            images[path] = image


def _decode(path: Path) -> np.ndarray | ImageError:
    try:
        return read_image(path)
    except ImageError as error:
        return error


def input_of(detector: Detector) -> Callable[[np.ndarray], np.ndarray]:
    """What makes of a picture (H, W, 3) uint8 the detector's input (size, size, 3) uint8."""
    size, resize_filter = detector.architecture.input_size, detector.resize_filter
    return lambda image: resize(image, size, resize_filter)
