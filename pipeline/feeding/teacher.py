"""Soft labels from a better detector: a small network learns what a large one knows.

Hinton, Vinyals and Dean: "Distilling the Knowledge in a Neural Network", 2015. The teacher sees the
same changed picture as its pupil: each epoch asks it anew, and not for what a recompression hides.
"""

import threading
from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError
from pipeline.detectors.calibration import sigmoid
from pipeline.detectors.detector import GRAPH, load_detector
from pipeline.detectors.runtime import Runtime, is_available
from pipeline.photos.images import resize

SHARE = 0.7  # of a label that is the teacher's opinion; the rest is what the picture is
TEMPERATURE = 2.0  # by which its opinion is softened, on top of its calibration's
_AT_ONCE = 32  # pictures


class Teacher:
    """The detector in `folder`, of whichever framework; any thread may ask. In `precision` "auto"
    it computes in bfloat16 where the processor has it. Raises UserError where there is no detector.
    """

    def __init__(self, folder: Path, precision: str = "fp32"):
        detector = load_detector(folder)
        self._temperature = TEMPERATURE * detector.calibration.temperature
        self._size, self._filter = detector.architecture.input_size, detector.resize_filter
        faster = precision != "fp32" and is_available("bf16")
        self._runtime = Runtime(
            detector.folder / GRAPH,
            detector.architecture,
            precision="bf16" if faster else "fp32",
            checksum=detector.description["files"][GRAPH],
        )
        self._lock = threading.Lock()

    def __call__(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Labels (N, 1) float32 with the teacher's opinion of pixels (N, size, size, 3) uint8."""
        seen = np.stack([resize(picture, self._size, self._filter) for picture in pixels])
        with self._lock:
            logits = [
                self._runtime.logits(seen[first : first + _AT_ONCE])
                for first in range(0, len(seen), _AT_ONCE)
            ]
        opinion = sigmoid(np.concatenate(logits) / self._temperature)[:, None]
        return ((1 - SHARE) * labels + SHARE * opinion).astype(np.float32)


def teacher_of(folder: str | None) -> dict[str, str] | None:
    """What a detector's description says of the teacher that a training had: name and SHA-256 of
    its graph; None without one. Raises UserError where there is no detector."""
    if folder is None:
        return None
    try:
        detector = load_detector(Path(folder))
    except UserError as error:
        raise UserError(f"--teacher: {error}") from error
    return {"name": detector.name, "sha256": detector.description["files"][GRAPH]}
