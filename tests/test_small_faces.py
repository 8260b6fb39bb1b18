"""Faces of 64 pixels and more are found in pictures of any shape and size, each once."""

import itertools

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.photos import face_windows
from pipeline.photos.face_windows import INKLING_SCALE, SURE_SCALE, Window, tiles, windows_around
from pipeline.photos.faces import Face, FaceFinder
from pipeline.photos.images import read_image
from tests.shared import SHARED, needs_shared
from tests.test_faces import iou, paste_face

NATURAL = ("validate/real/ffhq*", "validate/fake/stylegan*", "test/*/*/lfw*", "test/*/*/t2i*")


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


def scenery(height: int, width: int) -> np.ndarray:
    """A photo without a face: a rocket on its pad, repeated as often as there is room."""
    rocket = cv2.resize(skimage.data.rocket(), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    times = -(-height // rocket.shape[0]), -(-width // rocket.shape[1])
    return np.ascontiguousarray(np.tile(rocket, (*times, 1))[:height, :width])


def assert_found_once_each(found: list[Face], known: list[tuple]) -> None:
    """Each face that is known is found once, and nothing else."""
    hits = [sum(iou(face, box) > 0.5 for face in found) for box in known]
    assert hits == [1] * len(known)
    assert all(any(iou(face, box) > 0.2 for box in known) for face in found)


@needs_shared
def test_the_panorama(finder):
    faces = finder.find(read_image(SHARED / "failing" / "10_panorama_12000x1500.webp"))
    assert len(faces) == 5
    assert all(150 < face.side < 260 for face in faces)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1500, 12000), (20000, 1080), (1000, 30000)])
@pytest.mark.parametrize("width", [56, 140, 300])
def test_faces_all_along_a_long_picture(finder, size, width):
    """So many, in steps that fit no tile, that some lie on every border between tiles."""
    picture = scenery(*size)
    room = min(size) - 3 * width - 37
    known = []
    for along in range(20, max(size) - 3 * width, max(int(3.3 * width), max(size) // 40)):
        across = 37 + along * 7 % room
        place = (along, across) if size[0] < size[1] else (across, along)
        known.append(paste_face(picture, *place, width))
    assert_found_once_each(finder.find(picture), known)


@pytest.mark.parametrize("size", [(3000, 4000), (6000, 8000)])
def test_small_faces_in_a_group_photo(finder, size):
    photo = scenery(*size)
    known = [
        paste_face(photo, 90 + 523 * x, 80 + 577 * y, 50)  # 68 pixels high
        for y in range(5)
        for x in range(7)
    ]
    assert_found_once_each(finder.find(photo), known)


@needs_shared
def test_small_real_and_fake_faces_in_a_group_photo(finder):
    photo = scenery(3000, 4000)
    known = []
    for kind in NATURAL:
        for path in sorted((SHARED / "faces").glob(f"{kind}.jpg"))[:400:40]:
            image = read_image(path)
            [face, *others] = finder.find(image) or [None]
            if face is None or others:
                continue
            scale = 64 / face.side
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            row, column = divmod(len(known), 8)
            left, top = 60 + 480 * column, 60 + 560 * row
            photo[top : top + len(small), left : left + small.shape[1]] = small
            box = np.multiply((face.left, face.top, face.right, face.bottom), scale)
            known.append(tuple(box + (left, top, left, top)))
    assert len(known) >= 30
    found = finder.find(photo)  # some show a bystander, too
    hits = [sum(iou(face, box) > 0.5 for face in found) for box in known]
    assert max(hits) == 1
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize("side", [1500, 2600, 4000])
def test_what_a_look_at_the_whole_finds_keeps_its_box(finder, side):
    photo = scenery(side * 3 // 4, side)
    for number, width in enumerate((side // 8, side // 12, side // 20, 60)):
        paste_face(photo, number * side // 4, number * side // 12, width)
    seen = finder._find_large(photo)
    before = {tuple(box) for box in seen.boxes[seen.scores > 0.5]}
    after = {(face.left, face.top, face.right, face.bottom) for face in finder.find(photo)}
    assert before and before <= after


@pytest.mark.parametrize("picture", ["coffee", "chelsea", "rocket", "brick", "coins", "page"])
def test_no_face_in_large_pictures_without_one(finder, picture):
    image = getattr(skimage.data, picture)()
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    scale = 4000 / max(image.shape[:2])
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    assert finder.find(large) == []
    noise = np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), np.uint8)
    assert finder.find(noise) == []


def test_a_portrait_is_not_looked_at_all_over_again(finder, monkeypatch):
    """The closer looks at a photo of 12 megapixels see less than the look at the whole does."""
    astronaut = skimage.data.astronaut()[:384]
    photo = cv2.resize(astronaut, (4000, 3000), interpolation=cv2.INTER_CUBIC)
    looked_at = []

    def noted(boxes, height, width, scale):
        windows = windows_around(boxes, height, width, scale)
        for left, top, right, bottom in windows:
            looked_at.append((right - left) * (bottom - top) * scale**2)
        return windows

    monkeypatch.setattr("pipeline.photos.faces.windows_around", noted)
    assert len(finder.find(photo)) == 1
    assert sum(looked_at) < 960 * 720


# Geometry


lengths = st.integers(1, 60_000)


@given(lengths, lengths, st.sampled_from([0.01, 0.05, INKLING_SCALE]))
def test_tiles_cover_a_picture_and_overlap(height, width, scale):
    found = tiles(height, width, scale)
    assert len({(right - left, bottom - top) for left, top, right, bottom in found}) == 1
    for low, high, length in ((0, 2, width), (1, 3, height)):
        parts = sorted({(tile[low], tile[high]) for tile in found})
        assert parts[0][0] == 0 and parts[-1][1] == length
        assert all((end - start) * scale <= face_windows._TILE + 1 for start, end in parts)
        for (_, end), (start, _) in itertools.pairwise(parts):
            assert (end - start) * scale >= face_windows._OVERLAP - 1


@settings(deadline=None)
@given(
    st.integers(20, 9000),
    st.integers(20, 9000),
    st.lists(st.tuples(*[st.floats(0, 1)] * 2, st.floats(38, 160)), max_size=60),
    st.sampled_from([SURE_SCALE, 1.0]),
)
def test_each_guess_is_in_a_window_with_its_surroundings(height, width, guesses, scale):
    boxes = np.array(
        [[x * width - s / 2, y * height - s / 2, x * width + s / 2, y * height + s / 2]
         for x, y, s in guesses]
    ).reshape(-1, 4)  # fmt: skip
    windows = windows_around(boxes, height, width, scale)
    assert len(windows) <= len(boxes)
    for left, top, right, bottom in windows:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    side = face_windows._WINDOW / scale - 2
    for box, (_, _, size) in zip(boxes, guesses, strict=True):
        margin = (min(1.6 * size, side) - size) / 2
        wanted = np.clip(box + [-margin, -margin, margin, margin], 0, [width, height] * 2)
        assert any(
            (wanted[:2] >= window[:2]).all() and (wanted[2:] <= window[2:]).all()
            for window in np.array(windows) + [-1, -1, 1, 1]
        )


def test_what_a_window_cuts():
    window = Window(100, 0, 200, 100)
    boxes = np.array(
        [[100, 20, 140, 60], [120, 0, 160, 40], [150, 20, 199, 60], [120, 20, 160, 60]], float
    )
    assert window.cuts(boxes, 100, 300).tolist() == [True, False, True, False]
    assert window.cuts(boxes, 100, 200).tolist() == [True, False, False, False]
