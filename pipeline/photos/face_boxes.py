"""What a look at a picture shows of faces: boxes, and which of them are the same face."""

from typing import NamedTuple

import cv2
import numpy as np

_SHARED = 0.3  # of the union of two boxes, from which on they are one face
_INSIDE = 0.5  # of the smaller box, beyond which it is a part of the other


class Sightings(NamedTuple):
    """Boxes (N, 4): left, top, right, bottom; scores (N,); landmarks (N, 5, 2): x, y.

    In pixels of the picture, not clipped; best first, where nothing else is said.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray

    def where(self, chosen: np.ndarray) -> "Sightings":
        """Those of a mask (N,) bool, or of indices in their order."""
        return Sightings(*(values[chosen] for values in self))

    @property
    def sides(self) -> np.ndarray:
        """(N,): the larger side of each box."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1, initial=0)

    def enlarged(self, factors: np.ndarray) -> "Sightings":
        """All coordinates times (x, y)."""
        return Sightings(self.boxes * np.tile(factors, 2), self.scores, self.landmarks * factors)

    def moved(self, by: tuple[float, float]) -> "Sightings":
        """All coordinates plus (x, y)."""
        return Sightings(self.boxes + np.tile(by, 2), self.scores, self.landmarks + by)


NOTHING = Sightings(np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2)))


def joined(*parts: Sightings) -> Sightings:
    """All of them, in their order."""
    return Sightings(*map(np.concatenate, zip(*parts, strict=True)))


def best_of_each(sightings: Sightings) -> Sightings:
    """Of boxes that share 0.3 (intersection over union) only the best; best first."""
    boxes = sightings.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), sightings.scores.tolist(), 0, _SHARED)
    return sightings.where(np.asarray(kept, np.intp).reshape(-1))


def others_than(sightings: Sightings, known: Sightings) -> Sightings:
    """Those that show neither a face that is known, nor a part of it, nor more than it."""
    boxes, others = sightings.boxes[:, None], known.boxes[None]
    near = np.maximum(boxes[..., :2], others[..., :2])
    far = np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.maximum(far - near, 0).prod(axis=-1)
    area, other_area = ((b[..., 2:] - b[..., :2]).prod(axis=-1) for b in (boxes, others))
    of_union = shared / (area + other_area - shared)
    same = (of_union >= _SHARED) | (shared / np.minimum(area, other_area) > _INSIDE)
    return sightings.where(~same.any(axis=1))
