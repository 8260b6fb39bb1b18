"""What several steps do to the pixels of a picture, (height, width, 3) uint8 RGB."""

import cv2
import numpy as np

# The shorter side of what is halved: a row that is left out must not count.
_LEAST_HALVED = 256


def shrink(image: np.ndarray, longest_side: int) -> np.ndarray:
    """The picture with its longer side at most `longest_side` pixels, by averaging; the aspect
    ratio is kept. The very same array where it is small enough."""
    height, width = image.shape[:2]
    size = shrunk_size(width, height, longest_side)
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def shrink_in_steps(image: np.ndarray, longest_side: int) -> np.ndarray:
    """About what `shrink` gives, in half of the time where the picture is very large.

    It is halved first, which leaves out the last row or column of an odd number. To halve it until
    it is nearly small enough would be faster still, but changes pixels more than twice as much.
    """
    while max(image.shape[:2]) >= 4 * longest_side and min(image.shape[:2]) >= _LEAST_HALVED:
        height, width = (side // 2 for side in image.shape[:2])
        even = image[: 2 * height, : 2 * width]
        image = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
    return shrink(image, longest_side)


def shrunk_size(width: int, height: int, longest_side: int) -> tuple[int, int]:
    """Width and height of what `shrink` makes of such a picture, each at least 1."""
    factor = min(1, longest_side / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def recompress(image: np.ndarray, suffix: str, settings: list[int]) -> np.ndarray:
    """Compress a picture as ".jpg" or ".webp", by pairs of OpenCV's flags and values, and decode it
    again."""
    written, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    assert written
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
