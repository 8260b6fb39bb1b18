"""What a network is fed while it trains, for any framework.

Every picture is a function of the seed, the epoch and its number alone, so that a training that was
killed goes on with exactly the pictures that it would have seen. Pictures that are mixed are one of
their batch, too.
"""

import os
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from models import Architecture
from pipeline.common.machine import ROOT, usable_memory
from pipeline.data.dataset import Dataset
from pipeline.feeding.augmentation import augment
from pipeline.feeding.engine import Recipe
from pipeline.feeding.face_places import FacePlaces
from pipeline.feeding.sampling import Epochs
from pipeline.feeding.self_blending import SelfBlender
from pipeline.feeding.teacher import Teacher
from pipeline.photos.images import read_image, resize
from pipeline.photos.pixels import shrink


class PictureCache:
    """Decoded pictures as uint8 arrays, kept in memory up to `max_bytes`; any thread may ask.

    `reduce` is applied to each before it is kept. What no longer fits is decoded each time.
    """

    def __init__(self, reduce: Callable[[np.ndarray], np.ndarray], max_bytes: int):
        self._reduce = reduce
        self._free = max_bytes
        self._pictures: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getitem__(self, path: Path) -> np.ndarray:
        """The picture, (height, width, 3) uint8. Raises ImageError if it cannot be read."""
        picture = self._pictures.get(path)
        if picture is None:
            picture = self._reduce(read_image(path))
            with self._lock:
                if path not in self._pictures and picture.nbytes <= self._free:
                    self._free -= picture.nbytes
                    self._pictures[path] = picture
        return picture


@dataclass(frozen=True)
class Share:
    """Which part of every step is this process's: that of its `rank` (from 0) among `world_size`
    processes; it feeds so many `devices`."""

    rank: int = 0
    world_size: int = 1
    devices: int = 1


