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
    try:
        graph = second.description["files"][GRAPH]
        section = section_of(first.description, graph, temperatures(first, second))
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


def section_of(first: dict, graph: str, temperatures: list[float]) -> dict:
    """What the description of the first holds of it and the one with this graph, as one.

    `graph` is a SHA-256, `temperatures` those of both now. Raises KeyError where they were not
    calibrated together as they are, TypeError where the description is malformed.
    """
    section = first[SECTION][graph]
    if section["temperatures"] != temperatures:
        raise KeyError("temperatures")  # one of them was calibrated anew
    return section


def temperatures(*detectors: Detector) -> list[float]:
    """Those that their logits are divided by, on which the pair's calibration rests."""
    return [detector.calibration.temperature for detector in detectors]


def companion_of(first: Detector, folder: Path = WEIGHTS) -> Detector | None:
    """The detector in `folder` that `first` was calibrated with, by its graph or else by its name,
    though it may be another or calibrated anew since; None where there is none. Raises UserError
    where it is damaged."""
    sections = first.description.get(SECTION, {})
    named = companions(first)
    found = None
    for file in sorted(folder.glob("*/detector.json")) if sections else ():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            description = json.loads(file.read_text(encoding="utf-8"))
            if description["files"][GRAPH] in sections:
                return load_detector(file.parent)
            if description["name"] in named:
                found = found or file.parent
    return load_detector(found) if found else None


def companions(first: Detector) -> list[str]:
    """The names of the detectors that `first` was calibrated with."""
    sections = first.description.get(SECTION, {})
    with contextlib.suppress(TypeError, AttributeError):
        return sorted({section.get("name", "?") for section in sections.values()})
    return []


def joint_name(first: str, second: str) -> str:
    """What the rows of the two as one call them."""
    return f"{first}+{second}"


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
        name=joint_name(first.name, second.name),
        calibration=calibration,
        members=(first, second),
        description=first.description | {"calibration": asdict(calibration)},
    )
