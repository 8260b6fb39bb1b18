"""The installed detectors: what each says of itself, and those in memory, ready to score."""

import json
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.detectors.calibration import MISSED_FAKES
from pipeline.detectors.detector import WEIGHTS, check_folder, load_detector
from pipeline.detectors.detector_values import calibration_in
from pipeline.scoring.scoring import Scorer

NO_DETECTOR = (
    "No detector is installed, so no face can be judged yet. Whoever keeps this service puts a "
    "detector folder into weights/ (the repository brings some, and python train_efficientnet.py "
    "trains one) and loads this page again, or names another folder with DETECTOR_WEIGHTS."
)


@dataclass(frozen=True)
class Installed:
    """What a detector folder says of itself, for people who choose one.

    `auc` (0…1) and its 95 % interval are on validation pictures of the kinds it was trained on;
    `unseen_auc` on generators that it never saw, None where the folder does not say. `recall_fake`
    and `recall_real` are the shares of fakes and of real faces that are told right at the
    threshold; below `uncertain_from` lie `missed_fakes` of the validation fakes.
    """

    name: str
    recommended: bool
    folder: Path
    graph_sha256: str
    auc: float
    auc_95: tuple[float, float] | None
    unseen_auc: float | None
    recall_fake: float
    recall_real: float
    threshold: float
    uncertain_from: float
    missed_fakes: float
    validation_images: int
    input_size: int
    training_real: int
    training_fake: int
    training_data: str
    training_start: str
    data_licence: str
    trained_on: date

    def as_json(self) -> dict:
        """All but what concerns this computer alone."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


def find_installed(weights: Path) -> list[Installed]:
    """The detectors in a folder, the recommended one first, then by their validation AUC.

    Recommended is the one with the best AUC on unseen generators where all folders state it, else
    with the best AUC on validation pictures. A folder that does not say what people need to choose,
    or has the name of another one, is left out; see `find_left_out`.
    """
    by_name: dict[str, dict] = {}
    for path in sorted(weights.glob("*/detector.json")):
        described = _described(path)
        if described:
            by_name.setdefault(described["name"], described)
    found = list(by_name.values())
    all_know_unseen = all(detector["unseen_auc"] is not None for detector in found)
    best_first = "unseen_auc" if all_know_unseen else "auc"
    found.sort(key=lambda detector: -detector[best_first])
    return [Installed(recommended=number == 0, **detector) for number, detector in enumerate(found)]


def find_left_out(weights: Path) -> list[Path]:
    """The detector folders that `find_installed` leaves out."""
    folders = {path.parent for path in weights.glob("*/detector.json")}
    return sorted(folders - {detector.folder for detector in find_installed(weights)})


def check_installed(weights: Path) -> None:
    """Verify the detectors in a folder before anybody is told that they are there.

    Raises UserError where the folder cannot be read, a detector in it is damaged, or there are
    some, but none that may be offered. That there is none at all is no error, unless the folder
    itself is missing and is not the usual one.
    """
    try:
        next(weights.iterdir(), None)
    except FileNotFoundError:
        if weights == WEIGHTS:
            return
        raise UserError(
            f"{weights}: there is no such folder with detectors: correct DETECTOR_WEIGHTS."
        ) from None
    except OSError as error:
        raise UserError(
            f"{weights}: this folder with detectors cannot be read ({error.strerror}): correct "
            "DETECTOR_WEIGHTS or its permissions."
        ) from None
    installed, left_out = find_installed(weights), find_left_out(weights)
    for detector in installed:
        load_detector(detector.folder)
    if left_out and not installed:
        check_folder(left_out[0])
        raise UserError(
            f"{left_out[0]} does not say how well it does, and there is no other detector: train "
            "or download it again."
        )


class LoadedScorers:
    """Scorers of one detector or several: loaded on first use, the last used `kept` stay.

    A detector folder that has been replaced is another detector.
    """

    def __init__(self, kept: int):
        self._kept = kept
        self._scorers: OrderedDict[tuple[Installed, ...], Scorer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, detectors: tuple[Installed, ...]) -> Scorer:
        """The scorer of these detectors. Raises UserError where a folder is damaged."""
        with self._lock:
            scorer = self._scorers.pop(detectors, None)
            if scorer is None:
                while len(self._scorers) >= self._kept:  # before the new one takes its memory
                    self._scorers.popitem(last=False)
                scorer = Scorer(*(load_detector(detector.folder) for detector in detectors))
            self._scorers[detectors] = scorer
            return scorer


def _described(path: Path) -> dict | None:
    """The fields of Installed, but `recommended`, from a detector.json; None if one is missing."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        metrics, training = description["metrics"], description["training"]
        calibration = calibration_in(description)
        interval, unseen = metrics.get("auc_95"), metrics.get("unseen_auc")
        return {
            "name": str(description["name"]),
            "folder": path.parent,
            "graph_sha256": str(description["files"]["model.onnx"]),
            "auc": float(metrics["auc"]),
            "auc_95": None if interval is None else (float(interval[0]), float(interval[1])),
            "unseen_auc": None if unseen is None else float(unseen),
            "recall_fake": float(metrics["recall_fake"]),
            "recall_real": float(metrics["recall_real"]),
            "threshold": calibration.threshold,
            "uncertain_from": calibration.uncertain_from,
            "missed_fakes": MISSED_FAKES,
            "validation_images": sum(metrics["images"].values()),
            "input_size": int(description["input"]["size"]),
            "training_real": int(training["images"]["real"]),
            "training_fake": int(training["images"]["fake"]),
            "training_data": str(training.get("data", "")),
            "training_start": str(training.get("start", "")),
            "data_licence": str(training.get("data_licence", "")),
            "trained_on": date.fromisoformat(training["date"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
