"""What happens to photos on their way to a detector, as a fixed grid to measure robustness with.

Each degradation takes the face picture as it was stored, before a network's own resizing, and gives
a picture of the same size. Real and fake pictures are treated alike. Nothing is left to chance: the
same picture always comes out the same.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

CLEAN = "clean"
SOCIAL_SIDE = 160  # of face pictures in the network-like chain, in pixels
SCREEN_SCALE = 0.8


@dataclass(frozen=True)
class Degradation:
    """One column of the grid: its name, and what it does to a picture (H, W, 3) uint8 RGB."""

    name: str
    apply: Callable[[np.ndarray], np.ndarray]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The degraded picture, of the same shape and type."""
        return self.apply(image)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress as JPEG, colours at half resolution (4:2:0), and decode again."""
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    return _recompress(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])


def webp(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress as lossy WebP and decode again."""
    return _recompress(image, ".webp", [cv2.IMWRITE_WEBP_QUALITY, quality])


def shrink_and_grow(image: np.ndarray, factor: float) -> np.ndarray:
    """Shrink both sides to `factor` (0…1) by averaging, and grow back bicubically."""
    return _resize(_scale(image, factor), image.shape)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in pixels of the stored picture."""
    return cv2.GaussianBlur(image, (0, 0), sigmaX=sigma)


def noise(image: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian noise of this standard deviation, in steps of 255, of each channel on its own.

    The picture's own content is the seed.
    """
    random = np.random.default_rng(zlib.crc32(np.ascontiguousarray(image).tobytes()))
    grain = random.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation)
    return np.clip(image + grain, 0, 255).round().astype(np.uint8)


def screenshot(image: np.ndarray) -> np.ndarray:
    """As a screenshot of a photo shown smaller than it is: bilinear, to a size that is no whole
    fraction of the photo's, which leaves other traces than a clean shrinking; stored losslessly."""
    size = _size_of(image, SCREEN_SCALE)
    shown = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return _resize(shown, image.shape)


def social_network(image: np.ndarray) -> np.ndarray:
    """As after two uploads: shrunk to SOCIAL_SIDE at most and JPEG 75, then a little sharpened and
    JPEG 60; grown back to its size.

    A chain of our own after what such services do (shrink, sharpen, recompress); it copies none.
    """
    image_there = image
    if max(image.shape[:2]) > SOCIAL_SIDE:
        image_there = _scale(image, SOCIAL_SIDE / max(image.shape[:2]))
    image_there = jpeg(image_there, 75)
    soft = cv2.GaussianBlur(image_there, (0, 0), sigmaX=1)
    sharpened = cv2.addWeighted(image_there, 1.4, soft, -0.4, 0)
    return _resize(jpeg(sharpened, 60), image.shape)


def _grid() -> dict[str, Degradation]:
    cells: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [(CLEAN, lambda image: image)]
    for name, change, values in (
        ("JPEG {}", jpeg, (95, 75, 50, 30)),
        ("WebP {}", webp, (75, 30)),
        ("resize 1/{}", lambda image, parts: shrink_and_grow(image, 1 / parts), (2, 4)),
        ("blur σ {}", blur, (1, 2, 3)),
        ("noise σ {}", noise, (2, 5, 10)),
    ):
        cells += [
            (name.format(value), lambda image, change=change, value=value: change(image, value))
            for value in values
        ]
    cells += [("screenshot", screenshot), ("social network", social_network)]
    return {name: Degradation(name, apply) for name, apply in cells}


def _scale(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(image, _size_of(image, factor), interpolation=cv2.INTER_AREA)


def _size_of(image: np.ndarray, factor: float) -> tuple[int, int]:
    height, width = image.shape[:2]
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resize(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _recompress(image: np.ndarray, suffix: str, settings: list[int]) -> np.ndarray:
    written, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    assert written
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


GRID: dict[str, Degradation] = _grid()
"""The grid by name, in the order to show it; the first, CLEAN, changes nothing."""
