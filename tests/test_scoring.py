"""What a photo's rows say, that they depend on nothing else, and that scoring streams."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from pipeline.detectors.detector import load_detector
from pipeline.photos import faces
from pipeline.photos.images import read_image
from pipeline.photos.inputs import find_photos
from pipeline.photos.photo import Photo
from pipeline.rows.rows import Row
from pipeline.scoring.scoring import Scorer, _parts
from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.tiny_detectors import make_detector

pytestmark = pytest.mark.usefixtures("own_cache")


def score(photos: list[Path | str], **settings) -> dict[str, list[Row]]:
    """The rows of each photo, by its path."""
    rows = Scorer(load_detector(DETECTOR), **settings).score(Photo(str(path)) for path in photos)
    return dict(zip(map(str, photos), rows, strict=True))


def sample_photos() -> list[Path]:
    return [Path(photo.path) for photo in find_photos([str(SAMPLES)])]


def test_rows_of_the_samples():
    detector = load_detector(DETECTOR)
    rows = score(sample_photos())
    assert len(rows) == 11
    for path, of_photo in rows.items():
        width, height = read_image(path).shape[1::-1]
        for number, row in enumerate(of_photo):
            assert (row.path, row.model, row.error) == (path, detector.name, None)
            if row.verdict == "no face":
                continue
            assert row.face == number
            assert 0 <= row.left < row.right <= width
            assert 0 <= row.top < row.bottom <= height
            assert 0.5 <= row.face_score <= 1
            assert 0 <= row.fake_probability <= 1
            assert row.threshold == detector.calibration.threshold
            assert row.verdict == detector.calibration.verdict(row.fake_probability)

    faces = {Path(path).name: len(of_photo) for path, of_photo in rows.items()}
    assert faces == dict.fromkeys(faces, 1) | {"two_people.jpg": 2}
    without = rows[str(SAMPLES / "no_face_coffee.webp")]
    coffee = str(SAMPLES / "no_face_coffee.webp")
    assert without == [Row(path=coffee, verdict="no face", model=detector.name)]
    left, right = sorted(rows[str(SAMPLES / "two_people.jpg")], key=lambda row: row.left)
    assert left.right <= right.left


def test_a_photo_turned_by_exif_is_scored_upright(tmp_path):
    turned = SAMPLES / "real_hopper_rotated.jpg"
    with Image.open(turned) as stored:
        assert stored.size[0] > stored.size[1]  # it lies on its side
    upright = tmp_path / "upright.png"
    Image.fromarray(read_image(turned)).save(upright)
    rows = score([turned, upright])
    [of_turned], [of_upright] = rows.values()
    of_upright.path = of_turned.path
    assert of_turned == of_upright


def test_whole_pictures():
    rows = score(sample_photos(), face_mode="none")
    assert len(rows) == 11
    for path, (row,) in rows.items():
        height, width = read_image(path).shape[:2]
        assert (row.face, row.left, row.top, row.right, row.bottom) == (0, 0, 0, width, height)
        assert row.face_score is None
        assert row.verdict in ("real", "uncertain", "fake")


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_threshold_of_the_users(threshold):
    [row] = score([FACE_SAMPLE], face_mode="none", threshold=threshold)[str(FACE_SAMPLE)]
    assert row.threshold == threshold
    assert (row.verdict == "fake") == (row.fake_probability >= threshold)


@pytest.mark.parametrize("face_mode", ["auto", "none"])
def test_a_score_depends_on_the_picture_alone(face_mode):
    photos = sample_photos()
    scorer = Scorer(load_detector(DETECTOR), face_mode=face_mode)
    alone = [row for photo in photos for row in next(scorer.score([Photo(str(photo))]))]
    expected = {(row.path, row.face): row.fake_probability for row in alone}
    for batch_size, order in [(1, photos), (3, photos[::-1]), (32, photos), (4, photos[3:] * 3)]:
        scorer = Scorer(load_detector(DETECTOR), face_mode=face_mode, batch_size=batch_size)
        rows = [row for rows in scorer.score(Photo(str(path)) for path in order) for row in rows]
        assert [row.path for row in rows if not row.face] == [str(path) for path in order]
        for row in rows:
            assert row.fake_probability == pytest.approx(expected[row.path, row.face], abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (20_000, 2), (5, 4), (3000, 40)])
@pytest.mark.parametrize("face_mode", ["auto", "none"])
def test_pictures_of_odd_shapes_are_scored(tmp_path, size, face_mode):
    path = tmp_path / "odd.png"
    Image.new("RGB", size, (200, 150, 120)).save(path)
    [row] = score([path], face_mode=face_mode)[str(path)]
    assert row.error is None
    if face_mode == "none":
        assert (row.right, row.bottom) == size
    else:
        assert row.verdict == "no face"


def test_what_cannot_be_read_does_not_stop_the_others(tmp_path):
    (tmp_path / "empty.jpg").touch()
    photos = [
        Photo(str(FACE_SAMPLE)),
        Photo(str(tmp_path / "empty.jpg")),
        Photo("nowhere", "There is no such file or folder; check the spelling."),
        Photo("a\0b.jpg"),
        Photo("x" * 5000),
        Photo(str(FACE_SAMPLE)),
    ]
    scorer = Scorer(load_detector(DETECTOR), face_mode="none")
    first, *errors, last = [row for rows in scorer.score(photos) for row in rows]
    assert first == last
    assert first.error is None
    assert [row.path for row in errors] == [photo.path for photo in photos[1:-1]]
    for row, phrase in zip(errors, ("is empty", "no such file", "name", "too long"), strict=True):
        assert row.verdict == "error"
        assert phrase in row.error
        assert row.fake_probability is None
        assert row.face is None


def test_no_photos():
    assert list(Scorer(load_detector(DETECTOR), face_mode="none").score([])) == []


@pytest.mark.parametrize("kind", ["good", "faceless", "broken", "missing"])
def test_photos_are_read_only_a_little_ahead(tmp_path, kind):
    picture = tmp_path / "photo.png"
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(picture)
    if kind == "broken":
        picture.write_bytes(b"")
    number, batch_size = 400, 4
    taken = 0

    def photos() -> Iterator[Photo]:
        nonlocal taken
        for _ in range(number):
            taken += 1
            yield Photo(str(picture), "It is missing." if kind == "missing" else "")

    scorer = Scorer(
        load_detector(DETECTOR),
        face_mode="auto" if kind == "faceless" else "none",
        batch_size=batch_size,
    )
    ahead = []
    for given, rows in enumerate(scorer.score(photos()), start=1):
        assert len(rows) == 1
        ahead.append(taken - given)
    assert len(ahead) == number
    assert max(ahead) <= 2 * (batch_size + os.cpu_count())


@pytest.mark.parametrize("largest", [1, 3, 8])
@pytest.mark.parametrize("number", [0, 1, 5, 8, 21])
def test_batches_have_few_sizes_and_leave_nothing_out(number, largest):
    inputs = list(range(number))
    parts = list(_parts(inputs, largest))
    assert [one for part in parts for one in part] == inputs
    assert {len(part) for part in parts} <= {1, 2, 4, largest}


def test_one_photo_loads_only_what_it_needs():
    code = f"""
