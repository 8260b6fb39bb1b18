"""Pictures to time programs on, made from the sample photos."""

from pathlib import Path

import cv2
import numpy as np

from benchmarks.measuring import ROOT
from pipeline.photos.images import read_image


def make_crops(folder: Path, count: int) -> Path:
    """Write `count` different 256 × 256 JPEG files, cut at random from the sample photos."""
    folder.mkdir()
    samples = [read_image(path) for path in sorted((ROOT / "samples").glob("*.jpg"))]
    random = np.random.default_rng(0)
    for number in range(count):
        photo = samples[number % len(samples)]
        top, left = (random.integers(side - 256 + 1) for side in photo.shape[:2])
        _write(folder / f"{number:05}.jpg", photo[top : top + 256, left : left + 256])
    return folder


def make_photos(folder: Path, count: int) -> Path:
    """Write `count` JPEG photos of 12 megapixels: a sample portrait, enlarged, in a noisy scene."""
    folder.mkdir()
    portrait = read_image(ROOT / "samples" / "real_collins.jpg")
    scene = read_image(ROOT / "samples" / "no_face_coffee.webp")
    scene = cv2.resize(scene, (4000, 3000), interpolation=cv2.INTER_CUBIC)
    random = np.random.default_rng(0)
    for number in range(count):
        side = int(random.integers(800, 2400))
        photo = scene.copy()
        top, left = (int(random.integers(length - side)) for length in (3000, 4000))
        photo[top : top + side, left : left + side] = cv2.resize(portrait, (side, side))
        noise = random.integers(-6, 7, (3000, 4000, 1), np.int16)
        _write(folder / f"{number:05}.jpg", np.clip(photo + noise, 0, 255).astype(np.uint8))
    return folder


def make_links(folder: Path, pictures: Path, count: int) -> Path:
    """Fill a folder with `count` links to the pictures, each as often as the others."""
    folder.mkdir()
    few = sorted(pictures.iterdir())
    for number in range(count):
        (folder / f"{number:06}.jpg").symlink_to(few[number % len(few)])
    return folder


def _write(path: Path, picture: np.ndarray) -> None:
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
