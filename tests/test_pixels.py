"""One of each: shrinking, recompressing, bins. Their values are pinned to what the copies gave that
stood in several files before."""

import base64
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from skimage import data

from pipeline.data import cropping
from pipeline.detectors.calibration import equal_width_bins, expected_calibration_error
from pipeline.evaluation import robustness
from pipeline.evaluation.metrics import evaluate
from pipeline.feeding import augmentation
from pipeline.feeding.batches import Batches
from pipeline.photos.pixels import recompress, shrink, shrink_in_steps, shrunk_size
from pipeline.rows.pictures import thumbnail
from pipeline.service import pictures


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:240, 100:401])  # 301 × 240 pixels


def checksum(content) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(content).tobytes()):08x}"


@pytest.mark.parametrize(
    ("longest_side", "expected"), [(100, "38c3a394"), (300, "dae0e65d"), (301, "1f2abc76")]
)
def test_shrinking_gives_the_same_pixels_wherever_it_is_done(face, longest_side, expected):
    small = shrink(face, longest_side)
    assert max(small.shape) == longest_side
    assert small.shape[1::-1] == shrunk_size(301, 240, longest_side)
    assert checksum(small) == checksum(cropping._shrunk(face, longest_side)) == expected


def test_what_is_small_enough_stays_the_same_array_and_no_side_vanishes(face):
    assert shrink(face, 301) is face and shrink(face, 5000) is face
    assert shrunk_size(3000, 1, 100) == (100, 1)
    assert shrink(np.zeros((1, 3000, 3), np.uint8), 100).shape == (1, 100, 3)


@pytest.mark.parametrize("size", [(1500, 2800), (1501, 5003), (3, 5000), (1, 4000), (900, 2399)])
def test_shrinking_in_steps_gives_about_the_same(size):
    picture = cv2.resize(data.astronaut(), size[::-1], interpolation=cv2.INTER_CUBIC)
    once, in_steps = shrink(picture, 600), shrink_in_steps(picture, 600)
    assert np.abs(np.subtract(once.shape, in_steps.shape)).max() <= 1
    same = tuple(slice(min(sides)) for sides in zip(once.shape, in_steps.shape, strict=True))
    assert np.abs(once[same].astype(int) - in_steps[same]).mean() < 2
    if max(size) < 2400:
        np.testing.assert_array_equal(once, in_steps)


def test_pages_and_batches_shrink_as_they_did(face):
    assert checksum(Batches._shrink(SimpleNamespace(_size=50), face)) == "38c3a394"
    jpegs = [np.frombuffer(pictures.jpeg(face, side), np.uint8) for side in (100, 1000)]
    assert [checksum(jpeg) for jpeg in jpegs] == ["3b2a691f", "addb1bf2"]
    picture = thumbnail(face)
    assert (picture["width"], picture["height"]) == (301, 240)
    assert f"{zlib.crc32(base64.b64decode(picture['jpeg'])):08x}" == "0283335d"


def test_recompressing_gives_the_same_pixels_in_training_and_in_the_grid(face):
    jpeg = recompress(face, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 50])
    assert checksum(jpeg) == checksum(robustness.jpeg(face, 50)) == "973d2e36"
    webp = recompress(face, ".webp", [cv2.IMWRITE_WEBP_QUALITY, 30])
    assert checksum(webp) == checksum(robustness.webp(face, 30)) == "ee325c29"
    assert checksum(robustness.social_network(face)) == "f5c25e2d"

    low = SimpleNamespace(integers=lambda *_: 50)
    assert checksum(augmentation._jpeg(face, low)) == "973d2e36"


def test_the_error_of_calibration_is_the_same_by_both_ways_to_count_it():
    random = np.random.default_rng(0)
    probabilities = random.random(200)
    labels = (random.random(200) < probabilities).astype(int)
    ece = pytest.approx(0.09671858079990009, rel=1e-12)
    assert expected_calibration_error(labels, probabilities) == ece
    assert evaluate(labels, probabilities, 0.5)["ece"] == ece
    assert equal_width_bins(np.array([0, 0.0999, 0.1, 0.5, 1.0]), 10).tolist() == [0, 0, 1, 5, 9]
