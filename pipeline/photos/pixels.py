"""What several steps do to the pixels of a picture, (height, width, 3) uint8 RGB."""

import cv2
import numpy as np


def shrink(image: np.ndarray, longest_side: int) -> np.ndarray:
    """The picture with its longer side at most `longest_side` pixels, by averaging; the aspect
    ratio is kept. The very same array where it is small enough."""
    height, width = image.shape[:2]
    size = shrunk_size(width, height, longest_side)
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


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
