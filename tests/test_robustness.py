"""The degradations do what their names say, to every picture alike, and the same each time."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.evaluation import robustness
from pipeline.evaluation.robustness import CLEAN, GRID, fingerprint, jpeg, noise, social_network
from pipeline.photos.images import read_image
from tests.conftest import FACE_SAMPLE


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return read_image(FACE_SAMPLE)


def sharpness(image: np.ndarray) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(before.astype(float) - after).mean())


def test_the_grid_is_the_promised_one():
    assert list(GRID) == [
        CLEAN,
        *("JPEG 95", "JPEG 75", "JPEG 50", "JPEG 30"),
        *("WebP 75", "WebP 30"),
        *("resize 1/2", "resize 1/4"),
        *("blur σ 1", "blur σ 2", "blur σ 3"),
        *("noise σ 2", "noise σ 5", "noise σ 10"),
        *("screenshot", "social network"),
    ]


@settings(deadline=None, max_examples=15)
@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)),
    )
)
def test_any_picture_keeps_its_shape_and_comes_out_the_same_twice(image):
    before = image.copy()
    for name, degrade in GRID.items():
        degraded = degrade(image)
        assert degraded.shape == image.shape, name
        assert degraded.dtype == np.uint8
        assert np.array_equal(degraded, degrade(image)), name
    assert np.array_equal(image, before)


def test_clean_is_clean_and_nothing_else_is(face):
    for name, degrade in GRID.items():
        assert (change(face, degrade(face)) == 0) == (name == CLEAN), name


@pytest.mark.parametrize(
    "rising",
    [
        ("JPEG 95", "JPEG 75", "JPEG 50", "JPEG 30"),
        ("WebP 75", "WebP 30"),
        ("resize 1/2", "resize 1/4"),
        ("blur σ 1", "blur σ 2", "blur σ 3"),
        ("noise σ 2", "noise σ 5", "noise σ 10"),
    ],
)
def test_stronger_degradations_change_more(face, rising):
    changes = [change(face, GRID[name](face)) for name in rising]
    assert changes == sorted(changes)
    assert changes[0] < 0.9 * changes[-1]


def test_what_softens_and_what_does_not(face):
    for name in ("resize 1/2", "resize 1/4", "blur σ 1", "screenshot"):
        assert sharpness(GRID[name](face)) < 0.8 * sharpness(face), name
    for name in ("noise σ 5", "noise σ 10"):
        assert sharpness(GRID[name](face)) > sharpness(face), name


def test_blocks_of_jpeg_are_where_they_belong(face):
    """Strong compression leaves steps between blocks of 8 pixels."""
    grey = jpeg(face, 10)[..., 1].astype(float)
    steps = np.abs(np.diff(grey, axis=1)).mean(axis=0)
    at_borders = steps[7::8].mean()
    assert at_borders > 1.5 * np.delete(steps, np.s_[7::8]).mean()


def test_noise_has_its_std_and_no_bias():
    grey = np.full((200, 200, 3), 128, np.uint8)
    for std in (2, 5, 10):
        grain = noise(grey, std).astype(float) - 128
        assert grain.std() == pytest.approx(std, rel=0.02)
        assert abs(grain.mean()) < 0.1


def test_each_picture_has_its_own_noise():
    grey = np.full((50, 50, 3), 128, np.uint8)
    first, second = noise(grey, 5) - 128.0, noise(grey + 1, 5) - 129.0
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


def test_a_social_network_shrinks_large_pictures_only(face):
    large = cv2.resize(face, (640, 640), interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(face, (120, 120), interpolation=cv2.INTER_AREA)
    assert sharpness(social_network(large)) < sharpness(large)
    assert sharpness(social_network(small)) > 0.8 * sharpness(small)


def test_the_fingerprint_tells_a_changed_degradation(monkeypatch):
    names = {fingerprint(name) for name in GRID}
    assert len(names) == len(GRID)
    assert names == {fingerprint(name) for name in GRID}
    before = fingerprint("JPEG 50")
    monkeypatch.setitem(robustness.GRID, "JPEG 50", lambda image: jpeg(image, 51))
    assert fingerprint("JPEG 50") != before
    assert fingerprint("JPEG 50").startswith("JPEG 50 ")
