"""What networks are fed: in which order, by which process, and the same again after a kill."""

import numpy as np
import pytest
from PIL import Image

from models import ARCHITECTURES
from pipeline.augmentation import NO_AUGMENTATION, Augmentation
from pipeline.batches import Batches, PictureCache
from pipeline.dataset import Dataset, Sample, load_dataset
from pipeline.images import read_image, resize
from tests.tiny_dataset import make_dataset, portrait

MESO4 = ARCHITECTURES["meso4"]


def make_batches(dataset: Dataset, batch_size=4, augmentation=NO_AUGMENTATION, **arguments):
    return Batches(
        MESO4,
        augmentation,
        "area",
        arguments.pop("seed", 0),
        batch_size,
        dataset.train,
        dataset.validate,
        workers=2,
        **{"cache_bytes": 1 << 30} | arguments,
    )


def as_scored(sample: Sample) -> np.ndarray:
    return resize(read_image(sample.path), MESO4.input_size, "area")


def seen_in(batches: Batches, dataset: Dataset, steps: range) -> list[list[int]]:
    """The indices of the training pictures in each step."""
    known = {as_scored(sample).tobytes(): i for i, sample in enumerate(dataset.train)}
    assert len(known) == len(dataset.train)
    seen = []
    for step in steps:
        pixels, labels = batches.training(step)
        assert pixels.dtype == np.uint8 and labels.dtype == np.float32
        assert pixels.shape[1:] == (256, 256, 3) and labels.shape == (len(pixels), 1)
        indices = [known[picture.tobytes()] for picture in pixels]
        assert [[dataset.train[index].label] for index in indices] == labels.tolist()
        seen.append(indices)
    return seen


def test_each_epoch_has_each_picture_at_most_once_and_in_an_order_of_its_own(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=10, validate=2))
    batches = make_batches(dataset)
    assert batches.steps == 2
    seen = seen_in(batches, dataset, range(6))
    assert [len(indices) for indices in seen] == [4] * 6
    epochs = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    other = seen_in(make_batches(dataset, seed=1), dataset, range(2))
    assert other[0] + other[1] != epochs[0]


def test_a_step_is_the_same_whichever_came_before_it(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=8, validate=2))
    batches = make_batches(dataset, augmentation=Augmentation())
    through = [batches.training(step)[0] for step in range(6)]
    alone = make_batches(dataset, augmentation=Augmentation(), cache_bytes=0).training(5)[0]
    np.testing.assert_array_equal(alone, through[5])
    assert not any(np.array_equal(alone, other) for other in through[:5])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_step_without_overlap(tmp_path, world):
    dataset = load_dataset(make_dataset(tmp_path, train=13, validate=2))
    parts = [make_batches(dataset, 2, rank=rank, world=world) for rank in range(world)]
    alone = make_batches(dataset, 2 * world)
    steps = range(2 * alone.steps)
    assert {part.steps for part in parts} == {alone.steps} == {13 // (2 * world)}
    expected = seen_in(alone, dataset, steps)
    shares = [seen_in(part, dataset, steps) for part in parts]
    for together, *share in zip(expected, *shares, strict=True):
        assert [index for part in share for index in part] == together
        assert len(set(together)) == 2 * world
    for part in parts:  # each validates with all pictures, and comes to the same figures
        assert len(part.validation(0)[0]) == 2


def test_fewer_pictures_than_a_batch_are_one_batch(tmp_path):
    dataset = load_dataset(make_dataset(tmp_path, train=6, validate=2))
    batches = make_batches(dataset, batch_size=16)
    assert batches.steps == 1
    assert [len(batches.training(step)[0]) for step in range(3)] == [6, 6, 6]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_validation_sees_what_scoring_sees(tmp_path, cache_bytes):
    dataset = load_dataset(make_dataset(tmp_path, train=4, validate=6))
    large = np.random.default_rng(1).integers(0, 256, (700, 1301, 3), np.uint8)
    Image.fromarray(large).save(dataset.validate[0].path.with_suffix(".png"))
    dataset = load_dataset(tmp_path)
    assert len(dataset.validate) == 7
    batches = make_batches(dataset, cache_bytes=cache_bytes)
    expected = np.stack([as_scored(sample) for sample in dataset.validate])
    assert batches.validation_steps == 2
    for _ in range(2):
        parts = [batches.validation(number) for number in range(2)]
        pixels, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        np.testing.assert_array_equal(pixels, expected)
        assert labels[:, 0].tolist() == [sample.label for sample in dataset.validate]


def test_a_full_cache_still_gives_the_right_pictures(tmp_path):
    random = np.random.default_rng(0)
    expected = {}
    for number in range(6):
        picture = portrait(random)
        path = tmp_path / f"{number}.png"
        Image.fromarray(picture).save(path)
        expected[path] = picture
    size = picture.nbytes
    decoded = []

    def reduce(image):
        decoded.append(image)
        return image

    cache = PictureCache(reduce, max_bytes=3 * size + size // 2)
    for _ in range(3):
        for path, picture in expected.items():
            np.testing.assert_array_equal(cache[path], picture)
    assert len(decoded) == 6 + 2 * 3, "three pictures fit and the other three are read each time"