import sys
from pipeline.scoring.opening import Network
from pipeline.scoring.scoring_command import score_photos, scoring_parser
meso4 = Network(("meso4",), training="train_meso.py")
args = [{str(SAMPLES / "real_collins.jpg")!r}, "--weights", {str(DETECTOR)!r}]
assert score_photos(scoring_parser("", meso4).parse_args(args), meso4) == 0
print(*sys.modules, sep="\\n", file=sys.stderr)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = set(process.stderr.split())
    assert {"openvino", "cv2", "PIL.JpegImagePlugin", "pipeline.photos.faces"} <= loaded
    others = {"onnx", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "torch", "tensorflow"}
    network = {"http.client", "urllib.request", "ssl", "openvino.tools.ovc", "openvino_telemetry"}
    plugins = {"pillow_heif", "PIL.AvifImagePlugin", "PIL.WebPImagePlugin"}
    of_training = {f"pipeline.{name}" for name in ("audit", "finishing", "precision", "report")}
    others |= {"jinja2", "markdown"}
    assert not loaded & (others | network | plugins | of_training)


def test_threads_may_use_openvino_at_once_from_the_start():
    """Unprepared, OpenVINO 2026.4 hangs in about every second of these races."""
    code = f"""
import os, sys, threading
from pathlib import Path
import openvino as ov
from pipeline.detectors.detector import load_detector
from pipeline.scoring.scoring import Scorer

Scorer(load_detector(Path({str(DETECTOR)!r})), face_mode="none")
sys.setswitchinterval(1e-6)
start = threading.Barrier(4)

def first_use():
    start.wait()
    ov.Type.u8.to_dtype()  # part of every inference

threads = [threading.Thread(target=first_use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("ready")
"""
    for _ in range(5):
        process = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, timeout=60
        )
        assert process.stdout == b"ready\n", process.stderr.decode()


# Networks that compute no number


def test_what_a_network_computes_no_number_for_is_an_error_and_the_others_go_on(tmp_path):
    """A gain so large that bright pictures overflow."""
    detector = load_detector(make_detector(tmp_path / "damaged", "resnet50", gain=3e38, size=8))
    grey, white = tmp_path / "grey.png", tmp_path / "white.png"
    Image.fromarray(np.full((9, 9, 3), 120, np.uint8)).save(grey)
    Image.fromarray(np.full((9, 9, 3), 255, np.uint8)).save(white)
    photos = [Photo(str(path)) for path in (grey, white, grey)]
    rows = list(Scorer(detector, face_mode="none").score(photos))
    assert [row.verdict for [row] in rows] == ["fake", "error", "fake"]
    [[fine], [error], _] = rows
    assert 0 <= fine.fake_probability <= 1
    assert (error.path, error.model, error.fake_probability) == (str(white), "damaged", None)
    assert "damaged computed no number" in error.error


@pytest.mark.parametrize("offset", [np.nan, np.inf, -np.inf])
def test_of_two_networks_one_that_computes_no_number_is_named(tmp_path, offset):
    detectors = [
        load_detector(make_detector(tmp_path / name, "resnet50", offset=value, size=8))
        for name, value in (("whole", 0.0), ("damaged", offset))
    ]
    [[row]] = Scorer(*detectors).score([Photo(str(FACE_SAMPLE))])
    assert (row.verdict, row.fake_probability, row.agreement) == ("error", None, None)
    assert "damaged computed no number" in row.error


def test_a_face_finder_that_computes_no_number_finds_an_error_not_no_face(tmp_path, monkeypatch):
    network = onnx.load(faces._weights_path())
    for initializer in network.graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT:
            broken = onnx.numpy_helper.to_array(initializer) * np.nan
            initializer.CopyFrom(onnx.numpy_helper.from_array(broken, initializer.name))
    onnx.save(network, tmp_path / "centerface.onnx")
    monkeypatch.setattr(faces, "_weights_path", lambda: tmp_path / "centerface.onnx")
    monkeypatch.setattr(faces, "WEIGHTS_SHA256", "0" * 64)  # another place in the cache
    rows = score([FACE_SAMPLE, SAMPLES / "no_face_coffee.webp"])
    assert [row.verdict for of_photo in rows.values() for row in of_photo] == ["error", "error"]
    assert all("computed no number" in row.error for [row] in rows.values())
