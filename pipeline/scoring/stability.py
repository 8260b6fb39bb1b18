"""Does a verdict hold when the picture is saved again, made smaller, mirrored or cut a little?

A face whose fake_probability lies near a threshold is scored again after each of the CHANGES. Where
the mean with its mirrored and shifted copies has another verdict, that becomes `uncertain`. Saving
again and shrinking take away what tells fakes from photos: they are reported, but decide nothing.
NEAR and AVERAGED were chosen on validation faces, see docs/stability.md.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.detectors.calibration import Calibration, logit, sigmoid
from pipeline.evaluation.robustness import GRID
from pipeline.photos.pixels import shrink

NEAR = 3.0  # in calibrated logits, from the threshold or from the end of the uncertain band
LARGEST_SIDE = 1024  # of a face that is looked at again: larger ones are shrunk to it first
_CUT = 1 / 64  # of the shorter side: 4 pixels of 224


class Stability(NamedTuple):
    """How a face fares: the share of its changed copies with the same verdict, 0…1, the lowest and
    the highest fake_probability of all, and, where the verdict did not hold, a phrase that says
    why. All None where it was not looked at again."""

    share: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


UNASKED = Stability()


def _shifted(image: np.ndarray) -> np.ndarray:
    """Without some pixels at the left and at the top, which moves all others."""
    shorter = min(image.shape[:2])
    by = min(max(1, round(_CUT * shorter)), shorter - 1)
    return image[by:, by:]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 75": GRID["JPEG 75"],
    "JPEG 50": GRID["JPEG 50"],
    "half size": GRID["resize 1/2"],
    "mirrored": lambda image: cv2.flip(image, 1),
    "shifted": _shifted,
}
"""What is done to a face (h, w, 3) uint8 RGB before it is scored again, in the order to name it."""

AVERAGED = ("mirrored", "shifted")
"""Those of the CHANGES that take next to nothing away from a face: on the mean of the calibrated
logits of these copies and of itself its verdict must stand."""
_LEAST = 1e-15  # further from 0 and 1 a logit is finite


def kept(face: np.ndarray) -> np.ndarray:
    """The face (h, w, 3) uint8 RGB as it will be looked at again, in memory of its own, so that the
    photo that it was cut out of need not be kept."""
    return shrink(face, LARGEST_SIDE).copy()


def changed(face: np.ndarray) -> list[np.ndarray]:
    """A face that was `kept`, after each of the CHANGES."""
    return [change(face) for change in CHANGES.values()]


def is_near(fake_probability: float, calibration: Calibration) -> bool:
    """Whether small changes may change the verdict; not of what is NaN."""
    limits = logit([calibration.threshold, calibration.uncertain_from])
    return bool(np.any(np.abs(limits - logit(fake_probability)) <= NEAR))


def stability_of(
    fake_probability: float, of_copies: Sequence[float], calibration: Calibration
) -> Stability:
    """How a face fares, by its fake_probability and those after each of the CHANGES."""
    verdict = calibration.verdict(fake_probability)
    share = float(np.mean([calibration.verdict(copy) == verdict for copy in of_copies]))
    copies = dict(zip(CHANGES, of_copies, strict=True))
    alike = [fake_probability, *(copies[name] for name in AVERAGED)]
    mean = sigmoid(np.mean(logit(np.clip(alike, _LEAST, 1 - _LEAST))))
    reason = None
    if verdict != "uncertain" and calibration.verdict(float(mean)) != verdict:
        reason = f"{verdict} as it is, but not on average with its {' and '.join(AVERAGED)} copies"
    everything = [fake_probability, *of_copies]
    return Stability(share, float(np.min(everything)), float(np.max(everything)), reason)
