"""Forgeries of real faces: where the mask lies, what changes, the same again from the same seed."""

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
from pipeline.feeding import self_blending
from pipeline.feeding.augmentation import NO_AUGMENTATION, show_augmentation
from pipeline.feeding.self_blending import (
    BLENDING_RATIOS,
    SelfBlender,
    alter,
    draw_region,
    find_landmarks,
    self_blend,
)
from pipeline.photos.faces import FaceFinder
from pipeline.photos.images import read_image, resize
from tests.shared import SHARED, needs_shared
from tests.tiny_dataset import portrait

PORTRAIT = read_image(Path(__file__).resolve().parent.parent / "samples" / "real_collins.jpg")
FRONTAL = np.float32([(0.38, 0.48), (0.62, 0.48), (0.5, 0.61), (0.4, 0.72), (0.6, 0.72)])
points = st.floats(-0.5, 1.5, width=32)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


@given(
    st.one_of(st.none(), st.lists(st.tuples(points, points), min_size=5, max_size=5)),
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_pictures_of_every_shape_with_landmarks_anywhere(landmarks, height, width, seed):
    landmarks = None if landmarks is None else np.float32(landmarks)
    image = resize(PORTRAIT, 400, "area")[:height, :width].copy()
    image.flags.writeable = False  # the cached original must stay as it is
    forged = self_blend(image, landmarks, 256, rng(seed))
    assert forged.shape == image.shape and forged.dtype == np.uint8
    assert (forged == self_blend(image, landmarks, 256, rng(seed))).all()


@pytest.mark.parametrize("landmarks", [None, FRONTAL])
def test_regions_lie_on_the_face(landmarks):
    areas = []
    for seed in range(200):
        mask = draw_region(landmarks, rng(seed))
        assert mask.dtype == np.float32 and set(np.unique(mask)) == {0, 1}
        rows, columns = np.nonzero(mask) / np.float32(len(mask))
        assert 0.35 < columns.mean() < 0.65 and 0.3 < rows.mean() < 0.85
        assert columns.min() > 0.1 and columns.max() < 0.9
        areas.append(mask.mean())
    assert 0.02 <= min(areas) < 0.25 and 0.2 < max(areas) < 0.6


def test_regions_follow_the_landmarks():
    for seed in range(50):
        moved = draw_region(FRONTAL * 0.5, rng(seed))  # a face in the upper left quarter
        rows, columns = np.nonzero(moved) / np.float32(len(moved))
        assert columns.max() < 0.5 and rows.max() < 0.6


def without_frills(monkeypatch, ratio: float) -> None:
    monkeypatch.setattr(self_blending, "BLENDING_RATIOS", (ratio,))


def test_at_ratio_zero_only_the_background_may_differ(monkeypatch):
    """Then the forgery is the target: the picture itself, or its altered copy."""
    without_frills(monkeypatch, 0)
    same = [
        np.array_equal(self_blend(PORTRAIT, FRONTAL, 256, rng(seed)), PORTRAIT)
        for seed in range(60)
    ]
    assert 0.3 < np.mean(same) < 0.7


def test_either_the_face_or_its_surroundings_are_untouched(monkeypatch):
    without_frills(monkeypatch, 1)
    image = resize(PORTRAIT, 256, "area")

    def stay(source, mask, random):
        return source, cv2.resize(mask, (256, 256))

    monkeypatch.setattr(self_blending, "_move", stay)
    untouched = []
    for seed in range(40):
        forged = self_blend(image, None, 256, rng(seed))
        changed = np.abs(forged.astype(int) - image).max(axis=2)
        face, corner = changed[135:147, 122:134], changed[:20, :20]
        assert face.any() != corner.any()
        untouched.append(corner.any())
    assert 10 < sum(untouched) < 30


def test_a_forgery_still_shows_the_same_person():
    plain = PORTRAIT.astype(float).ravel()
    changes = []
    for seed in range(30):
        forged = self_blend(PORTRAIT, FRONTAL, 256, rng(seed)).astype(float).ravel()
        assert np.corrcoef(forged, plain)[0, 1] > 0.85
        changes.append(np.abs(forged - plain).mean())
    assert min(changes) > 0.05 and len(set(changes)) == 30


def test_alterations_are_seen_by_the_network_however_large_the_picture():
    """What shrinking to the network's input would undo alters nothing."""
    large = cv2.resize(PORTRAIT, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    for seed in range(10):
        seen = resize(alter(large, 256, rng(seed)), 256, "area").astype(float)
        assert np.abs(seen - resize(large, 256, "area")).mean() > 0.3


def test_the_ratios_are_those_of_the_paper():
    assert np.mean(np.equal(BLENDING_RATIOS, 1)) == 0.5


def test_each_face_is_found_once_and_no_face_is_an_ellipse(tmp_path, monkeypatch):
    blender, looked = SelfBlender(256), []

    def find(image, finder):
        looked.append(image)
        return find_landmarks(image, finder)

    monkeypatch.setattr(self_blending, "find_landmarks", find)
    face, wall = portrait(rng(0)), np.full((200, 200, 3), 120, np.uint8)
    for seed in range(4):
        blender.forge(tmp_path / "face.png", face, rng(seed))
        forged = blender.forge(tmp_path / "wall.png", wall, rng(seed))
        assert (forged != wall).any()
    assert len(looked) == 2
    assert blender._landmarks[tmp_path / "wall.png"] is None
    assert blender._landmarks[tmp_path / "face.png"].shape == (5, 2)


def test_landmarks_are_shares_of_the_picture(finder):
    face = portrait(rng(0))
    landmarks = find_landmarks(face, finder)
    assert landmarks.dtype == np.float32 and ((landmarks > 0) & (landmarks < 1)).all()
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    twice = cv2.resize(face, None, fx=2, fy=1.5)
    np.testing.assert_allclose(find_landmarks(twice, finder), landmarks, atol=0.05)


def test_a_small_face_in_a_picture_is_not_what_it_shows(finder):
    picture = np.full((800, 800, 3), 90, np.uint8)
    picture[100:250, 100:250] = cv2.resize(portrait(rng(0)), (150, 150))
    assert finder.find(picture) and find_landmarks(picture, finder) is None


@needs_shared
@pytest.mark.parametrize("source", ["ffhq", "dfdc", "ciplab"])
def test_faces_are_found_on_tight_crops(finder, source):
    paths = sorted((SHARED / "faces" / "train" / "real").glob(f"{source}_*"))[::50][:12]
    found = [find_landmarks(read_image(path), finder) is not None for path in paths]
    assert sum(found) >= len(found) - 1


def test_the_sheet_shows_forgeries_below_both_classes(tmp_path):
    samples = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.fromarray(portrait(rng(number))).save(path)
        samples.append(Sample(path, FAKE if number % 2 else REAL))
    sheet = tmp_path / "sheet.png"
    architecture = ARCHITECTURES["meso4"]
    blender = SelfBlender(256)
    show_augmentation(samples, architecture, NO_AUGMENTATION, 0, sheet, blender)
    rows = read_image(sheet).reshape(12, 256, 8, 256, 3).swapaxes(1, 2)
    real = [resize(read_image(s.path), 256, "area") for s in samples if s.label == REAL]
    for row in rows[8:]:
        assert any((row[0] == picture).all() for picture in real)
        assert all((version != row[0]).any() for version in row[1:])
    show_augmentation(
        [s for s in samples if s.label == REAL], architecture, NO_AUGMENTATION, 0, sheet, blender
    )
    assert read_image(sheet).shape == (8 * 256, 8 * 256, 3)
