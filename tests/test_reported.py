"""Wrong verdicts are collected once, as they were scored, where tests and trainings take them."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.data.dataset import load_samples
from pipeline.detectors.detector import load_detector
from pipeline.photos.images import read_image, resize
from pipeline.photos.inputs import find_photos
from pipeline.photos.photo import Photo
from pipeline.rows.rows import FIELDS, Row
from pipeline.scoring.reported import REPORTS, collect, margin_of, read_photo, wrong_rows
from pipeline.scoring.scoring import Scorer
from tests.conftest import REPOSITORY, SAMPLES
from tests.tiny_detectors import make_detector

TWO_PEOPLE = SAMPLES / "two_people.jpg"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A detector that sees more about a face than is usual, and calls whatever it sees fake."""
    folder = tmp_path_factory.mktemp("weights") / "wide"
    return make_detector(folder, "meso4", 0, 3, 64, margin=1.7)


@pytest.fixture(scope="module")
def scored(wide, own_cache) -> dict[str, tuple[list[dict], list]]:
    """Rows and what the network was fed, by the photos' paths."""
    photos = find_photos([str(SAMPLES)])
    return {
        one.photo.path: ([row.as_dict(FIELDS) for row in one.rows], one.pixels)
        for one in Scorer(load_detector(wide)).look(photos)
    }


def mark(scored, folder: Path, path: Path, truth: str, face: int | None, wide: Path) -> Path:
    rows = [row for of_photo, _ in scored.values() for row in of_photo]
    reports = wrong_rows(rows, str(path), face, truth)
    [picture] = collect(reports, read_photo(str(path)), folder, margin_of(wide))
    return picture


