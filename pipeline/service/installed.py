"""The installed detectors: what each says of itself, and those in memory, ready to score."""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.detectors.calibration import MISSED_FAKES
from pipeline.detectors.detector import GRAPH, WEIGHTS, Detector, check_folder, load_detector
from pipeline.detectors.detector_values import calibration_in
from pipeline.detectors.real_scores import RealScores, real_scores_in
from pipeline.detectors.together import SECTION, joint_name, section_of, together
from pipeline.scoring.scoring import Scorer

NO_DETECTOR = (
    "No detector is installed, so no face can be judged yet. Whoever keeps this service puts a "
    "detector folder into weights/ (the repository brings some, and python train_efficientnet.py "
    "trains one) and loads this page again, or names another folder with DETECTOR_WEIGHTS."
)


@dataclass(frozen=True)
class Installed:
    """What a detector folder says of itself, or of two as one, for people who choose one.

    Two that score as one have `members`; what concerns input and training is the first one's then.
    `auc` (0…1) and its 95 % interval are on validation pictures of the kinds it was trained on;
    `unseen_auc` on generators that it never saw, None where the folder does not say. `recall_fake`
    and `recall_real` are the shares of fakes and of real faces that are told right at the
    threshold; below `uncertain_from` lie `missed_fakes` of the validation fakes. `real_scores` is
    None where the folder, one of an earlier version, does not say how real faces score.
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
    real_scores: RealScores | None
    input_size: int
    training_real: int
    training_fake: int
    training_data: str
    training_start: str
    data_licence: str
    trained_on: date
    members: tuple["Installed", ...] = ()

    @property
    def title(self) -> str:
        """Its name for people: of two that score as one, both."""
        names = [member.name for member in self.members]
        return f"{' and '.join(names)} as one" if names else self.name

    def as_json(self) -> dict:
        """All but what concerns this computer alone; of `members` their names."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["folder"]
        return values | {
            "members": [member.name for member in self.members],
            "real_scores": self.real_scores and self.real_scores.as_json(),
        }

    def load(self) -> Detector:
        """The detector, verified. Raises UserError where a folder is damaged."""
        if self.members:
            return together(*(member.load() for member in self.members))
        return load_detector(self.folder)


_Single = tuple[Installed, dict]  # a detector, and the whole of its detector.json


def find_installed(weights: Path) -> list[Installed]:
    """The detectors in a folder, the recommended one first, then by their validation AUC.

    Best is the one with the best AUC on unseen generators where all folders state it, else with
    the best AUC on validation pictures. Before each that was calibrated together with another one
    comes the pair; the first of all is recommended. A folder that does not say what people need to
    choose, or has the name of another one, is left out; see `find_left_out`.
    """
    return _find(weights)[0]


def why_alone(weights: Path) -> str:
    """A sentence where the recommended detector was calibrated with another one as one, and they
    cannot score so now; else nothing."""
    return _find(weights)[1]


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
        if not detector.members:  # which are among the others
            detector.load()
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
                scorer = Scorer(*(detector.load() for detector in detectors))
            self._scorers[detectors] = scorer
            return scorer


def _find(weights: Path) -> tuple[list[Installed], str]:
    """What `find_installed` and `why_alone` answer."""
    by_name: dict[str, _Single] = {}
    for path in sorted(weights.glob("*/detector.json")):
        described = _described(path)
        if described:
            by_name.setdefault(described[0].name, described)
    singles = list(by_name.values())
    all_know_unseen = all(detector.unseen_auc is not None for detector, _ in singles)
    best_first = "unseen_auc" if all_know_unseen else "auc"
    singles.sort(key=lambda single: -getattr(single[0], best_first))
    found: list[Installed] = []
    alone = ""
    for number, single in enumerate(singles):
        pairs, apart = _pairs_of(single, singles)
        if number == 0 and not pairs:
            alone = " ".join(apart)
        found += [*pairs, single[0]]
    return [replace(each, recommended=number == 0) for number, each in enumerate(found)], alone


def _pairs_of(first: _Single, singles: list[_Single]) -> tuple[list[Installed], list[str]]:
    """The pairs that a detector is the first of, and a sentence on each that cannot be."""
    one, description = first
    sections = description.get(SECTION)
    pairs, apart = [], []
    for graph, section in sections.items() if isinstance(sections, dict) else ():
        second = next((single for single in singles if single[0].graph_sha256 == graph), None)
        if second is None:
            name = section.get("name") if isinstance(section, dict) else None
            apart.append(
                f"{one.name} scores alone: {name or 'the detector'}, with which it would score as "
                "one, is not installed here."
            )
            continue
        other, of_other = second
        try:
            now = [calibration_in(each).temperature for each in (description, of_other)]
            measured = _measured(section_of(description, graph, now))
        except (KeyError, TypeError, ValueError, AttributeError):
            apart.append(
                f"{one.name} scores alone: it and {other.name} are no longer what was calibrated "
                "as one. Whoever keeps this service runs python manage_detectors.py together once."
            )
            continue
        pairs.append(
            replace(
                one,
                name=joint_name(one.name, other.name),
                graph_sha256=joint_name(one.graph_sha256, other.graph_sha256),
                trained_on=max(one.trained_on, other.trained_on),
                members=(one, other),
                **measured,
            )
        )
    return pairs, apart


def _described(path: Path) -> _Single | None:
    """What a detector.json says; None where something that people need is missing. Nothing is
    recommended yet."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        training = description["training"]
        detector = Installed(
            name=str(description["name"]),
            recommended=False,
            folder=path.parent,
            graph_sha256=str(description["files"][GRAPH]),
            **_measured(description),
            input_size=int(description["input"]["size"]),
            training_real=int(training["images"]["real"]),
            training_fake=int(training["images"]["fake"]),
            training_data=str(training.get("data", "")),
            training_start=str(training.get("start", "")),
            data_licence=str(training.get("data_licence", "")),
            trained_on=date.fromisoformat(training["date"]),
        )
        return detector, description
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _measured(section: dict) -> dict:
    """The fields of Installed that come from `metrics` and `calibration`, of one detector or of
    two as one."""
    metrics = section["metrics"]
    calibration = calibration_in(section)
    interval, unseen = metrics.get("auc_95"), metrics.get("unseen_auc")
    return {
        "auc": float(metrics["auc"]),
        "auc_95": None if interval is None else (float(interval[0]), float(interval[1])),
        "unseen_auc": None if unseen is None else float(unseen),
        "recall_fake": float(metrics["recall_fake"]),
        "recall_real": float(metrics["recall_real"]),
        "threshold": calibration.threshold,
        "uncertain_from": calibration.uncertain_from,
        "missed_fakes": MISSED_FAKES,
        "validation_images": sum(metrics["images"].values()),
        "real_scores": real_scores_in(section),
    }
