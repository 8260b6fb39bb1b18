"""Two detectors as one: the mean of their calibrated logits, with a calibration of its own.

Two networks of different kinds are wrong about different faces, so their mean is right about more.
Both see the same crop, that of the first; `manage_detectors.py together` chooses the threshold.
"""

import contextlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.detectors.calibration import Calibration
from pipeline.detectors.detector import GRAPH, WEIGHTS, Detector, load_detector
from pipeline.detectors.detector_values import calibration_in

SECTION = "together"  # of the first one's detector.json: SHA-256 of the other's graph → calibration


def together(first: Detector, second: Detector) -> Detector:
    """The pair, as the two were calibrated together. Raises UserError where they were not, or
    cannot see the same crop."""
    sections = first.description.get(SECTION, {})
    try:
        section = sections[second.description["files"][GRAPH]]
        if section["temperatures"] != temperatures(first, second):
            raise KeyError("temperatures")  # one of them was calibrated anew
        return paired(first, second, calibration_in(section))
    except KeyError:
        raise UserError(
            f"{first.folder} and {second.folder}, as they are, were not calibrated together: run "
            f"`python manage_detectors.py together {first.folder} {second.folder} --data dataset/` "
            "once."
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{first.folder / 'detector.json'}: its section {SECTION} is malformed ({error}): run "
            "`manage_detectors.py together` again."
        ) from None


def temperatures(*detectors: Detector) -> list[float]:
    """Those that their logits are divided by, on which the pair's calibration rests."""
    return [detector.calibration.temperature for detector in detectors]


def companion_of(first: Detector, folder: Path = WEIGHTS) -> Detector | None:
    """The detector in `folder` that `first` was calibrated with, though one of them may have been
    calibrated anew since; None where there is none. Raises UserError where it is damaged."""
    sections = first.description.get(SECTION, {})
    for file in sorted(folder.glob("*/detector.json")) if sections else ():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if json.loads(file.read_text(encoding="utf-8"))["files"][GRAPH] in sections:
                return load_detector(file.parent)
    return None


def paired(first: Detector, second: Detector, calibration: Calibration) -> Detector:
    """The pair with this calibration. Raises UserError where they cannot see the same crop."""
    for name, of in (
        ("size", lambda detector: detector.architecture.input_size),
        ("resize filter", lambda detector: detector.resize_filter),
    ):
        if of(first) != of(second):
            raise UserError(
                f"{second.folder}: its input has another {name} than that of {first.folder} "
                f"({of(second)}, not {of(first)}), so the two cannot score together."
            )
    return replace(
        first,
        name=f"{first.name}+{second.name}",
        calibration=calibration,
        members=(first, second),
        description=first.description | {"calibration": asdict(calibration)},
    )
