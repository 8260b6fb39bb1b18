"""Verdicts that must hold when a face is saved again, made smaller, mirrored or cut a little."""

import json
import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detectors.calibration import Calibration, logit, sigmoid
from pipeline.detectors.detector import load_detector
from pipeline.detectors.detector_values import JUST_ABOVE_1
from pipeline.detectors.together import paired
from pipeline.evaluation.robustness import jpeg
from pipeline.photos.images import read_image
from pipeline.photos.photo import Photo, Picture
from pipeline.rows.files import open_output, read_rows
from pipeline.rows.rows import FIELDS, STABILITY_FIELDS, Row
from pipeline.rows.table import TableWriter
from pipeline.scoring.cluster import Parts, score_unit
from pipeline.scoring.scoring import Scorer
from pipeline.scoring.scoring_command import _is_single_photo
from pipeline.scoring.stability import (
    AVERAGED,
    CHANGES,
    LARGEST_SIDE,
    NEAR,
    UNASKED,
    Stability,
    changed,
    is_near,
    kept,
    stability_of,
)
from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.tiny_detectors import make_detector

MESO4 = load_detector(DETECTOR)
BANDS = Calibration(1.0, 0.8, 0.3, "by hand")
probabilities = st.floats(0, 1)
TO_A_FILE = ("--output", "rows.jsonl", "--threshold", "0.07")

pytestmark = pytest.mark.usefixtures("own_cache")


def of(pixels: np.ndarray, name: str = "a.png") -> Photo:
    return Photo(name, read=lambda: Picture(pixels))


def score(scorer: Scorer, *pictures: np.ndarray, stability: bool = False) -> list[Row]:
    return [row for rows in scorer.score(map(of, pictures), stability) for row in rows]


@given(st.integers(1, 300), st.integers(1, 300))
def test_changed_faces_stay_pictures(height, width):
    face = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3)
    copies = dict(zip(CHANGES, changed(face.astype(np.uint8)), strict=True))
    assert all(copy.dtype == np.uint8 and copy.size and copy.ndim == 3 for copy in copies.values())
    assert set(AVERAGED) < set(CHANGES)
    assert len(CHANGES) == 5  # with the face itself six looks


