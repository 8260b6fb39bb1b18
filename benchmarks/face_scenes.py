"""Photos with faces in known places, made of face pictures pasted into large canvases.

Portraits, groups, crowds, panoramas and screenshots, the same for the same pictures and seed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data

from benchmarks.measuring import ROOT
from pipeline.photos.faces import FaceFinder
from pipeline.photos.images import read_image

SMALLEST, LARGEST_OF_GROUP = 64, 400  # pixels of the larger side of a face's box
# (width, height), and how often
SHAPES = {
    (4000, 3000): 6,
    (3000, 4000): 2,
    (6000, 4000): 1,
    (2000, 1500): 2,
    (1280, 960): 2,
    (1920, 1080): 2,
    (1080, 2340): 1,
    (12000, 1500): 1,
    (1200, 9000): 1,
}
# Faces of a scene, least and most, their least and largest side, and how often.
KINDS = {
    "portrait": (1, 1, SMALLEST, 2000, 4),
    "group": (2, 12, SMALLEST, LARGEST_OF_GROUP, 4),
    "crowd": (15, 40, SMALLEST, 130, 1),
}


class Scene(NamedTuple):
    """RGB pixels (H, W, 3) uint8, and the boxes (N, 4) of the faces that were pasted."""

    name: str
    pixels: np.ndarray
    boxes: np.ndarray


def make_scenes(pictures: list[Path], count: int, finder: FaceFinder, seed=0) -> Iterator[Scene]:
    """`count` scenes; `finder` tells where the face of each small picture is."""
    random = np.random.default_rng(seed)
    backgrounds = _backgrounds(pictures, random)
    for number in range(count):
        shape = _chosen(SHAPES, list(SHAPES.values()), random)
        kind = _chosen(KINDS, [each[-1] for each in KINDS.values()], random)
        pixels = _canvas(backgrounds[random.integers(len(backgrounds))], *shape, random)
        if random.random() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        boxes = _paste_faces(pixels, KINDS[kind], pictures, finder, random)
        yield Scene(f"{number:04} {kind} {shape[0]}x{shape[1]}", pixels, np.array(boxes))


def _paste_faces(pixels, kind, pictures, finder, random) -> list[np.ndarray]:
    least, most, smallest, largest, _ = kind
    height, width = pixels.shape[:2]
    largest = min(largest, 0.6 * min(height, width))
    boxes, taken = [], np.zeros((height // 16 + 1, width // 16 + 1), bool)
    for _ in range(random.integers(least, most + 1)):
        image = read_image(pictures[random.integers(len(pictures))])
        faces = finder.find(image)
        if not faces:
            continue
        scale = np.exp(random.uniform(*np.log([smallest, largest]))) / faces[0].side
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=method)
        if random.random() < 0.3:
            light = random.uniform(0.4, 1.2)
            small = np.clip(small * light, 0, 255).astype(np.uint8)
        h, w = small.shape[:2]
        if h >= height or w >= width:
            continue
        for _ in range(20):
            top, left = int(random.integers(height - h)), int(random.integers(width - w))
            place = np.s_[top // 16 : (top + h) // 16 + 1, left // 16 : (left + w) // 16 + 1]
            if not taken[place].any():
                break
        else:
            continue
        taken[place] = True
        faded = _faded(small, faces[0], scale, random)
        part = pixels[top : top + h, left : left + w]
        part[:] = small if faded is None else part * (1 - faded) + small * faded
        box = np.array([faces[0].left, faces[0].top, faces[0].right, faces[0].bottom])
        boxes.append(box * scale + (left, top, left, top))
    return boxes


def _faded(small, face, scale, random) -> np.ndarray | None:
    """How much of a picture shows, (h, w, 1): an oval about the head, or all (None)."""
    if random.random() < 0.5:
        return None
    y, x = np.mgrid[: small.shape[0], : small.shape[1]].astype(np.float32) / scale
    centre = (face.left + face.right) / 2, (face.top + face.bottom) / 2
    distance = np.hypot(
        (x - centre[0]) / (face.right - face.left), (y - centre[1]) / (face.bottom - face.top)
    )
    return np.clip((1.0 - distance) / 0.2, 0, 1)[..., None]


def _backgrounds(pictures: list[Path], random: np.random.Generator) -> list[np.ndarray]:
    """Pictures without a face: objects, a street, textures, and corners of the face pictures."""
    scenes = [read_image(ROOT / "samples" / "no_face_coffee.webp"), skimage.data.rocket()]
    scenes += [skimage.data.chelsea(), skimage.data.hubble_deep_field()]
    scenes += [cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) for picture in (skimage.data.page(),)]
    corners = np.zeros((12 * 40, 16 * 40, 3), np.uint8)
    for row in range(12):
        for column in range(16):
            image = read_image(pictures[random.integers(len(pictures))])
            right = image.shape[1] - 40 if random.random() < 0.5 else 0
            corners[row * 40 :, column * 40 :][:40, :40] = image[:40, right : right + 40]
    return [*scenes, corners]


def _canvas(background, width, height, random) -> np.ndarray:
    """A background as large as that, repeated in mirror images where it would be long, and noise"""
    factor = min(width, height) / min(background.shape[:2])
    large = cv2.resize(background, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    missing = max(height - large.shape[0], 0), max(width - large.shape[1], 0)
    large = np.pad(large, ((0, missing[0]), (0, missing[1]), (0, 0)), "symmetric")
    large = np.ascontiguousarray(large[:height, :width])
    noise = random.integers(0, 9, (500, width), np.uint8)
    for top in range(0, height, len(noise)):
        part = large[top : top + len(noise)]
        cv2.add(part, cv2.merge([noise[: len(part)]] * 3), dst=part)
    return large


def _chosen(names, weights: list[int], random: np.random.Generator):
    names = list(names)
    return names[random.choice(len(names), p=np.divide(weights, sum(weights)))]
