"""A dataset of a few dozen pictures, made in a moment and the same on every machine.

One portrait, cropped and lit a little differently each time, so that training takes seconds and
every validation AUC can be repeated anywhere.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

FACE = (slice(0, 240), slice(100, 340))  # of scikit-image's portrait of Eileen Collins
SIDE = 192


def make_dataset(
    folder: Path, train: int = 32, validate: int = 32, strength: float = 1.0, names=None
) -> Path:
    """Write `train` and `validate` pictures, half of them fake, and return `folder`.

    Fakes are smoothed over the middle of the face: at strength 1 any network sees it, at 0 they
    are no different from the real ones. `names` are of the two splits' folders.
    """
    random = np.random.default_rng(0)
    for split, count in zip(names or ("train", "validate"), (train, validate), strict=True):
        for number in range(count):
            is_fake = number % 2
            target = folder / split / ("real", "fake")[is_fake] / f"{number:03}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture = portrait(random)
            if is_fake:
                picture = _smooth(picture, strength)
            Image.fromarray(picture).save(target, quality=90)
    return folder


def portrait(random: np.random.Generator) -> np.ndarray:
    """A face, (192, 192, 3) uint8, each time with another crop, side and light."""
    face = data.astronaut()[FACE]
    side = int(random.integers(190, 235))
    top, left = random.integers(0, 240 - side, 2)
    face = cv2.resize(face[top : top + side, left : left + side], (SIDE, SIDE))
    if random.random() < 0.5:
        face = cv2.flip(face, 1)
    light = random.uniform(0.8, 1.2, 3)
    noise = random.normal(0, 4, face.shape)
    return np.clip(face * light + noise, 0, 255).astype(np.uint8)


def _smooth(picture: np.ndarray, strength: float) -> np.ndarray:
    middle = np.s_[40:150, 40:150]
    picture[middle] = cv2.addWeighted(
        cv2.GaussianBlur(picture[middle], (0, 0), 4), strength, picture[middle], 1 - strength, 0
    )
    return picture