def test_each_change_is_what_its_name_says():
    face = read_image(FACE_SAMPLE)
    copies = dict(zip(CHANGES, changed(face), strict=True))
    assert np.array_equal(copies["JPEG 75"], jpeg(face, 75))
    assert np.array_equal(copies["JPEG 50"], jpeg(face, 50))
    assert np.array_equal(copies["mirrored"], face[:, ::-1])
    assert np.array_equal(copies["shifted"], face[4:, 4:])  # of 256 pixels
    small = cv2.resize(face, (128, 128), interpolation=cv2.INTER_AREA)
    again = cv2.resize(copies["half size"], (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(again.astype(int) - small).mean() < 2  # hardly more is in it


def test_a_kept_face_is_small_and_holds_no_photo():
    photo = np.zeros((3000, 4000, 3), np.uint8)
    for face in (photo, photo[100:2500, 200:2600], photo[:300, :300]):
        one = kept(face)
        assert one.base is None and one.nbytes <= LARGEST_SIDE**2 * 3
    assert kept(photo[:300, :200]).shape == (300, 200, 3)


@pytest.mark.parametrize("limit", [BANDS.threshold, BANDS.uncertain_from])
def test_near_is_a_distance_in_calibrated_logits(limit):
    for off, near in ((0, True), (NEAR - 0.01, True), (NEAR + 0.01, False), (40, False)):
        for sign in (-1, 1):
            only = Calibration(1.0, limit, limit, "by hand")
            assert is_near(float(sigmoid(logit(limit) + sign * off)), only) is near
    assert not is_near(math.nan, BANDS)
    assert not is_near(0.5, Calibration(1.0, JUST_ABOVE_1, 0.0, "none is called fake"))


def test_probabilities_and_logits_are_each_other_s_inverse():
    values = np.array([-700.0, -3, 0, 1e-9, 5, 30])
    assert logit(sigmoid(values)) == pytest.approx(values, rel=1e-2, abs=1e-6)
    assert logit([0, 1]).tolist() == [-math.inf, math.inf]
    assert np.isnan(logit(JUST_ABOVE_1))


@given(probabilities, st.lists(probabilities, min_size=5, max_size=5))
def test_what_is_said_of_a_face(own, copies):
    found = stability_of(own, copies, BANDS)
    verdict, others = (
        BANDS.verdict(own),
        dict(zip(CHANGES, map(BANDS.verdict, copies), strict=True)),
    )
    assert found.share == pytest.approx(sum(v == verdict for v in others.values()) / 5)
    assert (found.low, found.high) == (min(own, *copies), max(own, *copies))
    three = np.clip([own, *copies[3:]], 1e-15, 1 - 1e-15)  # with the mirrored and the shifted one
    mean = BANDS.verdict(float(sigmoid(np.log(three / (1 - three)).mean())))
    assert bool(found.reason) == (verdict != "uncertain" and mean != verdict)
    if found.reason:
        assert found.reason.startswith(f"{verdict} as it is, but not on average")


def test_saving_again_is_reported_and_decides_nothing():
    found = stability_of(0.9, [0.1, 0.1, 0.1, 0.9, 0.9], BANDS)
    assert found == Stability(pytest.approx(0.4), 0.1, 0.9, None)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """A detector that looks at how bright a picture is; and a real face with a bright rim at the
    left, which it calls fake only as long as nobody cuts the rim off."""
    face = read_image(FACE_SAMPLE)
    face[:, :8] = 255
    folder = make_detector(tmp_path_factory.mktemp("one") / "bright", "vit", 20.0, face_mode="none")
    scorer = Scorer(load_detector(folder))
    own, *copies = (row.fake_probability for row in score(scorer, face, *changed(face)))
    mean = sigmoid(np.mean(logit([own, *copies[3:]])))
    assert copies[4] < mean < min(own, *copies[:4])
    return load_detector(folder), face, (mean + own) / 2, [own, *copies]


def test_a_verdict_that_does_not_hold_becomes_uncertain(fragile):
    detector, face, threshold, all_of_it = fragile
    scorer = Scorer(detector, threshold=threshold)
    [before] = score(scorer, face)
    [row] = score(scorer, face, stability=True)
    assert before.verdict == "fake"
    assert [getattr(before, name) for name in STABILITY_FIELDS] == [*UNASKED]
    assert row.verdict == "uncertain"
    expected = "fake as it is, but not on average with its mirrored and shifted copies"
    assert row.reason == expected
    assert 0 < row.stability < 1
    assert row.fake_probability == before.fake_probability
    assert row.fake_probability_low == pytest.approx(min(all_of_it), abs=1e-6)
    assert row.fake_probability_high == pytest.approx(max(all_of_it), abs=1e-6)
    same = [name for name in FIELDS if name not in ("verdict", *STABILITY_FIELDS)]
    assert row.as_dict(same) == before.as_dict(same)


def test_one_that_holds_stays_and_one_far_away_is_not_looked_at_again(fragile):
    detector, face, _, all_of_it = fragile
    low = min(all_of_it)
    [row] = score(Scorer(detector, threshold=low * 0.9), face, stability=True)
    assert (row.verdict, row.stability, row.reason) == ("fake", 1.0, None)
    far = float(sigmoid(logit(all_of_it[0]) - NEAR - 1))
    [row] = score(Scorer(detector, threshold=far), face, stability=True)
    assert (row.verdict, row.stability) == ("fake", None)


def test_faces_of_a_batch_keep_their_own_copies(fragile):
    detector, face, threshold, _ = fragile
    plain, dark = read_image(FACE_SAMPLE), np.zeros((64, 64, 3), np.uint8)
    scorer = Scorer(detector, threshold=threshold)
    pictures = [plain, face, dark, face[:, ::-1].copy(), plain]
    together = score(scorer, *pictures, stability=True)
    for picture, row in zip(pictures, together, strict=True):
        [alone] = score(scorer, picture, stability=True)
        assert alone.as_dict(STABILITY_FIELDS) == pytest.approx(row.as_dict(STABILITY_FIELDS))
        assert alone.verdict == row.verdict


def test_what_cannot_be_computed_of_a_copy_shows():
    assert math.isnan(stability_of(0.9, [0.9, math.nan, 0.9, 0.9, 0.9], BANDS).low)


@pytest.mark.parametrize("photo", ["two_people.jpg", "real_cameraman.png"])
def test_faces_of_a_photo_are_changed_as_they_were_cut_out(photo):
    image = read_image(SAMPLES / photo)
    for row in score(Scorer(MESO4), image, stability=True):
        assert row.stability is not None  # meso4 is sure of none of these
        assert row.fake_probability_low <= row.fake_probability <= row.fake_probability_high


def test_two_networks_and_a_pair():
    other = load_detector(REPOSITORY / "weights" / "mesoinception4")
    face = read_image(FACE_SAMPLE)
    both = score(Scorer(MESO4, other, face_mode="none"), face, stability=True)
    assert [row.model for row in both] == ["meso4", "mesoinception4"]
    for row, detector in zip(both, (MESO4, other), strict=True):
        [alone] = score(Scorer(detector, face_mode="none"), face, stability=True)
        assert row.as_dict(STABILITY_FIELDS) == alone.as_dict(STABILITY_FIELDS)
    pair = paired(MESO4, other, Calibration(1.0, 0.2, 0.1, "by hand"))
    [row] = score(Scorer(pair, face_mode="none"), face, stability=True)
    assert row.stability is not None
    [own, *_] = score(Scorer(pair, face_mode="none"), face, *changed(face))
    assert row.fake_probability == own.fake_probability


def test_a_single_photo_is_one_file_that_is_no_video(tmp_path):
    photo, video = tmp_path / "a.jpg", tmp_path / "a.MP4"
    photo.touch()
    video.touch()
    assert _is_single_photo([str(photo)])
    others = [tmp_path, video, tmp_path / "none.jpg", tmp_path / "*.jpg", "-", "x" * 5000, "\0"]
    assert not any(_is_single_photo([str(path)]) for path in others)
    assert not _is_single_photo([str(photo), str(photo)])


@pytest.fixture
def stabilities(infer, tmp_path):
    """Whether each face was looked at again, of a run at a threshold that is near all of them."""

    def stabilities(*arguments) -> list[bool]:
        done = infer(*arguments, *TO_A_FILE)
        assert done.returncode == 0, done.stderr.decode()
        lines = (tmp_path / "rows.jsonl").read_text().splitlines()
        return [json.loads(line)["stability"] is not None for line in lines]

    return stabilities


def test_commands_ask_for_it_where_one_photo_is_given(stabilities, tmp_path):
    assert stabilities(FACE_SAMPLE) == [True]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / FACE_SAMPLE.name).write_bytes(FACE_SAMPLE.read_bytes())
    assert stabilities(tmp_path / "photos") == [False]


def test_rows_with_and_without_it_are_not_mixed(infer, stabilities, tmp_path):
    assert stabilities(FACE_SAMPLE) == [True]
    done = infer(FACE_SAMPLE, *TO_A_FILE, "--continue", "--no-stability")
    assert done.returncode == 2
    assert "scored with --stability and this run has --no-stability" in done.stderr.decode()
    (tmp_path / ".rows.jsonl.run.json").unlink()  # then the rows still tell
    assert infer(FACE_SAMPLE, *TO_A_FILE, "--continue", "--no-stability").returncode == 2


def test_a_note_of_an_earlier_version_says_nothing_of_it(tmp_path):
    path = tmp_path / "rows.csv"
    settings = Scorer(MESO4).settings()
    with open_output(path, ["meso4"], settings=settings) as writer:
        writer.write([Row(path="a.jpg", verdict="no face", model="meso4")])
    note = path.with_name(".rows.csv.run.json")
    noted = json.loads(note.read_text())
    assert noted["models"]["meso4"].pop("stability") is False
    note.write_text(json.dumps(noted))
    open_output(path, ["meso4"], True, settings=settings).close()


def test_a_cluster_can_ask_for_it(tmp_path):
    scorer, parts = Scorer(MESO4, face_mode="none", threshold=0.07), Parts(str(tmp_path))
    [row] = score_unit([str(FACE_SAMPLE)], scorer, parts, FIELDS, stability=True)
    assert row.stability is not None
    [row] = score_unit([str(SAMPLES / "real_collins.jpg")], scorer, parts, FIELDS)
    assert row.stability is None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".html"])
def test_all_formats_and_the_table_hold_it(tmp_path, suffix, capsys):
    reason = "fake as it is, but not on average"
    row = Row(
        path="a.jpg",
        face=0,
        fake_probability=0.9,
        verdict="uncertain",
        model="meso4",
        stability=0.8,
        fake_probability_low=0.25,
        fake_probability_high=0.95,
        reason=reason,
    )
    path = tmp_path / f"rows{suffix}"
    with open_output(path, ["meso4"]) as writer:
        writer.write([row])
    [back] = read_rows(path)
    assert back == row.as_dict(FIELDS)
    assert suffix != ".html" or f"{reason}; 25.0% to 95.0%" in path.read_text(encoding="utf-8")
    with open_output(None, ["meso4"]) as table:
        assert isinstance(table, TableWriter)
        table.write([row])
        row.reason = None
        table.write([row])
    shown = capsys.readouterr().out
    assert f"a.jpg ({reason}; 25.0% to 95.0%)" in shown
    assert "a.jpg (80% of its changed copies get the same verdict; 25.0% to 95.0%)" in shown