class Batches:
    """The training and validation batches of one run: (pixels, labels).

    Of the recipe count `augmentation`, `resize_filter`, `seed`, `batch_size` and the following.

    pixels (N, size, size, 3) uint8, not yet scaled; labels (N, 1) float32, 0 real, 1 fake, in
    training moved towards the middle by `label_smoothing` (0…1; 0.1 makes them 0.05 and 0.95).
    With `mixup` above 0, each training picture is mixed with the next one of its batch, and so are
    the labels, by a share from a Beta(mixup, mixup) distribution (Zhang et al., "mixup: Beyond
    Empirical Risk Minimization", ICLR 2018). With `cutmix` above 0, the next one takes a rectangle
    of it instead, whose part of the area is one minus a share from Beta(cutmix, cutmix) before what
    lies outside is cut off, and the labels are mixed by the areas (Yun et al., "CutMix:
    Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019).
    Only one of the two can be. Before that, a `teacher` gives its opinion (see teacher.py). For
    `self_blended` and `balance` see sampling.Epochs. Where `alike` is "group", pictures of one
    group are changed by the same random numbers. Where there is a `resolution`, `size` is that one,
    to which all pictures are shrunk last.

    The attribute `batch_size` counts the pictures of one step in this process. Where several train
    together, each takes another part of the same order, its `share`. `workers` is how many threads
    prepare pictures; up to `cache_bytes` (a third of the memory, if None) keep them decoded.
    """

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        dataset: Dataset,
        workers: int,
        share: Share = Share(),
        cache_bytes: int | None = None,
    ):
        self.epochs = Epochs(dataset.train, recipe.self_blended, recipe.balance, recipe.seed)
        fitting = max(1, len(self.epochs) // share.world_size)
        self.batch_size = min(recipe.batch_size * share.devices, fitting)
        # Of an epoch; its last part is dropped.
        self.steps = len(self.epochs) // (self.batch_size * share.world_size)
        self.validate = dataset.validate
        self.validation_steps = -(-len(self.validate) // self.batch_size)
        self._size, self._recipe, self._share = architecture.input_size, recipe, share
        self._mixing = _mixing(recipe)
        self._blender = SelfBlender(self._size) if recipe.self_blended else None
        self._faces = FacePlaces() if recipe.augmentation.margin else None
        cache_bytes = a_third_of_the_memory() if cache_bytes is None else cache_bytes
        self._pictures = PictureCache(self._shrink, cache_bytes * 3 // 4)
        self._inputs = PictureCache(self._resize, cache_bytes // 4)
        self._teacher = Teacher(Path(recipe.teacher), recipe.precision) if recipe.teacher else None
        self._pool = ThreadPoolExecutor(workers)

    def training(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of a step, counted from 0 through all epochs."""
        epoch, position = divmod(int(step), self.steps)
        first = (position * self._share.world_size + self._share.rank) * self.batch_size
        return self.augmented(epoch, self.order(epoch)[first : first + self.batch_size])

    def validation(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch of validation pictures, in their order and as scoring would see them."""
        first = int(number) * self.batch_size
        return self.as_scored(range(first, min(first + self.batch_size, len(self.validate))))

    @lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
    def order(self, epoch: int) -> np.ndarray:
        """The numbers of an epoch's training pictures, in their order, the same in all processes;
        each is an index into `dataset.train`, as long as no picture is a forgery or comes twice."""
        return self.epochs.order(epoch)

    def augmented(self, epoch: int, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Training pictures, changed at random as in this epoch, and their labels."""
        samples = [self.epochs.pictures[self.epochs.index(number)] for number in numbers]
        pixels = np.stack(list(self._pool.map(self._augmented, [epoch] * len(samples), numbers)))
        labels = np.array([[sample.label] for sample in samples], np.float32)
        labels += self._recipe.label_smoothing * (0.5 - labels)
        if self._teacher:
            labels = self._teacher(pixels, labels)
        if self._mixing:
            pixels, labels = self._mixed(epoch, numbers, pixels, labels)
        return self._at_resolution(pixels), labels

    def as_scored(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Validation pictures and their labels."""
        samples = [self.validate[index] for index in indices]
        pixels = self._pool.map(lambda sample: self._inputs[sample.path], samples)
        labels = np.array([[sample.label] for sample in samples], np.float32)
        return self._at_resolution(np.stack(list(pixels))), labels

    def _at_resolution(self, pixels: np.ndarray) -> np.ndarray:
        size = self._recipe.resolution
        return np.stack([resize(picture, size, "area") for picture in pixels]) if size else pixels

    def _augmented(self, epoch: int, number: int) -> np.ndarray:
        index = self.epochs.index(number)
        sample = self.epochs.pictures[index]
        path, key = sample.path, (int(number),)
        if self._recipe.alike == "group" and sample.group:
            times = int(number) // len(self.epochs.pictures)
            key = (times, zlib.crc32(sample.group.encode()))
        random = np.random.default_rng((self._recipe.seed, epoch, *key))
        picture = self._pictures[path]
        face = self._faces(path, picture) if self._faces else None
        if self._blender and index >= self.epochs.first_forgery:
            picture = self._blender.forge(path, picture, random)
        elif self._blender:
            picture = self._blender.alter(picture, random)
        recipe = self._recipe
        return augment(picture, self._size, recipe.resize_filter, recipe.augmentation, random, face)

    def _mixed(
        self, epoch: int, numbers: Sequence[int], pixels: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        mix, alpha = self._mixing
        # The 1 makes it another sequence than that of the picture.
        sources = (np.random.default_rng((self._recipe.seed, epoch, int(n), 1)) for n in numbers)
        pairs = zip(pixels, np.roll(pixels, -1, 0), sources, strict=True)
        mixed, shares = zip(*(mix(*pair, alpha) for pair in pairs), strict=True)
        shares = np.array(shares, np.float32)[:, None]
        return np.stack(mixed), shares * labels + (1 - shares) * np.roll(labels, -1, 0)

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        # Training crops and resizes further: more than twice the input would be kept for nothing.
        return shrink(image, 2 * self._size)

    def _resize(self, image: np.ndarray) -> np.ndarray:
        return resize(image, self._size, self._recipe.resize_filter)


def _mixing(recipe: Recipe) -> tuple[Callable, float] | None:
    """How to mix pictures, and the parameter of the distribution of shares; None: not at all."""
    assert not (recipe.mixup and recipe.cutmix)
    if recipe.mixup:
        return _blended, recipe.mixup
    return (_pasted, recipe.cutmix) if recipe.cutmix else None


# Two ways to mix a picture with another one, both (size, size, 3) uint8: the mixed picture, and the
# share of the first (0…1).


def _blended(
    picture: np.ndarray, other: np.ndarray, random: np.random.Generator, alpha: float
) -> tuple[np.ndarray, float]:
    share = float(np.float32(random.beta(alpha, alpha)))
    return cv2.addWeighted(picture, share, other, 1 - share, 0), share


def _pasted(
    picture: np.ndarray, other: np.ndarray, random: np.random.Generator, alpha: float
) -> tuple[np.ndarray, float]:
    size = len(picture)
    half = size * np.sqrt(1 - random.beta(alpha, alpha)) / 2
    centre = random.uniform(0, size, 2)
    top, left = np.rint(np.maximum(centre - half, 0)).astype(int)
    bottom, right = np.rint(np.minimum(centre + half, size)).astype(int)
    mixed = picture.copy()
    mixed[top:bottom, left:right] = other[top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / size**2


def a_third_of_the_memory(root: Path = ROOT) -> int:
    """Of what this process may use, in bytes, shared among those that train on this machine; `root`
    is as in machine.py."""
    return usable_memory(root) // 3 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
