"""Detectors against each other on labelled pictures that none of them was trained on.

Every picture is scored once by every detector and never again: the scores are kept, so that an
interrupted comparison goes on where it stopped. `compare` turns them into figures.
"""

import csv
import hashlib
import json
import os
import sqlite3
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.calibration import Calibration, sigmoid
from pipeline.commands import open_detector
from pipeline.dataset import FAKE, REAL, Sample, load_samples
from pipeline.detector import WEIGHTS, Detector
from pipeline.errors import ImageError, UserError
from pipeline.files import sha256_of
from pipeline.images import read_image, resize
from pipeline.metrics import (
    Estimate,
    auc_covariance,
    delong_test,
    evaluate,
    evaluate_with_intervals,
    holm,
)
from pipeline.published import is_published
from pipeline.robustness import CLEAN, GRID, fingerprint
from pipeline.runs import read_history
from pipeline.runtime import Runtime

BATCH_SIZE = 32
ENSEMBLE = "ensemble"
KINDS = WEIGHTS / "kinds.csv"


@dataclass(frozen=True)
class Contestant:
    """A row of the comparison: a detector, or the ensemble of `members`, which has none."""

    label: str
    calibration: Calibration
    detector: Detector | None
    members: tuple["Contestant", ...] = ()

    @property
    def is_calibrated(self) -> bool:
        return self.detector is None or self.start != "published"

    @property
    def start(self) -> str:
        """What the training started from: scratch, ImageNet, published, or another label."""
        if self.detector is None:
            return "of those above"
        start = self.detector.description["training"].get("start", "not stated")
        return {"none": "scratch", "imagenet": "ImageNet"}.get(start, start)


@dataclass(frozen=True)
class TestSet:
    """Labelled pictures of one kind; `grid` says which of them go through the degradations."""

    __test__ = False  # for pytest, which would take it for a test by its name

    name: str
    samples: list[Sample]
    grid: np.ndarray  # (N,) bool

    @property
    def labels(self) -> np.ndarray:
        return np.array([sample.label for sample in self.samples], int)

    @property
    def has_both_classes(self) -> bool:
        return len(set(self.labels.tolist())) == 2


