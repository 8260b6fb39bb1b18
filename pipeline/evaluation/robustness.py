"""What happens to photos on their way to a detector, as a fixed grid to measure robustness with.

Each degradation takes the face picture as it was stored, before a network's own resizing, and gives
a picture of the same size. Real and fake pictures are treated alike. Nothing is left to chance: the
same picture always comes out the same.
"""

import zlib
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from pipeline.photos.pixels import recompress, shrink

CLEAN = "clean"
SOCIAL_SIDE = 160  # of face pictures in the network-like chain, in pixels
SCREEN_SCALE = 0.8


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress as JPEG, colours at half resolution (4:2:0), and decode again."""
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    return recompress(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])


def webp(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress as lossy WebP and decode again."""
    return recompress(image, ".webp", [cv2.IMWRITE_WEBP_QUALITY, quality])


def shrink_and_grow(image: np.ndarray, factor: float) -> np.ndarray:
    """Shrink both sides to `factor` (0…1) by averaging, and grow back bicubically."""
    return _resize(_scale(image, factor), image.shape)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in pixels of the stored picture."""
    return cv2.GaussianBlur(image, (0, 0), sigmaX=sigma)


def noise(image: np.ndarray, std: float) -> np.ndarray:
    """Gaussian noise of this standard deviation, in steps of 255, of each channel on its own.

    The picture's own content is the seed.
    """
    random = np.random.default_rng(zlib.crc32(np.ascontiguousarray(image).tobytes()))
    grain = random.standard_normal(image.shape, dtype=np.float32) * np.float32(std)
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
    image_there = jpeg(shrink(image, SOCIAL_SIDE), 75)
    soft = cv2.GaussianBlur(image_there, (0, 0), sigmaX=1)
    sharpened = cv2.addWeighted(image_there, 1.4, soft, -0.4, 0)
    return _resize(jpeg(sharpened, 60), image.shape)


def fingerprint(name: str) -> str:
    """The degradation's name with a checksum of what it does: another one where a picture comes out
    otherwise, be it for a change here or in a library."""
    ramp = np.add.outer(np.arange(96) * 5, np.arange(96) * 3)[..., None] * np.array([1, 2, 3])
    return f"{name} {zlib.crc32(GRID[name]((ramp % 256).astype(np.uint8)).tobytes()):08x}"


def _scale(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(image, _size_of(image, factor), interpolation=cv2.INTER_AREA)


def _size_of(image: np.ndarray, factor: float) -> tuple[int, int]:
    height, width = image.shape[:2]
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resize(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


GRID: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    CLEAN: lambda image: image,
    **{f"JPEG {quality}": partial(jpeg, quality=quality) for quality in (95, 75, 50, 30)},
    **{f"WebP {quality}": partial(webp, quality=quality) for quality in (75, 30)},
    **{f"resize 1/{parts}": partial(shrink_and_grow, factor=1 / parts) for parts in (2, 4)},
    **{f"blur σ {sigma}": partial(blur, sigma=sigma) for sigma in (1, 2, 3)},
    **{f"noise σ {std}": partial(noise, std=std) for std in (2, 5, 10)},
    "screenshot": screenshot,
    "social network": social_network,
}
"""The grid: name → what it makes of a picture (H, W, 3) uint8 RGB, of the same shape and type. In
the order to show it; the first, CLEAN, changes nothing."""

EVERYDAY = ("JPEG 50", "resize 1/2", "social network")
"""Those of the grid that most photos on the net have been through."""
