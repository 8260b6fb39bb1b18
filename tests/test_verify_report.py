"""A record that holds is said to hold, and each way in which it does not is named."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.rows.record import Record, read_record
from pipeline.scoring.verification import other_version, unknown_columns, verify
from tests.conftest import SAMPLES
from tests.test_record import PHOTOS, score_into
from tests.tiny_detectors import make_detector

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def bright(tmp_path) -> Path:
    return make_detector(tmp_path / "bright", "meso4", 9, -4, 64)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in PHOTOS:
        shutil.copy(SAMPLES / name, folder)
    return folder


@pytest.fixture
def record_path(bright, photos, tmp_path) -> Path:
    path = tmp_path / "report.json"
    score_into(path, bright, photos)
    return path


@pytest.fixture
def record(record_path) -> Record:
    return read_record(record_path)


def changed(record_path: Path, change) -> Record:
    """The record after a change to what it holds."""
    content = json.loads(record_path.read_bytes())
    change(content)
    record_path.write_text(json.dumps(content))
    return read_record(record_path)


def one_byte_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def test_what_is_the_same_is_said_to_be(record, bright, photos):
    found = verify(record, [str(photos)], [bright])
    assert (found.photos, found.problems, found.unchecked, found.difference) == (3, [], 0, 0)
    assert str(found).startswith("3 photos: the same files and the same rows")
    assert other_version(record) == "" and unknown_columns(record) == []


def test_photos_may_be_moved_and_renamed(record, bright, photos, tmp_path):
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    for number, path in enumerate(sorted(photos.iterdir())):
        path.rename(elsewhere / f"{number}{path.suffix}")
    assert verify(record, [str(tmp_path / "else")], [bright]).problems == []


def test_a_photo_that_is_missing(record, bright, photos):
    (photos / PHOTOS[0]).unlink()
    [problem] = verify(record, [str(photos)], [bright]).problems
    assert PHOTOS[0] in problem and "is missing" in problem


def test_a_photo_with_one_byte_changed(record, bright, photos):
    path = photos / PHOTOS[0]
    one_byte_changed(path)
    [problem] = verify(record, [str(photos)], [bright]).problems
    assert "was changed" in problem and sha256_of(path) in problem and PHOTOS[0] in problem


def test_a_photo_that_has_taken_the_name_of_another(record, bright, photos):
    shutil.copy(photos / PHOTOS[2], photos / PHOTOS[0])
    found = verify(record, [str(photos)], [bright])
    assert len(found.problems) == 1 and PHOTOS[0] in found.problems[0]


def test_a_detector_with_one_byte_changed(record, bright, photos):
    one_byte_changed(bright / "model.onnx")
    with pytest.raises(UserError, match=r"model\.onnx is not the file .* SHA-256"):
        verify(record, [str(photos)], [bright])


def test_another_detector_of_the_same_name(record, bright, photos):
    graph = sha256_of(bright / "model.onnx")
    make_detector(bright, "meso4", 8, -4, 64)
    with pytest.raises(UserError, match=f"another detector .* in the record it is {graph}"):
        verify(record, [str(photos)], [bright])
    other = make_detector(bright.with_name("other"), "meso4", 8, -4, 64)
    with pytest.raises(UserError, match="There is no detector bright"):
        verify(record, [str(photos)], [other])
    with pytest.raises(UserError, match=r"There is no detector bright .* --weights"):
        verify(record, [str(photos)])


def test_a_detector_that_was_calibrated_anew(record, bright, photos):
    path = bright / "detector.json"
    description = json.loads(path.read_text())
    description["calibration"]["threshold"] = 0.6
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"another threshold and version: its detector\.json"):
        verify(record, [str(photos)], [bright])


def test_another_version(record_path):
    def change(content):
        content["program"] |= {"code_sha256": "0" * 64, "code_revision": "abc"}
        content["program"]["libraries"]["numpy"] = "1.0"

    sentence = other_version(changed(record_path, change))
    assert "another version" in sentence and "revision abc" in sentence
    assert "numpy 1.0 there" in sentence


def test_rows_that_were_changed_in_the_record(record_path, bright, photos):
    def change(content):
        by_name = {Path(photo["path"]).name: photo["rows"] for photo in content["photos"]}
        by_name[PHOTOS[0]][0]["verdict"] = "uncertain"
        by_name[PHOTOS[2]].pop()

    found = verify(changed(record_path, change), [str(photos)], [bright])
    assert len(found.problems) == 2
    said = " ".join(found.problems)
    assert "in row 0, verdict is" in said and "2 rows, not 1" in said


@pytest.mark.parametrize(("moved", "holds"), [(0.009, True), (0.011, False)])
def test_how_far_a_probability_may_move(record_path, bright, photos, moved, holds):
    def change(content):
        for photo in content["photos"]:
            for row in photo["rows"]:
                if row["fake_probability"] is not None:
                    row["fake_probability"] += moved if row["fake_probability"] < 0.5 else -moved

    found = verify(changed(record_path, change), [str(photos)], [bright])
    assert (not found.problems) == holds
    assert found.difference == pytest.approx(moved)


def test_columns_of_a_newer_version_are_named_and_left_out(record_path, bright, photos):
    def change(content):
        content["columns"].append("mood")
        for photo in content["photos"]:
            for row in photo["rows"]:
                row["mood"] = "good"

    record = changed(record_path, change)
    assert unknown_columns(record) == ["mood"]
    assert verify(record, [str(photos)], [bright]).problems == []


def test_options_of_a_newer_version_are_refused(record_path, bright, photos):
    for options in (
        {"face_mode": None, "threshold": None, "mood": 1},
        {"face_mode": "up", "threshold": None},
        {"face_mode": None, "threshold": "high"},
        {"face_mode": None, "threshold": 2},
        {},
    ):
        record = changed(record_path, lambda content, o=options: content.update(options=o))
        with pytest.raises(UserError, match="cannot score with the options"):
            verify(record, [str(photos)], [bright])


def test_what_could_not_be_read_then_is_not_checked(bright, photos, tmp_path):
    score_into(tmp_path / "two.json", bright, photos / PHOTOS[0], tmp_path / "gone.jpg")
    found = verify(read_record(tmp_path / "two.json"), [str(photos)], [bright])
    assert (found.problems, found.unchecked) == ([], 1)
    assert str(found).startswith("1 photo: the same") and "1 without a SHA-256" in str(found)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no JSON"),
        (b"[]", "lacks `format`"),
        (b'{"format": 1}', "lacks `format` or `photos`"),
        (b'{"format": 1, "photos": []}', "lacks 'columns'"),
        (b'{"format": 2, "photos": []}', "format of this record is 2"),
        (b"\xff\xfe\x00", "no JSON"),
    ],
)
def test_malformed_records_are_refused(tmp_path, content, what):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=what):
        read_record(path)


anything = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
anything |= st.sampled_from([[], {}])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_records_of_anyone_s_making_are_read_or_refused(data, record_path, bright, photos):
    """Whatever stands in the place of something: a UserError at most."""
    content = json.loads(record_path.read_bytes())
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inside = place[key]
        if isinstance(inside, dict | list) and inside and data.draw(st.booleans()):
            place = inside
            continue
        place[key] = data.draw(anything)
        break
    path = record_path.with_name("changed.json")
    path.write_text(json.dumps(content))
    try:
        record = read_record(path)
        other_version(record)
        verify(record, [], [bright])
    except UserError:
        pass


# The command


def test_the_command(infer, record_path, bright, photos):
    command = [record_path, photos, "--weights", bright]
    done = infer(*command, script="verify_report.py")
    assert done.returncode == 0, done.stderr.decode()
    assert sha256_of(record_path).encode() in done.stdout.splitlines()[0]
    one_byte_changed(photos / PHOTOS[0])
    done = infer(*command, script="verify_report.py")
    assert done.returncode == 1 and b"was changed" in done.stdout
    one_byte_changed(bright / "model.onnx")
    done = infer(*command, script="verify_report.py")
    assert done.returncode == 2 and b"is not the file" in done.stderr
    assert b"Traceback" not in done.stderr