def lines_in(folder: Path) -> list[dict]:
    with open(folder / REPORTS, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("face", [0, 1])
def test_the_crop_that_was_scored_is_what_is_collected(scored, wide, tmp_path, face):
    picture = mark(scored, tmp_path, TWO_PEOPLE, "real", face, wide)
    assert picture.parent == tmp_path / "real" and picture.suffix == ".png"
    _, fed = scored[str(TWO_PEOPLE)]
    assert np.array_equal(resize(read_image(picture), 64, "area"), fed[face])
    [line] = lines_in(tmp_path)
    row = scored[str(TWO_PEOPLE)][0][face]
    assert line["path"] == picture.relative_to(tmp_path).as_posix() and line["label"] == "real"
    assert (line["photo"], line["model"], line["verdict"]) == (str(TWO_PEOPLE), "wide", "fake")
    assert float(line["fake_probability"]) == row["fake_probability"]
    assert int(line["left"]) == row["left"]


def test_a_photo_that_was_scored_whole_is_collected_as_it_is(scored, wide, tmp_path):
    crop = SAMPLES / "real_hopper_face.heic"
    picture = mark(scored, tmp_path, crop, "real", None, wide)
    assert picture.suffix == ".heic" and picture.read_bytes() == crop.read_bytes()
    [one] = Scorer(load_detector(wide), face_mode="none").score([Photo(str(TWO_PEOPLE))])
    whole = {str(TWO_PEOPLE): ([row.as_dict(FIELDS) for row in one], None)}
    picture = mark(whole, tmp_path, TWO_PEOPLE, "real", None, wide)
    assert picture.read_bytes() == TWO_PEOPLE.read_bytes()


def test_twice_is_once(scored, wide, tmp_path):
    for _ in range(2):
        for face in (0, 1):
            mark(scored, tmp_path, TWO_PEOPLE, "real", face, wide)
    assert len(lines_in(tmp_path)) == len(list((tmp_path / "real").iterdir())) == 2
    assert len({line["group"] for line in lines_in(tmp_path)}) == 1
    before = (tmp_path / REPORTS).read_bytes()
    mark(scored, tmp_path, TWO_PEOPLE, "real", 0, wide)
    assert (tmp_path / REPORTS).read_bytes() == before


def test_another_model_s_verdict_is_another_line_of_the_same_picture(scored, wide, tmp_path):
    mark(scored, tmp_path, TWO_PEOPLE, "real", 0, wide)
    rows = [row | {"model": "other"} for row in scored[str(TWO_PEOPLE)][0]]
    mark({"": (rows, None)}, tmp_path, TWO_PEOPLE, "real", 0, wide)
    assert [line["model"] for line in lines_in(tmp_path)] == ["wide", "other"]
    assert len(list((tmp_path / "real").iterdir())) == 1


def test_the_contrary_is_refused(scored, wide, tmp_path):
    mark(scored, tmp_path, TWO_PEOPLE, "real", 0, wide)
    rows = [row | {"verdict": "uncertain"} for row in scored[str(TWO_PEOPLE)][0]]
    with pytest.raises(UserError, match="this face was reported as real on"):
        mark({"": (rows, None)}, tmp_path, TWO_PEOPLE, "fake", 0, wide)
    assert not (tmp_path / "fake").exists()
    assert mark({"": (rows, None)}, tmp_path, TWO_PEOPLE, "fake", 1, wide), "another face"


def test_what_is_refused(scored, wide, tmp_path):
    def refused(path: Path, truth: str, face: int | None, phrase: str) -> None:
        with pytest.raises(UserError, match=phrase):
            mark(scored, tmp_path / "reported", path, truth, face, wide)

    refused(SAMPLES / "nowhere.jpg", "real", None, "not in the rows")
    refused(TWO_PEOPLE, "real", None, "2 faces; say with --face")
    refused(TWO_PEOPLE, "real", 2, "no face 2")
    refused(TWO_PEOPLE, "fake", 0, "verdict is fake already")
    refused(SAMPLES / "no_face_coffee.webp", "fake", None, "no verdict to report .no face")
    with pytest.raises(UserError, match="this is a video"):
        wrong_rows(
            [Row(path="a.mp4", verdict="fake", frames=3).as_dict(("path", "frames"))],
            "a.mp4",
            None,
            "real",
        )
    assert not (tmp_path / "reported").exists()
    with pytest.raises(UserError, match="no such file"):
        read_photo(str(tmp_path / "gone.jpg"))


def test_a_photo_that_was_changed_or_broken_is_refused(scored, wide, tmp_path):
    rows = scored[str(TWO_PEOPLE)][0]
    reports = wrong_rows(rows, str(TWO_PEOPLE), 0, "real")
    for content, phrase in (
        ((SAMPLES / "real_collins.jpg").read_bytes(), "not the photo that was scored"),
        (b"no photo", "cannot be read"),
    ):
        with pytest.raises(UserError, match=phrase):
            collect(reports, content, tmp_path, margin_of(wide))
    with pytest.raises(UserError, match="--weights DIR"):
        collect(reports, TWO_PEOPLE.read_bytes(), tmp_path, margin_of(None))
    assert [path.name for path in tmp_path.iterdir()] == []


def test_other_files_are_not_taken_for_reports(scored, wide, tmp_path):
    (tmp_path / REPORTS).write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a list of reports"):
        mark(scored, tmp_path, TWO_PEOPLE, "real", 0, wide)
    assert (tmp_path / REPORTS).read_text() == "a,b\n1,2\n"


def test_names_that_spreadsheets_would_run_are_defused(scored, wide, tmp_path):
    rows = [row | {"path": "=1+1.jpg"} for row in scored[str(TWO_PEOPLE)][0]]
    reports = wrong_rows(rows, "=1+1.jpg", 0, "real")
    for _ in range(2):
        collect(reports, TWO_PEOPLE.read_bytes(), tmp_path, margin_of(wide))
    assert [line["photo"] for line in lines_in(tmp_path)] == ["'=1+1.jpg"]


def test_the_folder_and_its_list_are_both_a_dataset(scored, wide, tmp_path):
    for face in (0, 1):
        mark(scored, tmp_path, TWO_PEOPLE, "real", face, wide)
    folder = {(sample.path, sample.label) for sample in load_samples(tmp_path)}
    listed = load_samples(tmp_path / REPORTS)
    assert {(sample.path, sample.label) for sample in listed} == folder and len(folder) == 2
    assert len({sample.group for sample in listed}) == 1


# The command


def test_the_command(infer, wide, tmp_path):
    shutil.copy(TWO_PEOPLE, tmp_path / "photo.jpg")
    assert infer("photo.jpg", "--weights", wide, "--output", "rows.csv").returncode == 0
    command = ("rows.csv", "--path", "photo.jpg", "--face", "1", "--weights", wide)
    done = infer(*command, "--truth", "real", script="mark_wrong.py")
    assert done.returncode == 0, done.stderr.decode()
    assert b"real, called fake by wide (95.3% fake)" in done.stdout
    assert len(load_samples(tmp_path / "dataset" / "reported")) == 1
    done = infer(*command, "--truth", "fake", script="mark_wrong.py")
    assert done.returncode == 2 and b"verdict is fake already" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_compare_models_takes_it_as_a_test_set_and_the_card_says_so(infer, scored, wide, tmp_path):
    folder = tmp_path / "reported"
    for face in (0, 1):
        mark(scored, folder, TWO_PEOPLE, "real", face, wide)
    mark(scored, folder, SAMPLES / "real_hopper_face.heic", "real", None, wide)
    detector = shutil.copytree(REPOSITORY / "weights" / "meso4", tmp_path / "meso4")
    done = infer(detector, "--data", folder, "--record", script="compare_models.py")
    assert done.returncode == 0, done.stderr.decode()
    recorded = load_detector(detector).description["metrics"]["test_sets"]["reported"]
    assert (recorded["real"], recorded["fake"], recorded["kind"]) == (3, 0, "unseen")
    card = (detector / "README.md").read_text()
    assert "checked against 3 reports of wrong verdicts" in " ".join(card.split())


@pytest.mark.slow
def test_a_detector_is_taught_by_it(wide, scored, tmp_path, own_cache):
    """As it is: one class, a handful of pictures."""
    from tests.tiny_dataset import make_dataset

    data = make_dataset(tmp_path / "data", train=8, validate=4)
    folder = tmp_path / "reported"
    for path in scored:
        if scored[path][0][0]["face"] is not None:
            mark(scored, folder, Path(path), "real", 0, wide)
    start = tmp_path / "tiny"
    train = ("--data", data, "--init", "none", "--output", start, "--epochs", "1")
    train += ("--architecture", "vit_tiny_patch16_224", "--batch-size", 4)
    learn = ("--from", start, "--new-data", folder, "--replay", data, "--epochs", "1")
    learn += ("--batch-size", 4, "--margin", "1")
    for script, arguments in (("train_vit.py", train), ("incremental_train_vit.py", learn)):
        done = subprocess.run(
            [sys.executable, REPOSITORY / script, *map(str, arguments)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert "new pictures and" in done.stderr
