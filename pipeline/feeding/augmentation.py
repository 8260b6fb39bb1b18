"""What happens to a face between a camera and a detector, applied at random in training.

Photos reach people cropped, rescaled, recompressed, blurred and brightened. A detector that never
saw that takes sharpness or a file format for the truth. Every change here hits real and fake
pictures alike: whether it happens never depends on the label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from models import Architecture
from pipeline.common.files import atomic_write
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Sample
from pipeline.photos.images import read_image, resize
from pipeline.photos.pixels import recompress

_FILTERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


class Blender(Protocol):
    """What self_blending.SelfBlender offers."""

    def forge(self, path: Path, image: np.ndarray, random: np.random.Generator) -> np.ndarray: ...
    def alter(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class Augmentation:
    """How often (probabilities, 0…1) and how strongly pictures are changed in training."""

    flip: float = 0.5
    crop: float = 0.8
    smallest_crop: float = 0.75  # of the side; both sides on their own, so the aspect varies too
    rescale: float = 0.3  # shrink to 30–90 % and grow back, each with a filter of its own
    blur: float = 0.1  # Gaussian, sigma 0.3–1.5 pixels
    noise: float = 0.1  # Gaussian, standard deviation 1–6 of 255
    brightness: float = 0.4  # brightness ±12 %, contrast 80–125 %
    jpeg: float = 0.5  # quality 30–100
    webp: float = 0.05  # quality 30–100
    # Harsher, and off unless asked for. They take from a detector that sharp or soft means fake.
    soften: float = 0.0  # shrink to 12–30 % and grow back, or Gaussian blur, sigma 1.5–3.5 pixels
    sharpen: float = 0.0  # unsharp masking, sigma 0.5–2 pixels, amount 0.3–1.5
    screenshot: float = 0.0  # shown at 60–180 %, on a grid that is shifted, and saved from there
    # What makes all sources alike: one of its own for each way that a picture comes to a detector.
    margin: float = 0.0  # cut the face out at 1.1–2.2 of its side, if the training finds one
    resave: float = 0.0  # brought to 96–256 pixels and saved as JPEG or WebP, once or twice


NO_AUGMENTATION = Augmentation(flip=0, crop=0, rescale=0, blur=0, noise=0, brightness=0, jpeg=0,
                               webp=0)  # fmt: skip


def augment(
    image: np.ndarray,
    size: int,
    filter: str,
    recipe: Augmentation,
    random: np.random.Generator,
    face: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Change a picture at random: (height, width, 3) uint8 RGB → (size, size, 3) uint8.

    Cropping works on the full picture; `filter` brings it to `size` as scoring does; the other
    changes follow in the order in which photos meet them: rescaling, blur, noise, light, files.
    `face` is where the face lies (left, top, right, bottom), of which `margin` cuts. The same state
    of `random` gives the same picture.
    """
    if recipe.margin and random.random() < recipe.margin and face is not None:
        image = _cut_out(image, face, random)
    if recipe.resave and random.random() < recipe.resave:
        image = _resave(image, random)
    if random.random() < recipe.crop:
        image = _crop(image, recipe.smallest_crop, random)
    image = resize(image, size, filter)
    if random.random() < recipe.flip:
        image = cv2.flip(image, 1)
    for probability, change in (
        (recipe.rescale, _rescale),
        (recipe.blur, _blur),
        *_if_asked(recipe.soften, _soften),
        *_if_asked(recipe.sharpen, _sharpen),
        (recipe.noise, _noise),
        (recipe.brightness, _brightness),
        *_if_asked(recipe.screenshot, _screenshot),
        (recipe.jpeg, _jpeg),
        (recipe.webp, _webp),
    ):
        if random.random() < probability:
            image = change(image, random)
    return image


def sharpen(image: np.ndarray, sigma: float, amount: float) -> np.ndarray:
    """Unsharp masking: add `amount` of the difference to the picture blurred with `sigma`."""
    blurred = cv2.GaussianBlur(image, (0, 0), sigmaX=sigma)
    return cv2.addWeighted(image, 1 + amount, blurred, -amount, 0)


def show_augmentation(
    samples: list[Sample],
    architecture: Architecture,
    recipe: Augmentation,
    seed: int,
    path: Path,
    blender: Blender | None = None,
    face_of: Callable[[Path, np.ndarray], tuple | None] | None = None,
) -> None:
    """Write a PNG sheet: four pictures of each class and, with a `blender`, four real ones that it
    forges, a row each.

    A row holds the picture as scoring sees it, then seven augmented versions. `face_of` tells where
    the face of a picture lies, as face_places.FacePlaces does.
    """
    random = np.random.default_rng(seed)
    rows = []
    size = architecture.input_size
    for label, forged in ((REAL, False), (FAKE, False), (REAL, True))[: 3 if blender else 2]:
        of_class = [sample for sample in samples if sample.label == label]
        for index in random.choice(len(of_class), min(4, len(of_class)), replace=False):
            sample_path = of_class[index].path
            image = read_image(sample_path)
            face = face_of(sample_path, image) if face_of else None
            row = [resize(image, size, "area")]
            for _ in range(7):
                shown = image
                if forged:
                    shown = blender.forge(sample_path, image, random)
                elif blender:
                    shown = blender.alter(image, random)
                row.append(augment(shown, size, "area", recipe, random, face))
            rows.append(np.hstack(row))
    with atomic_write(path, "wb") as file:
        Image.fromarray(np.vstack(rows)).save(file, format="PNG")


