"""Who takes part in a comparison, and on which pictures: detectors, their ensemble, test sets.

Whatever lies in weights/ may be named: what is no detector is skipped with a sentence, and what is
broken does not stop the others.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from scipy.special import logit

from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Sample, load_samples
from pipeline.detectors.calibration import Calibration, sigmoid
from pipeline.detectors.detector import GRAPH, WEIGHTS, Detector
from pipeline.detectors.fake_class import FakeLabels
from pipeline.detectors.together import SECTION, together
from pipeline.foreign.published import is_published
from pipeline.scoring.opening import open_detector
from pipeline.training.runs import read_history

ENSEMBLE = "ensemble"
KINDS = WEIGHTS / "kinds.csv"


@dataclass(frozen=True)
class Entry:
    """A row of the comparison: a detector, or the ensemble of `members`, which has none."""

    label: str
    calibration: Calibration
    detector: Detector | None
    members: tuple["Entry", ...] = ()

    @property
    def is_calibrated(self) -> bool:
        return self.detector is None or self.start != "published"

    @property
    def training(self) -> dict:
        """The section of that name in detector.json."""
        return self.detector.description.get("training", {}) if self.detector else {}

    @property
    def start(self) -> str:
        """What the training started from: scratch, ImageNet, published, or another label."""
        if self.detector is None:
            return "of those above"
        start = self.training.get("start", "not stated")
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


@dataclass
class ComparisonInputs:
    """What a comparison was asked to look at: what is good, and sentences on what is not.

    `skipped` is no detector or test set and was not meant to be one; `failed` is broken.
    `histories` are the epochs of each training by its label (see runs.read_history).
    """

    entries: list[Entry] = field(default_factory=list)
    sets: list[TestSet] = field(default_factory=list)
    histories: dict[str, list[dict]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def find(
    detectors: Iterable[Path],
    data: Iterable[Path],
    sample: int | None,
    grid_sample: int,
    fake_labels: Sequence[str] = (),
) -> ComparisonInputs:
    """Open the detectors and list the pictures of the test sets.

    A path of `detectors` may be anything that lies beside detectors: what is none is skipped with a
    sentence. `sample` is how many pictures of each class of each set to take, spread evenly (None:
    all); `grid_sample` how many of these to degrade (0: none); `fake_labels` are labels of foreign
    classifiers' classes that mean fake. Raises UserError where no detector
    or no test set is left.
    """
    inputs = ComparisonInputs()
    labels = FakeLabels(fake_labels)
    for path in detectors:
        _open(path, inputs, labels)
    if not inputs.entries:
        raise UserError(
            "\n".join(inputs.skipped + inputs.failed + ["There is no detector to test."])
        )
    labels.require_used()
    inputs.entries = _with_own_labels(inputs.entries)
    for entry in inputs.entries:
        if history := _history(entry.detector.folder):
            inputs.histories[entry.label] = history
    pairs, ensemble = make_pairs(inputs.entries), make_ensemble(inputs.entries)
    inputs.entries += pairs
    # Of two that were calibrated together it would be the same, but for the threshold.
    if ensemble and not (pairs and len(ensemble.members) == 2):
        inputs.entries.append(ensemble)
    data = list(data)
    names = [path.resolve().stem for path in data]
    for path, name in zip(data, names, strict=True):
        if os.path.isfile(path) and path.suffix.lower() != ".csv":
            inputs.skipped.append(f"{path}: neither a folder of pictures nor a CSV file.")
            continue
        try:
            samples = load_samples(path)
        except UserError as error:
            inputs.failed.append(str(error).splitlines()[0])
            continue
        samples = _spread(samples, sample)
        chosen = {id(picture) for picture in _spread(samples, grid_sample)}
        grid = np.array([id(picture) in chosen for picture in samples])
        unique = name if names.count(name) == 1 else f"{path.resolve().parent.name}/{name}"
        inputs.sets.append(TestSet(unique, samples, grid))
    if not inputs.sets:
        raise UserError("\n".join(inputs.skipped + inputs.failed + ["There is no test set."]))
    return inputs


def make_pairs(entries: Sequence[Entry]) -> list[Entry]:
    """Those two of them that were calibrated together (see together.py), as one."""
    pairs = []
    for first, second in permutations(entries, 2):
        sections = first.detector.description.get(SECTION, {})
        if second.detector.description["files"].get(GRAPH) in sections:
            try:
                calibration = together(first.detector, second.detector).calibration
            except UserError:  # malformed; scoring says so
                continue
            label = f"{first.label}+{second.label}"
            pairs.append(Entry(label, calibration, None, (first, second)))
    return pairs


def make_ensemble(entries: Sequence[Entry]) -> Entry | None:
    """The mean of the calibrated logits of all calibrated entries, where there are two.

    Its threshold is the mean of theirs, as logits: chosen on no picture, neither to test nor to
    validate with.
    """
    members = tuple(entry for entry in entries if entry.is_calibrated)
    if len(members) < 2:
        return None
    threshold, uncertain = (
        float(sigmoid(np.mean(logit(np.clip(values, 1e-12, 1 - 1e-12)))))
        for values in (
            [member.calibration.threshold for member in members],
            [member.calibration.uncertain_from for member in members],
        )
    )
    calibration = Calibration(1.0, threshold, uncertain, "mean of the members' thresholds")
    return Entry(ENSEMBLE, calibration, None, members)


def read_training_data(path: Path | None, entries: Iterable[Entry]) -> dict[str, set[str]]:
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
    for entry in entries:
        for name in (entry.training.get("fingerprint"), entry.label):  # the label wins
            if name in listed:
                known[entry.label] = listed[name]
    return known


def kind_of(entry: Entry, test_set: str, training_data: dict[str, set[str]]) -> str:
    """ "seen", "unseen" or "not stated": whether the detector was trained on this kind.

    An ensemble has seen what one of its members has.
    """
    if entry.members:
        kinds = {kind_of(member, test_set, training_data) for member in entry.members}
        return next(kind for kind in ("seen", "not stated", "unseen") if kind in kinds)
    if entry.label not in training_data:
        return "not stated"
    return "seen" if test_set in training_data[entry.label] else "unseen"


def key_of(detector: Detector) -> str:
    """What a detector's logits depend on: graph, input and precision, as a SHA-256."""
    description = detector.description
    parts = [description["files"][detector.graph.name], description["input"]]
    parts += description.get("precision", {}).get("order", [])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open(path: Path, inputs: ComparisonInputs, fake_labels: FakeLabels) -> None:
    is_detector = (path / "detector.json").exists() or str(path).startswith("hf-hub:")
    if os.path.exists(path) and not is_detector and not is_published(path):
        if path.is_dir() and (history := _history(path)):
            inputs.histories[path.name] = history
            inputs.skipped.append(
                f"{path}: a training that is not finished; only its curve is drawn."
            )
        else:
            inputs.skipped.append(f"{path}: not a detector.")
        return
    try:
        detector = open_detector(path, fake_labels=fake_labels)
    except UserError as error:
        inputs.failed.append(str(error))
        return
    inputs.entries.append(Entry(detector.name, detector.calibration, detector))


def _with_own_labels(entries: list[Entry]) -> list[Entry]:
    """The entries with labels that differ: the name, or the folder's path where two share it.
    What is given twice, with the same graph and calibration, counts once."""
    unique: dict[tuple[str, Calibration], Entry] = {}
    for entry in entries:
        unique.setdefault((key_of(entry.detector), entry.calibration), entry)
    names = [entry.label for entry in unique.values()]
    return [
        entry
        if names.count(entry.label) == 1 and entry.label != ENSEMBLE
        else replace(entry, label=str(entry.detector.folder))
        for entry in unique.values()
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
