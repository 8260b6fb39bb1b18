"""What a network is fed while it trains, for any framework.

Every picture is a function of the seed, the epoch and its index alone, so that a training that was
killed goes on with exactly the pictures that it would have seen.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from models import Architecture
from pipeline.augmentation import Augmentation, augment
from pipeline.dataset import Sample
from pipeline.images import read_image, resize


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


class Batches:
    """The training and validation batches of one run: (pixels, labels).

    pixels (N, size, size, 3) uint8, not yet scaled; labels (N, 1) float32, 0 real, 1 fake.
    `batch_size` counts the pictures of one step in this process; where `world` processes train
    together, each takes another part of the same order, the one of its `rank`.
    """

    def __init__(
        self,
        architecture: Architecture,
        augmentation: Augmentation,
        resize_filter: str,
        seed: int,
        batch_size: int,
        train: list[Sample],
        validate: list[Sample],
        workers: int,
        cache_bytes: int | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self.batch_size = min(batch_size, max(1, len(train) // world))
        self.steps = len(train) // (self.batch_size * world)  # an epoch; its last part is dropped
        self.validation_steps = -(-len(validate) // self.batch_size)
        self.train, self.validate = train, validate
        self._size, self._filter = architecture.input_size, resize_filter
        self._augmentation, self._seed = augmentation, seed
        self._rank, self._world = rank, world
        cache_bytes = _a_third_of_the_memory() if cache_bytes is None else cache_bytes
        self._pictures = PictureCache(self._shrink, cache_bytes * 3 // 4)
        self._inputs = PictureCache(self._resize, cache_bytes // 4)
        self._pool = ThreadPoolExecutor(workers)

    def training(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of a step, counted from 0 through all epochs."""
        epoch, position = divmod(int(step), self.steps)
        first = (position * self._world + self._rank) * self.batch_size
        return self.augmented(epoch, self.order(epoch)[first : first + self.batch_size])

    def validation(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch of validation pictures, in their order and as scoring would see them."""
        first = int(number) * self.batch_size
        return self.as_scored(range(first, min(first + self.batch_size, len(self.validate))))

    @lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
    def order(self, epoch: int) -> np.ndarray:
        """The training pictures' indices in the order of an epoch, the same in all processes."""
        return np.random.default_rng((self._seed, epoch)).permutation(len(self.train))

    def augmented(self, epoch: int, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Training pictures, changed at random as in this epoch, and their labels."""

        def picture(index: int) -> np.ndarray:
            random = np.random.default_rng((self._seed, epoch, int(index)))
            return augment(
                self._pictures[self.train[index].path],
                self._size,
                self._filter,
                self._augmentation,
                random,
            )

        return self._stack(picture, indices, self.train)

    def as_scored(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Validation pictures and their labels."""
        return self._stack(
            lambda index: self._inputs[self.validate[index].path], indices, self.validate
        )

    def _stack(self, picture: Callable, indices: Sequence[int], samples: list[Sample]):
        labels = np.array([[samples[index].label] for index in indices], np.float32)
        return np.stack(list(self._pool.map(picture, indices))), labels

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        # Training crops and resizes further: more than twice the input would be kept for nothing.
        scale = 2 * self._size / max(image.shape[:2])
        if scale >= 1:
            return image
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def _resize(self, image: np.ndarray) -> np.ndarray:
        return resize(image, self._size, self._filter)


def _a_third_of_the_memory() -> int:
    """In bytes, shared among the processes that train on this machine; of 8 GiB where the system
    does not tell."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        memory = 8 << 30
    return memory // 3 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
