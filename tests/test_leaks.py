"""Chance is no leak, however finely the values are cut; and a leak is one, whatever its shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.common.labels import FAKE, REAL
from pipeline.data.audit import LEAK_AUC, audit_dataset
from pipeline.data.dataset import Sample, load_dataset
from pipeline.data.leaks import measure_leaks, share_of_fakes

seeds = st.integers(0, 2**32 - 1)


def half_fake(random: np.random.Generator, count: int) -> np.ndarray:
    return random.permutation(np.repeat([REAL, FAKE], count // 2))


def auc(labels: np.ndarray, values: np.ndarray) -> float | None:
    """What is measured of one property of pictures without files."""
    samples = [Sample(None, int(label)) for label in labels]
    properties = [{"property": value} for value in values.tolist()]
    return measure_leaks(samples, properties)["overall"]["property"]


def numbers_at_random(random: np.random.Generator, count: int) -> np.ndarray:
    return random.normal(size=count)


def sizes_at_random(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(200, 200 + count // 10, size=count)


def formats_at_random(random: np.random.Generator, count: int) -> np.ndarray:
    return random.choice([f"FORMAT{number}" for number in range(count // 5)], size=count)


CHANCE = [(numbers_at_random, 200), (sizes_at_random, 1000), (formats_at_random, 200)]


def name_of(value: object) -> str:
    """The same in all processes that tests run in."""
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("draw", "count"), CHANCE, ids=name_of)
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_chance_is_never_called_a_leak(draw, count, seed):
    random = np.random.default_rng(seed)
    labels, values = half_fake(random, count), draw(random, count)
    # Five standard deviations of the AUC of a score that knows nothing, within each fold
    assert 0.5 <= auc(labels, values) < 0.5 + 5 * np.sqrt((count + 1) / (3 * count**2))
    assert auc(labels, values) < LEAK_AUC


@pytest.mark.parametrize(("draw", "count"), CHANCE, ids=name_of)
def test_chance_is_one_half_on_average(draw, count):
    found = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        labels, values = half_fake(random, count), draw(random, count)
        found.append(auc(labels, values))
    # An AUC below one half counts as one half, which lifts the mean by at most 0.02
    assert 0.5 <= np.mean(found) < 0.53


@settings(max_examples=30, deadline=None)
@given(seed=seeds, count=st.sampled_from([200, 500, 1000]))
def test_a_leak_that_neither_rises_nor_falls_is_found(seed, count):
    random = np.random.default_rng(seed)
    labels = half_fake(random, count)
    about = np.where(labels == FAKE, 0, random.choice([-2, 2], count))  # real ones on both sides
    values = about + np.where(labels == FAKE, 0.3, 0.6) * random.normal(size=count)
    assert auc(labels, values) > 0.95


@settings(max_examples=30, deadline=None)
@given(seed=seeds, swapped=st.floats(0, 0.1))
def test_a_leak_of_few_values_is_found(seed, swapped):
    random = np.random.default_rng(seed)
    labels = half_fake(random, 400)
    honest = random.uniform(size=400) >= swapped
    values = np.where((labels == FAKE) == honest, "PNG", "JPEG")
    assert auc(labels, values) > 0.8


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_no_picture_counts_for_its_own_score(seed):
    random = np.random.default_rng(seed)
    labels, values = half_fake(random, 60), np.arange(60)
    values = random.permutation(values).astype(object)
    values[:3] = None
    shares = share_of_fakes(labels, values)
    assert np.isnan(shares[:3]).all()
    assert ((shares[3:] >= 0) & (shares[3:] <= 1)).all()
    assert (shares[3:] == share_of_fakes(labels, values)[3:]).all(), "it is seeded"
    alone = np.array([f"only {number}" for number in range(60)], dtype=object)
    assert len(set(share_of_fakes(labels, alone).round(6))) <= 5, "one score a fold, no more"


def test_one_picture_of_a_class_tells_nothing():
    assert auc(np.array([REAL, REAL, REAL, FAKE]), np.array([1, 1, 1, 2])) is None
    assert auc(np.array([REAL, REAL]), np.array(["a", "b"])) is None
    assert auc(np.array([REAL, REAL, FAKE, FAKE]), np.array([1, 1, 2, 2])) == 1
    assert measure_leaks([], []) == {"overall": {}, "by_generator": {}}


def test_pictures_of_random_sizes_bring_no_warning(tmp_path):
    random = np.random.default_rng(5)
    for split in ("train", "validate"):
        for label in ("real", "fake"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(50):
                width, height = random.integers(40, 200, size=2)
                grain = random.integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(grain).save(folder / f"{number}.jpg", quality=90)
    audit = audit_dataset(load_dataset(tmp_path), workers=2, progress=False)
    assert max(auc for auc in audit["leaks"]["overall"].values() if auc is not None) < 0.62
    assert audit["warnings"] == []