@dataclass
class Found:
    """What a comparison was asked to look at: what is good, and sentences on what is not.

    `skipped` is no detector or test set and was not meant to be one; `failed` is broken.
    `histories` are the epochs of each training by its label (see runs.read_history).
    """

    contestants: list[Contestant] = field(default_factory=list)
    sets: list[TestSet] = field(default_factory=list)
    histories: dict[str, list[dict]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def find(
    detectors: Iterable[Path], data: Iterable[Path], sample: int | None, grid_sample: int
) -> Found:
    """Open the detectors and list the pictures of the test sets.

    A path of `detectors` may be anything that lies beside detectors: what is none is skipped with a
    sentence. `sample` is how many pictures of each class of each set to take, spread evenly (None:
    all); `grid_sample` how many of these to degrade (0: none). Raises UserError where no detector
    or no test set is left.
    """
    found = Found()
    for path in detectors:
        _open(path, found)
    if not found.contestants:
        raise UserError("\n".join(found.skipped + found.failed + ["There is no detector to test."]))
    found.contestants = _with_own_labels(found.contestants)
    for contestant in found.contestants:
        if history := _history(contestant.detector.folder):
            found.histories[contestant.label] = history
    if ensemble := make_ensemble(found.contestants):
        found.contestants.append(ensemble)
    data = list(data)
    names = [path.resolve().stem for path in data]
    for path, name in zip(data, names, strict=True):
        if os.path.isfile(path) and path.suffix.lower() != ".csv":
            found.skipped.append(f"{path}: neither a folder of pictures nor a CSV file.")
            continue
        try:
            samples = load_samples(path)
        except UserError as error:
            found.failed.append(str(error).splitlines()[0])
            continue
        samples = _spread(samples, sample)
        chosen = {id(picture) for picture in _spread(samples, grid_sample)}
        grid = np.array([id(picture) in chosen for picture in samples])
        unique = name if names.count(name) == 1 else f"{path.resolve().parent.name}/{name}"
        found.sets.append(TestSet(unique, samples, grid))
    if not found.sets:
        raise UserError("\n".join(found.skipped + found.failed + ["There is no test set."]))
    return found


def make_ensemble(contestants: Sequence[Contestant]) -> Contestant | None:
    """The mean of the calibrated logits of all calibrated contestants, where there are two.

    Its threshold is the mean of theirs, as logits: chosen on no picture, neither to test nor to
    validate with.
    """
    members = tuple(contestant for contestant in contestants if contestant.is_calibrated)
    if len(members) < 2:
        return None
    threshold, uncertain = (
        float(sigmoid(np.mean([_logit(getattr(member.calibration, name)) for member in members])))
        for name in ("threshold", "uncertain_from")
    )
    calibration = Calibration(1.0, threshold, uncertain, "mean of the members' thresholds")
    return Contestant(ENSEMBLE, calibration, None, members)


@dataclass(frozen=True)
class Scores:
    """The scores of all contestants: logits by detector, degradation and picture (its SHA-256).

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
        self, contestant: Contestant, test_set: TestSet, degradation: str = CLEAN
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels (n,) and fake_probabilities (n,) of the `readable` samples."""
        readable = self.readable(test_set, degradation)
        logits = self._calibrated_logits(contestant, test_set, degradation, readable)
        return test_set.labels[readable], sigmoid(logits)

    def _calibrated_logits(self, contestant, test_set, degradation, readable) -> np.ndarray:
        if contestant.members:
            logits = [
                self._calibrated_logits(member, test_set, degradation, readable)
                for member in contestant.members
            ]
            return np.mean(logits, axis=0)
        logits = self.logits[key_of(contestant.detector), degradation]
        chosen = (test_set.samples[index] for index in np.flatnonzero(readable))
        logits = np.array([logits[self.pictures[sample.path]] for sample in chosen])
        return logits / contestant.calibration.temperature


def score(found: Found, store: Path, device: str = "auto") -> Scores:
    """Score every picture with every detector, decoding it once; show a progress bar.

    `store` is the SQLite file that keeps the scores, a batch at a time: whatever is in it already
    is not scored again. Raises UserError where it is damaged or cannot be written.
    """
    detectors = {key_of(c.detector): c.detector for c in found.contestants if c.detector}
    runtimes = {
        key: Runtime(detector.graph, detector.architecture, device)
        for key, detector in detectors.items()
    }
    degradations = {name: fingerprint(name) for name in GRID}
    scores = Scores({}, {}, {})
    total = sum(
        len(test_set.samples) + int(test_set.grid.sum()) * (len(GRID) - 1)
        for test_set in found.sets
    )
    store.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            closing(sqlite3.connect(store)) as database,
            ThreadPoolExecutor(os.cpu_count()) as pool,
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
            for test_set in found.sets:
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
    except sqlite3.Error as error:
        raise UserError(
            f"{store}: the scores cannot be kept there ({error}); delete this file, or choose "
            "another --output."
        ) from None
    return scores


def key_of(detector: Detector) -> str:
    """What a detector's logits depend on: its graph and its input, as a SHA-256."""
    parts = [detector.description["files"][detector.graph.name], detector.description["input"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def compare(
    found: Found, scores: Scores, training_data: dict[str, set[str]], device: str = "auto"
) -> dict:
    """All figures, as plain numbers in lists and dicts; see the keys below. Measures speed, too.

    `training_data` says which test sets' kinds each detector has seen, by its label; of a detector
    that is not in it, nothing is known.
    """
    sets = [test_set for test_set in found.sets if scores.readable(test_set).any()]
    if not sets:
        raise UserError("Not one picture of the test sets can be read.")
    milliseconds = measure_speed(found, scores, device)
    return {
        "detectors": [
            _description(contestant, found, scores)
            | {"milliseconds": milliseconds[contestant.label]}
            for contestant in found.contestants
        ],
        "test_sets": [
            {
                "name": test_set.name,
                "real": int(np.sum(test_set.labels[scores.readable(test_set)] == REAL)),
                "fake": int(np.sum(test_set.labels[scores.readable(test_set)] == FAKE)),
                "degraded": int(test_set.grid.sum()),
            }
            for test_set in sets
        ],
        "results": [
            {
                "detector": contestant.label,
                "test_set": test_set.name,
                "kind": kind_of(contestant, test_set.name, training_data),
                "figures": _measured(contestant, test_set, scores),
            }
            for contestant in found.contestants
            for test_set in sets
        ],
        "paired": [row for test_set in sets for row in _paired(found, test_set, scores)],
        "robustness": [
            row
            for contestant in found.contestants
            for test_set in sets
            for row in _robustness(contestant, test_set, scores)
        ],
        "skipped": found.skipped,
        "failed": found.failed
        + [f"{path}: {sentence}" for path, sentence in scores.unreadable.items()],
    }


def kind_of(contestant: Contestant, test_set: str, training_data: dict[str, set[str]]) -> str:
    """ "seen", "unseen" or "not stated": whether the detector was trained on this kind.

    An ensemble has seen what one of its members has.
    """
    if contestant.members:
        kinds = {kind_of(member, test_set, training_data) for member in contestant.members}
        return next(kind for kind in ("seen", "not stated", "unseen") if kind in kinds)
    if contestant.label not in training_data:
        return "not stated"
    return "seen" if test_set in training_data[contestant.label] else "unseen"


def read_training_data(path: Path | None, contestants: Iterable[Contestant]) -> dict[str, set[str]]:
    """Which kinds each detector was trained on: label → names of test sets.

    From a CSV file (None: weights/kinds.csv) with the columns detector,generator: a line for each
    kind that a detector was trained on. `detector` is its label, or the fingerprint of its training
    data as in its detector.json, which holds for all detectors trained on these pictures. Of a
    detector that is not in it, nothing is known. Raises UserError where it cannot be read.
    """
    file_path = path or KINDS
    listed: dict[str, set[str]] = {}
    try:
        with open(file_path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"detector", "generator"} <= set(reader.fieldnames or ()):
                raise UserError(f"{file_path}: it must have the columns detector,generator.")
            for row in reader:
                kinds = listed.setdefault((row["detector"] or "").strip(), set())
                kinds.add((row["generator"] or "").strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file_path}: this file cannot be read ({error}).") from None
    known = {}
    for contestant in contestants:
        training = contestant.detector.description["training"] if contestant.detector else {}
        for name in (training.get("fingerprint"), contestant.label):  # the label wins
            if name in listed:
                known[contestant.label] = listed[name]
    return known


def worst_mistakes(
    contestant: Contestant, sets: Iterable[TestSet], scores: Scores, count: int
) -> dict[int, list[tuple[float, str, Sample]]]:
    """The clean pictures of each class that it is most wrong about, the worst first: label →
    (fake_probability, the set's name, the sample). Only such as it calls wrong."""
    wrong: dict[int, list] = {REAL: [], FAKE: []}
    for test_set in sets:
        readable = np.flatnonzero(scores.readable(test_set))
        _, probabilities = scores.labelled(contestant, test_set)
        for index, probability in zip(readable, probabilities.tolist(), strict=True):
            sample = test_set.samples[index]
            if (probability >= contestant.calibration.threshold) != (sample.label == FAKE):
                wrong[sample.label].append((probability, test_set.name, sample))
    return {
        label: sorted(mistakes, key=lambda row: row[0], reverse=label == REAL)[:count]
        for label, mistakes in wrong.items()
    }


def _open(path: Path, found: Found) -> None:
    is_detector = (path / "detector.json").exists() or str(path).startswith("hf-hub:")
    if os.path.exists(path) and not is_detector and not is_published(path):
        if path.is_dir() and (history := _history(path)):
            found.histories[path.name] = history
            found.skipped.append(
                f"{path}: a training that is not finished; only its curve is drawn."
            )
        else:
            found.skipped.append(f"{path}: not a detector.")
        return
    try:
        detector = open_detector(path)
    except UserError as error:
        found.failed.append(str(error))
        return
    found.contestants.append(Contestant(detector.name, detector.calibration, detector))


def _with_own_labels(contestants: list[Contestant]) -> list[Contestant]:
    """The contestants with labels that differ: the name, or the folder's path where two share it.
    What is given twice, with the same graph and calibration, counts once."""
    unique: dict[tuple[str, Calibration], Contestant] = {}
    for contestant in contestants:
        unique.setdefault((key_of(contestant.detector), contestant.calibration), contestant)
    names = [contestant.label for contestant in unique.values()]
    return [
        contestant
        if names.count(contestant.label) == 1 and contestant.label != ENSEMBLE
        else replace(contestant, label=str(contestant.detector.folder))
        for contestant in unique.values()
    ]


def _history(folder: Path) -> list[dict]:
    try:
        history = read_history(folder)
        return [line for line in history if "epoch" in line and "val_auc" in line]
    except (OSError, ValueError, TypeError):
        return []


def _spread(samples: list[Sample], count: int | None) -> list[Sample]:
    """`count` samples of each class, spread evenly over their order."""
    if count is None:
        return samples
    chosen = []
    for label in (REAL, FAKE):
        of_class = [sample for sample in samples if sample.label == label]
        if len(of_class) > count:
            indices = np.linspace(0, len(of_class) - 1, count).round().astype(int)
            of_class = [of_class[index] for index in indices]
        chosen += of_class
    return chosen


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
                inputs = pool.map(_input_of(detector), map(degraded.get, paths))
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


def _input_of(detector: Detector):
    size, resize_filter = detector.architecture.input_size, detector.resize_filter
    return lambda image: resize(image, size, resize_filter)


def _description(contestant: Contestant, found: Found, scores: Scores) -> dict:
    detector = contestant.detector
    described = {
        "name": contestant.label,
        "start": contestant.start,
        "threshold": contestant.calibration.threshold,
        "rule": contestant.calibration.rule,
    }
    areas = [
        auc_covariance(*_both(scores.labelled(contestant, test_set)))
        for test_set in found.sets
        if _can_be_ranked(scores, test_set)
    ]
    if areas:
        mean = float(np.mean([area[0] for area, _ in areas]))
        half = 1.96 * float(np.sqrt(sum(variance[0, 0] for _, variance in areas))) / len(areas)
        described["mean_auc"] = Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))
    if detector is None:
        parts = [_description(member, found, scores) for member in contestant.members]
        described |= {
            "architecture": " + ".join(member.label for member in contestant.members),
            **{name: sum(part[name] for part in parts) for name in ("parameters", "megabytes")},
        }
        described["minutes"] = None
        return described
    minutes = detector.description["training"].get("minutes")
    return described | {
        "architecture": detector.architecture.name,
        "parameters": count_parameters(detector.graph),
        "megabytes": detector.graph.stat().st_size / 1e6,
        "minutes": minutes,
    }


def _can_be_ranked(scores: Scores, test_set: TestSet) -> bool:
    labels = test_set.labels[scores.readable(test_set)]
    return min(np.sum(labels == REAL), np.sum(labels == FAKE)) >= 2


def _both(labelled: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = labelled
    return labels, probabilities[None]


def count_parameters(graph: Path) -> int:
    """The numbers that an ONNX graph holds as weights; batch normalization may be folded in."""
    import onnx

    integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)  # axes and shapes
    stored = onnx.load(graph, load_external_data=False).graph.initializer
    return sum(int(np.prod(t.dims)) for t in stored if t.data_type not in integers)


def measure_speed(found: Found, scores: Scores, device: str = "auto") -> dict[str, float]:
    """Milliseconds that each detector's network takes a picture, by its label.

    In batches of BATCH_SIZE, the median of five after one to warm up; without decoding and face
    search, which cost all detectors the same. An ensemble takes as long as its members together.
    """
    paths = [
        sample.path
        for test_set in found.sets
        for sample in test_set.samples
        if sample.path not in scores.unreadable
    ][:BATCH_SIZE]
    images = [read_image(path) for path in paths]
    milliseconds: dict[str, float] = {}
    for contestant in found.contestants:
        if contestant.members:
            parts = [milliseconds[member.label] for member in contestant.members]
            milliseconds[contestant.label] = sum(parts)
            continue
        detector = contestant.detector
        inputs = np.stack([_input_of(detector)(image) for image in images])
        inputs = np.resize(inputs, (BATCH_SIZE, *inputs.shape[1:]))  # repeated where there are few
        runtime = Runtime(detector.graph, detector.architecture, device)
        runtime.logits(inputs)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            runtime.logits(inputs)
            times.append(time.perf_counter() - started)
        milliseconds[contestant.label] = 1000 * statistics.median(times) / BATCH_SIZE
    return milliseconds


def _measured(contestant: Contestant, test_set: TestSet, scores: Scores) -> dict[str, Estimate]:
    labels, probabilities = scores.labelled(contestant, test_set)
    return evaluate_with_intervals(labels, probabilities, contestant.calibration.threshold)


def _paired(found: Found, test_set: TestSet, scores: Scores) -> Iterator[dict]:
    """DeLong's test of each two contestants, adjusted for their number (Holm)."""
    if not _can_be_ranked(scores, test_set):
        return
    labels = test_set.labels[scores.readable(test_set)]
    probabilities = {
        contestant.label: scores.labelled(contestant, test_set)[1]
        for contestant in found.contestants
    }
    pairs = list(combinations(probabilities, 2))
    tests = [delong_test(labels, *(probabilities[label] for label in pair)) for pair in pairs]
    adjusted = holm([test.p for test in tests])
    for (first, second), test, p_adjusted in zip(pairs, tests, adjusted, strict=True):
        yield {
            "test_set": test_set.name,
            "first": first,
            "second": second,
            "difference": test.difference,
            "p": test.p,
            "p_holm": p_adjusted,
        }


def _robustness(contestant: Contestant, test_set: TestSet, scores: Scores) -> Iterator[dict]:
    """The figures of each cell; the clean ones too on the pictures that the grid has only."""
    on_grid = TestSet(
        test_set.name,
        [s for s, chosen in zip(test_set.samples, test_set.grid, strict=True) if chosen],
        np.ones(int(test_set.grid.sum()), bool),
    )
    for degradation in GRID:
        labels, probabilities = scores.labelled(contestant, on_grid, degradation)
        if not len(labels):
            return
        figures = evaluate(labels, probabilities, contestant.calibration.threshold)
        yield {
            "detector": contestant.label,
            "test_set": test_set.name,
            "degradation": degradation,
            "images": figures["images"],
            **{name: figures.get(name) for name in ("auc", "recall_real", "recall_fake")},
        }


def _logit(probability: float) -> float:
    probability = min(max(probability, 1e-12), 1 - 1e-12)
    return float(np.log(probability / (1 - probability)))
