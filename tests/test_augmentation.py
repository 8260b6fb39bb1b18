"""Augmented pictures are pictures still: same size, same colours, reproducible, yet changed."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models import ARCHITECTURES
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Sample
from pipeline.feeding import augmentation
from pipeline.feeding.augmentation import NO_AUGMENTATION, Augmentation, augment, show_augmentation
from pipeline.photos.images import read_image, resize

PORTRAIT = read_image(Path(__file__).resolve().parent.parent / "samples" / "real_collins.jpg")
ALWAYS = Augmentation(
    flip=1, crop=1, rescale=1, blur=1, noise=1, brightness=1, jpeg=1, webp=1
)  # every usual change, every time
HARSH = ("soften", "sharpen", "screenshot")
EVERYTHING = replace(ALWAYS, **dict.fromkeys(HARSH, 1))
CHANGES = ("flip", "crop", "rescale", "blur", "noise", "brightness", "jpeg", "webp", *HARSH)


def only(change: str) -> Augmentation:
    return replace(NO_AUGMENTATION, **{change: 1})


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def stripes(height: int, width: int) -> np.ndarray:
    """A picture without a symmetry: red grows to the right, green downwards, blue is 100."""
    picture = np.full((height, width, 3), 100, np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)
    picture[..., 1] = np.linspace(0, 255, height)[:, None]
    return picture


@given(
    st.integers(1, 700),
    st.integers(1, 300),
    st.booleans(),
    st.sampled_from([32, 61, 256]),
    st.sampled_from(["area", "nearest"]),
    st.sampled_from([EVERYTHING, ALWAYS, Augmentation(), NO_AUGMENTATION]),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60)
def test_pictures_of_every_shape_become_squares(h, w, turned, size, filter, recipe, seed):
    image = stripes(w, h) if turned else stripes(h, w)
    image.flags.writeable = False  # the cached original must stay as it is
    result = augment(image, size, filter, recipe, rng(seed))
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8
    assert (result == augment(image, size, filter, recipe, rng(seed))).all()


def test_a_single_pixel():
    result = augment(np.full((1, 1, 3), 77, np.uint8), 64, "area", replace(ALWAYS, noise=0), rng(0))
    assert result.std() < 1


def test_the_random_state_alone_decides():
    results = [augment(PORTRAIT, 128, "area", ALWAYS, rng(seed)) for seed in (1, 1, 2)]
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()
    random = rng(1)
    augment(PORTRAIT, 128, "area", ALWAYS, random)
    assert (augment(PORTRAIT, 128, "area", ALWAYS, random) != results[0]).any()


@pytest.mark.parametrize("filter", ["area", "nearest"])
def test_without_augmentation_training_sees_what_scoring_sees(filter):
    result = augment(PORTRAIT, 256, filter, NO_AUGMENTATION, rng(0))
    assert (result == resize(PORTRAIT, 256, filter)).all()


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_changes_the_picture_but_not_what_it_shows(change):
    plain = resize(PORTRAIT, 256, "area").astype(float)
    for seed in range(5):
        result = augment(PORTRAIT, 256, "area", only(change), rng(seed)).astype(float)
        assert np.abs(result - plain).mean() > 0.2
        if change == "soften":  # down to 31 of the 256 pixels
            assert np.corrcoef(result.ravel(), plain.ravel())[0, 1] > 0.85
        elif change not in ("flip", "crop"):  # these move it
            assert np.corrcoef(result.ravel(), plain.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_probability_zero_or_a_half_happens_never_or_half_the_time(change):
    plain = resize(PORTRAIT, 64, "area")
    sometimes = replace(NO_AUGMENTATION, **{change: 0.5})
    random = rng(0)
    changed = [
        (augment(PORTRAIT, 64, "area", sometimes, random) != plain).any() for _ in range(200)
    ]
    assert 0.38 < np.mean(changed) < 0.62


@pytest.mark.parametrize("change", [*CHANGES, None])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_red_stays_red(change, channel):
    image = np.full((90, 120, 3), 40, np.uint8)
    image[..., channel] = 200
    recipe = only(change) if change else ALWAYS
    for seed in range(10):
        means = augment(image, 64, "area", recipe, rng(seed)).mean(axis=(0, 1))
        assert means.argmax() == channel
        assert means[channel] - np.delete(means, channel).max() > 80


def test_flip_mirrors_left_and_right():
    image = stripes(64, 64)
    assert (augment(image, 64, "area", only("flip"), rng(0)) == image[:, ::-1]).all()


def test_crop_keeps_at_least_the_smallest_crop_and_reaches_all_four_corners():
    image = stripes(256, 256).astype(float)
    lefts, tops, rights, bottoms = [], [], [], []
    for seed in range(200):
        result = augment(image.astype(np.uint8), 256, "area", only("crop"), rng(seed)).astype(int)
        lefts.append(result[:, 0, 0].mean())
        rights.append(result[:, -1, 0].mean())
        tops.append(result[0, :, 1].mean())
        bottoms.append(result[-1, :, 1].mean())
    for start, end in ((lefts, rights), (tops, bottoms)):
        kept = (np.array(end) - start) / 255
        assert kept.min() > 0.73
        assert kept.max() > 0.97
        assert min(start) < 5
        assert max(end) > 250


def test_compression_covers_qualities_from_30_to_100(monkeypatch):
    qualities = []

    def record(image, suffix, settings):
        qualities.append(settings[1])
        return image

    monkeypatch.setattr(augmentation, "recompress", record)
    for change in ("jpeg", "webp"):
        qualities.clear()
        random = rng(0)
        for _ in range(2000):
            augment(np.zeros((8, 8, 3), np.uint8), 8, "area", only(change), random)
        assert (min(qualities), max(qualities)) == (30, 100)


def test_the_sheet_shows_eight_pictures_of_a_row_each(tmp_path):
    samples = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.fromarray(stripes(40 + number, 50)).save(path)
        samples.append(Sample(path, FAKE if number % 2 else REAL))
    sheet = tmp_path / "new folder" / "sheet.png"
    architecture = ARCHITECTURES["meso4"]
    show_augmentation(samples, architecture, Augmentation(), 0, sheet)
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.size == (8 * 256, 8 * 256)
        pixels = np.asarray(image)
    # Each row begins with one of the pictures as scoring sees it: four of each class.
    plain = [resize(read_image(sample.path), 256, "area") for sample in samples]
    shown = []
    for row in range(8):
        first = pixels[row * 256 : (row + 1) * 256, :256]
        shown.append(next(i for i, picture in enumerate(plain) if (picture == first).all()))
    assert [samples[index].label for index in shown] == [REAL] * 4 + [FAKE] * 4
    assert len(set(shown)) == 8

    first_bytes = sheet.read_bytes()
    show_augmentation(samples, architecture, Augmentation(), 0, sheet)
    assert sheet.read_bytes() == first_bytes


def test_the_sheet_of_a_small_dataset(tmp_path):
    path = tmp_path / "0.png"
    Image.fromarray(stripes(40, 50)).save(path)
    sheet = tmp_path / "sheet.png"
    samples = [Sample(path, REAL), Sample(path, FAKE)]
    show_augmentation(samples, ARCHITECTURES["meso4"], Augmentation(), 0, sheet)
    with Image.open(sheet) as image:
        assert image.size == (8 * 256, 2 * 256)


def sharpness(image: np.ndarray) -> float:
    return cv2.Laplacian(image, cv2.CV_32F).std()


def test_softened_and_sharpened_pictures_are_what_they_are_called():
    plain = sharpness(resize(PORTRAIT, 256, "area"))
    for seed in range(20):
        soft = augment(PORTRAIT, 256, "area", only("soften"), rng(seed))
        sharp = augment(PORTRAIT, 256, "area", only("sharpen"), rng(seed))
        assert sharpness(soft) < 0.5 * plain < 1.1 * plain < sharpness(sharp)


def test_a_screenshot_stays_in_its_place():
    image = stripes(256, 256)
    for seed in range(20):
        shown = augment(image, 256, "area", only("screenshot"), rng(seed)).astype(int)
        inside = np.s_[4:-4, 4:-4]
        assert np.abs(shown - image)[inside].mean() < 4  # the shift is below two pixels


def test_changes_that_nobody_asked_for_draw_nothing():
    """Else the recipes from before there were any would give other pictures."""
    random = rng(0)
    augment(PORTRAIT, 64, "area", NO_AUGMENTATION, random)
    assert random.random() == rng(0).random(9)[8], "one draw for each of the eight usual changes"


def test_resaving_makes_pictures_of_all_sizes_alike():
    for side in (64, 160, 320, 700):
        image = stripes(side, side)
        for seed in range(20):
            result = augment(image, 224, "area", only("resave"), rng(seed)).astype(float)
            assert result.shape == (224, 224, 3)
            assert np.abs(result - resize(image, 224, "area")).mean() < 25  # still the picture


def test_the_face_is_cut_out_at_margins_that_scoring_may_use():
    image = np.zeros((400, 600, 3), np.uint8)
    image[150:250, 200:300] = 255  # the face
    shares = []
    for seed in range(300):
        result = augment(image, 224, "area", only("margin"), rng(seed), face=(200, 150, 300, 250))
        shares.append(np.sqrt((result > 127).mean()))
    margins = 1 / np.array(shares)
    assert margins.min() == pytest.approx(1.1, abs=0.03)
    assert margins.max() == pytest.approx(2.2, abs=0.06)


def test_the_sheet_shows_faces_cut_out(tmp_path):
    path = tmp_path / "face.png"
    image = np.zeros((400, 600, 3), np.uint8)
    image[150:250, 200:300] = 255
    Image.fromarray(image).save(path)
    samples = [Sample(path, REAL), Sample(path, FAKE)]
    sheet = tmp_path / "sheet.png"
    show_augmentation(
        samples,
        ARCHITECTURES["meso4"],
        only("margin"),
        0,
        sheet,
        face_of=lambda path, image: (200, 150, 300, 250),
    )
    size = ARCHITECTURES["meso4"].input_size
    shown = np.asarray(Image.open(sheet))[:size]
    shares = [(shown[:, n * size : (n + 1) * size] > 127).mean() for n in range(8)]
    assert shares[0] < 0.05 and min(shares[1:]) > 0.15


def test_without_a_face_nothing_is_cut_out():
    image = stripes(300, 400)
    result = augment(image, 224, "area", only("margin"), rng(0), face=None)
    assert (result == resize(image, 224, "area")).all()
