"""Forgeries made on the fly from real faces alone: self-blended images.

After Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR 2022
(https://arxiv.org/abs/2204.08376): a face is blended into a slightly altered copy of its own
picture. What is left to see is what every face swap leaves behind: two kinds of colour, sharpness
and grid that meet along the border of a mask, and no trait of any one generator.

Different from the paper: the region comes from five landmarks instead of 81, and the pictures that
are not blended get the same alteration, on the whole of them and just as often. Otherwise an
altered background alone, for example a soft one, would mean fake.
"""

from pathlib import Path

import cv2
import numpy as np

from pipeline.feeding.augmentation import sharpen
from pipeline.photos.faces import LARGE_FACE, FaceFinder

# How much of the face comes from the other copy: as in the paper, all of it half of the time.
BLENDING_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)

_MASK_SIDE = 128  # masks are made this small, and enlarged: they are smooth
_SMALLEST_REGION = 0.005  # of the picture


class SelfBlender:
    """Makes forgeries of real pictures; finds each picture's face once. Any thread may ask.

    Raises UserError where the face detector's weights are missing.
    """

    def __init__(self, size: int):
        """`size` is the side, in pixels, of what the network sees."""
        self._size = size
        self._finder = FaceFinder()
        self._landmarks: dict[Path, np.ndarray | None] = {}  # some 200 bytes each

    def forge(self, path: Path, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A forgery of the real picture at `path`, whose pixels are `image` (H, W, 3) uint8; the
        same shape. The same pixels and state of `random` give the same forgery."""
        if path not in self._landmarks:
            self._landmarks[path] = find_landmarks(image, self._finder)
        return self_blend(image, self._landmarks[path], self._size, random)

    def alter(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A picture that is not blended, altered as a whole as often as a background is."""
        return alter(image, self._size, random) if random.random() < 0.5 else image


def find_landmarks(image: np.ndarray, finder: FaceFinder) -> np.ndarray | None:
    """The landmarks of a picture's largest face, if it is large enough to be what it shows.

    (5, 2) float32, x and y as shares of the picture's width and height, in the order of
    `faces.Face`.
    """
    height, width = image.shape[:2]
    faces = finder.find(image)
    if not faces or faces[0].side < LARGE_FACE * min(height, width):
        return None
    # Rounded, so that no last digit of the face detector's can change a forgery.
    return np.divide(faces[0].landmarks, (width, height)).round(3).astype(np.float32)


def self_blend(
    image: np.ndarray, landmarks: np.ndarray | None, size: int, random: np.random.Generator
) -> np.ndarray:
    """Blend the face of a picture (H, W, 3) uint8 into a copy of it, one of the two altered.

    `landmarks` are as from find_landmarks; without any, an ellipse stands for the face. `size` is
    the side of what the network sees.
    """
    source = target = image
    if random.random() < 0.5:
        source = alter(image, size, random)
    else:
        target = alter(image, size, random)
    mask = draw_region(landmarks, random)
    mask = _soften_border(_deform(mask, random), random)
    source, mask = _move(source, mask, random)
    mask *= random.choice(BLENDING_RATIOS)
    blended = target + mask[..., None] * (source.astype(np.float32) - target)
    return np.clip(blended, 0, 255).round().astype(np.uint8)


def alter(image: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """A copy (H, W, 3) uint8 in slightly other colours and, mostly, of another sharpness.

    The ranges are about those of the paper; downscaling counts from what the network sees, `size`
    pixels, since in a larger picture it would leave nothing to see.
    """
    image = _recolour(image, random)
    kind = random.random()
    if kind < 0.4:
        return _coarsen(image, size, random)
    if kind < 0.7:
        return sharpen(image, random.uniform(0.7, 1.5), random.uniform(0.3, 1.2))
    if kind < 0.85:
        return cv2.GaussianBlur(image, (0, 0), sigmaX=random.uniform(0.5, 1.5))
    return image


def draw_region(landmarks: np.ndarray | None, random: np.random.Generator) -> np.ndarray:
    """A mask (128, 128) float32 of 0 and 1, stretched over the picture: the whole face, its inner
    part, or its upper or lower half. It covers at least 0.5 % of the picture."""
    side = _MASK_SIDE
    mask = np.zeros((side, side), np.float32)
    if landmarks is None:
        centre = (0.5 + random.uniform(-0.03, 0.03), 0.55 + random.uniform(-0.05, 0.05))
        axes = (random.uniform(0.18, 0.34), random.uniform(0.24, 0.4))
        centre, axes = (tuple(round(share * side) for share in pair) for pair in (centre, axes))
        cv2.ellipse(mask, centre, axes, random.uniform(-10, 10), 0, 360, 1, cv2.FILLED)
        return mask
    outline = _outline(landmarks, random)
    hull = cv2.convexHull((outline * side).round().astype(np.int32))
    cv2.fillConvexPoly(mask, hull, 1)
    if mask.mean() < _SMALLEST_REGION:  # landmarks outside of the picture, or on one spot
        return draw_region(None, random)
    return mask


def _outline(landmarks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Points (N, 2) in the landmarks' unit whose convex hull is a region of the face.

    Laid out from the landmarks themselves, so that it follows a face that is turned or tilted.
    """
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks
    across = (right_eye - left_eye + right_mouth - left_mouth) / 2
    down = (left_mouth + right_mouth - left_eye - right_eye) / 2  # from the eyes to the mouth
    # Widths of the face beside eyes and mouth, and lengths above and below, in these units.
    temple, jaw, brow, chin = random.uniform((0.3, 0.15, 0.3, 0.35), (0.6, 0.45, 0.75, 0.75))
    above = [left_eye - temple * across, right_eye + temple * across]
    above += [left_eye - brow * down, right_eye - brow * down]
    below = [left_mouth - jaw * across, right_mouth + jaw * across]
    below += [left_mouth + chin * (down - 0.1 * across), right_mouth + chin * (down + 0.1 * across)]
    tight = [left_eye - 0.25 * across, right_eye + 0.25 * across]
    tight += [left_eye - 0.25 * down, right_eye - 0.25 * down]
    tight += [left_mouth + 0.2 * (down - across), right_mouth + 0.2 * (down + across)]
    kind = random.random()
    if kind < 0.55:
        return np.array(above + below)
    if kind < 0.75:
        return np.array(tight)
    if kind < 0.9:
        return np.array(
            [nose - 0.2 * down - 0.2 * across, nose - 0.2 * down + 0.2 * across, *below]
        )
    return np.array([*above, nose + 0.2 * down])


def _deform(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Bend a mask elastically: each point of a coarse grid moves by up to 6 % of the side."""
    side = len(mask)
    grid = int(random.integers(4, 9))
    moves = random.uniform(-1, 1, (grid, grid, 2)).astype(np.float32)
    moves *= side * random.uniform(0.02, 0.06)
    moves = cv2.resize(moves, (side, side), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.indices((side, side), np.float32)
    bent = cv2.remap(mask, columns + moves[..., 0], rows + moves[..., 1], cv2.INTER_LINEAR)
    return bent if bent.any() else mask  # at the picture's border all of it may move out


def _soften_border(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shrink or grow a mask a little, and give it a border that is hard or soft; up to 1.

    As in the paper, smoothing twice: a threshold between decides on which side the border goes.
    """
    smooth = cv2.GaussianBlur(mask, (0, 0), sigmaX=random.uniform(1, 6))
    mask = (smooth > random.uniform(0.2, 0.8) * smooth.max()).astype(np.float32)
    mask = cv2.GaussianBlur(mask, (0, 0), sigmaX=random.uniform(0.5, 6))
    return mask / mask.max()


def _move(
    source: np.ndarray, mask: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Move and scale a picture (H, W, 3) and its mask together, by up to 3 % and 5 %; the mask
    comes back as large as the picture."""
    height, width = source.shape[:2]
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
    scale = random.uniform(0.95, 1.05, 2)
    shift = random.uniform(-0.03, 0.03, 2) * (width, height)
    centre = np.array([width / 2, height / 2])
    matrix = np.column_stack([np.diag(scale), centre - scale * centre + shift])
    # With BORDER_REFLECT_101, OpenCV 5.0 never comes back from a picture that is a pixel wide.
    border = {"borderMode": cv2.BORDER_REPLICATE}
    source = cv2.warpAffine(source, matrix, (width, height), flags=cv2.INTER_CUBIC, **border)
    return source, cv2.warpAffine(mask, matrix, (width, height))


def _recolour(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change saturation and contrast by up to 10 %, and brightness by up to 20 of 255; in three of
    ten pictures that of each channel on its own."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    saturation, contrast = random.uniform(0.9, 1.1, 2)
    image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
    shifts = random.uniform(-20, 20, 3 if random.random() < 0.3 else 1)
    # What becomes of each of the 256 values, in each channel.
    values = (np.arange(256)[:, None] - 127.5) * contrast + 127.5 + np.broadcast_to(shifts, 3)
    return cv2.LUT(image, np.clip(values, 0, 255).round().astype(np.uint8)[None])


def _coarsen(image: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Shrink to between a half and a quarter of what the network sees, and grow back."""
    height, width = image.shape[:2]
    factor = min(1, size / max(height, width)) / random.uniform(1.5, 4)
    small = [max(1, round(side * factor)) for side in (width, height)]
    down, up = random.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC], 2)
    coarse = cv2.resize(image, small, interpolation=int(down))
    return cv2.resize(coarse, (width, height), interpolation=int(up))
