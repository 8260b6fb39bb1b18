"""Where a large picture is looked at more closely, so that its small faces are found, too.

CenterFace is sure of a face from about 28 pixels on, and has an inkling of it from 15 on. So a
picture in which the smallest face that is to be found has less than 15 is looked at in overlapping
tiles, and wherever there is an inkling, again in a small window at a larger scale.

Measured on 536 real and fake faces of 25 kinds, reduced to 64 pixels and pasted into photos of
4000 × 3000: looked at as 960 × 720, one of ten is found (score above 0.5), at twice that scale nine
of ten, at full size 98 %. Of those that twice the scale shows, 94 % have a score above 0.01 in the
look at the whole, and a box there that is right within a third. Windows around such boxes find
86 % of all (97 % where there is more of the head than the face, as in FFHQ and LFW), 93 % (100 %)
at 75 pixels and 99 % at 110. They hold a sixth of a photo's pixels (median of 20 pictures), which
costs half as much again as reading it and looking at the whole; in street scenes up to all of it.
"""

from typing import NamedTuple

import numpy as np

SMALLEST_FACE = 64  # pixels of the larger side of its box, in the picture as it is
# The scales at which such a face has 15 pixels, an inkling, and 30, of which CenterFace is sure.
INKLING_SCALE, SURE_SCALE = 15 / SMALLEST_FACE, 30 / SMALLEST_FACE
_STEP = 4  # at most, from one scale to the next where all of a picture is looked at
# The least score of an inkling, by the pixels that the smallest face has there.
_INKLINGS = {15: 0.01, 20: 0.02, 28: 0.1}
# A box that may be of such a face, or of a somewhat larger one that was overlooked.
_SMALLEST_GUESS, _LARGEST_GUESS = 0.6 * SMALLEST_FACE, 2.5 * SMALLEST_FACE
_SURROUNDINGS = 1.6  # what CenterFace wants to see of a face, as a multiple of its box
_NEAR_EDGE = 0.05  # of a box's side: nearer to the edge of a window, it may be cut

# Pixels of what the network sees. Few shapes: OpenVINO prepares itself anew for each.
_TILE, _OVERLAP = 1280, 160  # the largest face that is new at a scale has about 120
_WINDOW = 128


class Window(NamedTuple):
    """A part of a picture, left ≤ x < right and top ≤ y < bottom, whole numbers of pixels."""

    left: int
    top: int
    right: int
    bottom: int

    def cuts(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Which boxes (N, 4) may lack a part that lies in the picture beyond this window, (N,)."""
        near = np.maximum((boxes[:, 2:] - boxes[:, :2]) * _NEAR_EDGE, 1)
        reach = np.concatenate([boxes[:, :2] - near, boxes[:, 2:] + near], axis=1)
        inner = np.array([self.left > 0, self.top > 0, self.right < width, self.bottom < height])
        beyond = np.concatenate([reach[:, :2] < self[:2], reach[:, 2:] > self[2:]], axis=1)
        return (beyond & inner).any(axis=1)


def scales_of_tiles(scale: float) -> list[float]:
    """The scales at which tiles must be looked at after the whole picture was at `scale`."""
    scales = []
    while scale < INKLING_SCALE:
        scale = min(_STEP * scale, INKLING_SCALE)
        scales.append(scale)
    return scales


def scales_of_windows(scale: float) -> list[float]:
    """The scales at which inklings are followed up that were had at `scale`."""
    return [finer for finer in (SURE_SCALE, 1.0) if finer > 1.5 * scale]


def least_inkling(scale: float) -> float:
    """The score from which on something seen at this scale is worth a closer look."""
    return float(np.interp(scale * SMALLEST_FACE, list(_INKLINGS), list(_INKLINGS.values())))


def may_be_small(sides: np.ndarray) -> np.ndarray:
    """Whether boxes with sides of so many pixels may be of faces that need a closer look, (N,)."""
    return (sides >= _SMALLEST_GUESS) & (sides <= _LARGEST_GUESS)


def tiles(height: int, width: int, scale: float) -> list[Window]:
    """Windows of equal size that cover a picture and overlap, each of what `scale` can show."""
    rows, columns = (_spread(length, scale) for length in (height, width))
    return [Window(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def windows_around(boxes: np.ndarray, height: int, width: int, scale: float) -> list[Window]:
    """Few windows of equal size that hold all boxes (N, 4), each with its surroundings."""
    side = int(_WINDOW / scale)
    picture = np.array([width, height])
    size = np.minimum(side, picture)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) * _SURROUNDINGS / 2
    reach = np.minimum(reach, (side - 1) / 2)
    near = np.maximum(np.floor(centres - reach), 0).astype(int)
    far = np.minimum(centres + reach, picture)
    windows = []
    left_over = np.arange(len(boxes))
    while len(left_over):  # a shelf from the highest box down, a window from its leftmost on
        top = near[left_over, 1].min()
        shelf = left_over[far[left_over, 1] <= top + size[1]]
        left = near[shelf, 0].min()
        held = shelf[far[shelf, 0] <= left + size[0]]
        start = np.minimum((left, top), picture - size)
        windows.append(Window(*start.tolist(), *(start + size).tolist()))
        left_over = np.setdiff1d(left_over, held)
    return windows


def _spread(length: int, scale: float) -> list[tuple[int, int]]:
    """Equal overlapping parts of a side."""
    shown = length * scale
    number = max(1, int(np.ceil((shown - _OVERLAP) / (_TILE - _OVERLAP))))
    part = min(length, int(np.ceil((shown + (number - 1) * _OVERLAP) / number / scale)))
    starts = np.linspace(0, length - part, number).round().astype(int).tolist()
    return [(start, start + part) for start in starts]
