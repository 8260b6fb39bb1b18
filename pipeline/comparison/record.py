"""Writes into detector folders how well they do on kinds of fakes that they have not seen.

The section `metrics` of detector.json gets `unseen_auc` (the mean over the test sets that have both
classes and are of an unseen kind), `unseen_auc_95` (DeLong's interval, [low, high]) and
`unseen_measured` (`date`, and `sets`: name → pictures of each class); the model card says the same.
"""

from collections.abc import Collection
from datetime import date
from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.labels import CLASS_NAMES
from pipeline.comparison.comparison import mean_auc
from pipeline.comparison.entries import ComparisonInputs, Entry, TestSet, kind_of
from pipeline.comparison.scores import Scores
from pipeline.detectors.detector import change_detector, load_detector
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
    try:
        copies = copies_of(detector.folder)
        with change_detector(detector) as (new, description):
            description["metrics"] |= {
                "unseen_auc": area.value,
                "unseen_auc_95": [area.low, area.high],
                "unseen_measured": {
                    "date": date.today().isoformat(),
                    "sets": {test_set.name: _images(test_set, scores) for test_set in unseen},
                },
            }
            if (new / CARD).exists():
                write_card_text(new, description)
        for copy in copies:
            copy_detector(detector.folder, copy)
    except OSError as error:
        raise UserError(
            f"{detector.folder}: the AUC on unseen kinds cannot be recorded there "
            f"({error.strerror or error})."
        ) from None
    names = ", ".join(test_set.name for test_set in unseen)
    return (
        f"AUC {area.value:.3f} ({area.low:.3f}–{area.high:.3f}) on unseen kinds ({names}), now in "
        f"{detector.folder / 'detector.json'}."
    )


def _images(test_set: TestSet, scores: Scores) -> dict[str, int]:
    labels = test_set.labels[scores.readable(test_set)]
    return {name: int(np.sum(labels == label)) for label, name in enumerate(CLASS_NAMES)}