def _if_asked(probability: float, change: Callable) -> list[tuple[float, Callable]]:
    """A change as a list: empty at probability 0, where it must not even draw, or the recipes that
    are older than it would change."""
    return [(probability, change)] if probability else []


def _crop(image: np.ndarray, smallest: float, random: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    new_height = max(1, round(height * random.uniform(smallest, 1)))
    new_width = max(1, round(width * random.uniform(smallest, 1)))
    top = random.integers(height - new_height + 1)
    left = random.integers(width - new_width + 1)
    return image[top : top + new_height, left : left + new_width]


def _cut_out(
    image: np.ndarray, face: tuple[float, float, float, float], random: np.random.Generator
) -> np.ndarray:
    """A square around the face, as scoring cuts it but for its margin and place."""
    height, width = image.shape[:2]
    left, top, right, bottom = face
    side = random.uniform(1.1, 2.2) * max(right - left, bottom - top)
    side = max(1, min(round(side), height, width))
    shift = random.uniform(-0.05, 0.05, 2) * side
    left = min(max(round((left + right - side) / 2 + shift[0]), 0), width - side)
    top = min(max(round((top + bottom - side) / 2 + shift[1]), 0), height - side)
    return image[top : top + side, left : left + side]


def _resave(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A square picture of another size, out of one or two files, as the ways to a detector have it:
    otherwise sizes and qualities would tell the sources of the pictures apart."""
    for smallest in (96, 112)[: 1 if random.random() < 0.6 else 2]:
        side = round(np.exp(random.uniform(np.log(smallest), np.log(256))))
        filter = int(random.choice(_FILTERS))
        if side < 0.6 * min(image.shape[:2]) and random.random() < 0.7:
            filter = cv2.INTER_AREA
        image = cv2.resize(image, (side, side), interpolation=filter)
        kind = random.random()
        if kind < 0.08:
            image = _blur(image, random)
        elif kind < 0.16:
            image = _sharpen(image, random)
        elif kind < 0.24:
            image = _noise(image, random)
        if random.random() < 0.92:
            image = _save(image, random)
    return image


def _save(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if random.random() < 0.25:
        return recompress(image, ".webp", [cv2.IMWRITE_WEBP_QUALITY, int(random.integers(40, 96))])
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    if random.random() < 0.3:
        sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    quality = int(random.integers(40, 98))
    return recompress(
        image,
        ".jpg",
        [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling],
    )


def _rescale(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _shrink_and_grow(image, random.uniform(0.3, 0.9), random)


def _shrink_and_grow(
    image: np.ndarray, share: float, random: np.random.Generator, growing: tuple = _FILTERS
) -> np.ndarray:
    size = image.shape[0]
    small = max(8, round(size * share))
    down, up = random.choice(_FILTERS), random.choice(growing)
    image = cv2.resize(image, (small, small), interpolation=int(down))
    return cv2.resize(image, (size, size), interpolation=int(up))


def _blur(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigmaX=random.uniform(0.3, 1.5))


def _soften(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if random.random() < 0.5:
        # INTER_AREA would grow pixels to blocks, with sharp edges.
        return _shrink_and_grow(image, random.uniform(0.12, 0.3), random, growing=_FILTERS[1:])
    return cv2.GaussianBlur(image, (0, 0), sigmaX=random.uniform(1.5, 3.5))


def _sharpen(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return sharpen(image, random.uniform(0.5, 2), random.uniform(0.3, 1.5))


def _screenshot(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture as a screen shows it: on another grid, which starts between two pixels."""
    size = image.shape[0]
    shown = max(8, round(size * random.uniform(0.6, 1.8)))
    scale = shown / size
    shift = random.uniform(0, 1, 2) + (scale - 1) / 2
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    filter = cv2.INTER_CUBIC if random.random() < 0.5 else cv2.INTER_LINEAR
    image = cv2.warpAffine(
        image, matrix, (shown, shown), flags=filter, borderMode=cv2.BORDER_REPLICATE
    )
    if random.random() < 0.5:  # the others are kept as PNG
        quality = int(random.integers(60, 96))
        image = recompress(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])
    return resize(image, size, "area")


def _noise(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    noise = random.standard_normal(image.shape, dtype=np.float32) * random.uniform(1, 6)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def _brightness(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    contrast, shift = random.uniform(0.8, 1.25), random.uniform(-30, 30)
    # One table entry for each of the 256 values: contrast around the middle grey, then brightness.
    table = np.clip((np.arange(256) - 127.5) * contrast + 127.5 + shift, 0, 255).round()
    return cv2.LUT(image, table.astype(np.uint8))


def _jpeg(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return recompress(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(30, 101))])


def _webp(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return recompress(image, ".webp", [cv2.IMWRITE_WEBP_QUALITY, int(random.integers(30, 101))])
