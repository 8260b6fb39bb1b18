"""Writes into detector folders how well they do on kinds of fakes that they have not seen.

The section `metrics` of detector.json gets `unseen_auc` (the mean over the test sets that have both
classes and are of an unseen kind), `unseen_auc_95` (DeLong's interval, [low, high]) and
`unseen_measured` (`date`, and `sets`: name → pictures of each class); the model card says the same.
It also gets `test_sets`, of seen kinds as well: name → `kind`, `real`, `called_fake` of these,
`fake`, `found` of these, the `threshold` of then, and the `date`. A pair has its own, in the
section `together` of its first.
"""

import contextlib
from collections.abc import Collection, Iterator
from datetime import date
from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.comparison.comparison import mean_auc
from pipeline.comparison.entries import ENSEMBLE, ComparisonInputs, Entry, TestSet, kind_of
from pipeline.comparison.scores import Scores
from pipeline.detectors.detector import GRAPH, Detector, change_detector, load_detector
from pipeline.detectors.together import SECTION
from pipeline.detectors.versions import copies_of, copy_detector
from pipeline.evaluation.model_card import write_card_text

CARD = "README.md"


def record_unseen(
    inputs: ComparisonInputs,
    scores: Scores,
    training_data: dict[str, set[str]],
    folders: Collection[Path],
) -> list[str]:
    """Record each compared detector's mean AUC on unseen kinds in its folder, which is replaced as
    a whole, together with the copy among its versions; a sentence for each on what was done.

    Only detectors trained here whose folders are among `folders` are touched: neither weights of
    other projects nor what the hub's cache holds. `training_data` as `comparison.compare` takes it.
    Raises UserError where a folder cannot be written or is damaged.
    """
    return [
        f"{entry.label}: {_record(entry, inputs, scores, training_data, folders)}"
        for entry in inputs.entries
        if entry.detector
    ]


def record_sets(
    inputs: ComparisonInputs,
    scores: Scores,
    training_data: dict[str, set[str]],
    folders: Collection[Path],
) -> list[str]:
    """Record what each compared detector, and each pair, called of every test set, in the folder of
    the detector or of the pair's first; a sentence for each. Which are touched, and what is raised,
    as in `record_unseen`."""
    sentences = []
    for entry in inputs.entries:
        first = entry.detector or entry.members[0].detector
        if entry.label == ENSEMBLE or first.folder not in folders or not entry.is_calibrated:
            continue
        current = load_detector(first.folder)
        if _judges_as(current) != _judges_as(first):
            continue
        sets = {
            test_set.name: _called(entry, test_set, scores)
            | {"kind": kind_of(entry, test_set.name, training_data)}
            for test_set in inputs.sets
            if scores.readable(test_set).any()
        }
        with _changed(current) as description:
            place = description
            if entry.members:
                place = description[SECTION][entry.members[1].detector.description["files"][GRAPH]]
            metrics = place.setdefault("metrics", {})
            metrics["test_sets"] = metrics.get("test_sets", {}) | sets
        sentences.append(f"{entry.label}: what it called of {', '.join(sets)} is recorded.")
    return sentences


def _judges_as(detector: Detector) -> list:
    """What a detector's verdicts depend on."""
    description = detector.description
    return [description.get(name) for name in ("files", "input", "calibration", SECTION)]


def _called(entry: Entry, test_set: TestSet, scores: Scores) -> dict:
    labels, probabilities = scores.labelled(entry, test_set)
    called_fake = probabilities >= entry.calibration.threshold
    return {
        "real": int(np.sum(labels == REAL)),
        "called_fake": int(np.sum(called_fake & (labels == REAL))),
        "fake": int(np.sum(labels == FAKE)),
        "found": int(np.sum(called_fake & (labels == FAKE))),
        "threshold": entry.calibration.threshold,
        "date": date.today().isoformat(),
    }


@contextlib.contextmanager
def _changed(detector: Detector) -> Iterator[dict]:
    """Give the block a detector's sections to change; its card is then written again, and the copy
    among its versions follows. Raises UserError where the folder cannot be written."""
    try:
        copies = copies_of(detector.folder)
        with change_detector(detector) as (new, description):
            yield description
            if (new / CARD).exists():
                write_card_text(new, description)
        for copy in copies:
            copy_detector(detector.folder, copy)
    except OSError as error:
        raise UserError(
            f"{detector.folder}: what was measured cannot be recorded there "
            f"({error.strerror or error})."
        ) from None


def _record(
    entry: Entry,
    inputs: ComparisonInputs,
    scores: Scores,
    training_data: dict[str, set[str]],
    folders: Collection[Path],
) -> str:
    detector = entry.detector
    if detector.folder not in folders or not entry.is_calibrated:
        return "nothing recorded; these are weights from elsewhere."
    unseen = [
        test_set
        for test_set in inputs.sets
        if scores.can_be_ranked(test_set)
        and kind_of(entry, test_set.name, training_data) == "unseen"
    ]
    if not unseen:
        return "nothing recorded; of no test set with both classes is it known to be unseen."
    current = load_detector(detector.folder)
    if current.description != detector.description:
        return "nothing recorded; it was replaced while it was measured."
    area = mean_auc(entry, unseen, scores)
    with _changed(detector) as description:
        description["metrics"] |= {
            "unseen_auc": area.value,
            "unseen_auc_95": [area.low, area.high],
            "unseen_measured": {
                "date": date.today().isoformat(),
                "sets": {test_set.name: _images(test_set, scores) for test_set in unseen},
            },
        }
    names = ", ".join(test_set.name for test_set in unseen)
    return (
        f"AUC {area.value:.3f} ({area.low:.3f}–{area.high:.3f}) on unseen kinds ({names}), now in "
        f"{detector.folder / 'detector.json'}."
    )


def _images(test_set: TestSet, scores: Scores) -> dict[str, int]:
    labels = test_set.labels[scores.readable(test_set)]
    return {name: int(np.sum(labels == label)) for label, name in enumerate(CLASS_NAMES)}
