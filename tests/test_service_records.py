"""Whether verdicts hold, and records to save, as the web service gives them."""

import concurrent.futures
import dataclasses
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from pipeline.detectors.detector import WEIGHTS, load_detector
from pipeline.photos.inputs import find_photos
from pipeline.rows.html_report import read_report
from pipeline.rows.record import read_record
from pipeline.rows.rows import FIELDS, STABILITY_FIELDS
from pipeline.scoring.scoring import Scorer
from pipeline.scoring.verification import other_version, verify
from pipeline.service.installed import find_installed
from pipeline.service.results import holding
from tests.conftest import FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.web_service import files, serving

# By meso4: a face whose verdict does not hold, one that holds, one that mostly does, and no photo.
PHOTOS = [
    SAMPLES / name
    for name in (
        "fake_collins_face_on_hopper.jpg",
        "real_hopper_rotated.jpg",
        "real_collins.jpg",
        "README.md",
    )
]
MESO4 = ("model", (None, "meso4"))
STABILITY = ("stability", (None, "1"))


@pytest.fixture(scope="module")
def service(own_cache):
    with serving(own_cache) as running:
        yield running


def post(service, path: str, *parts) -> httpx.Response:
    return httpx.post(f"{service.address}{path}", files=list(parts), timeout=120)


def own_rows(stability: bool) -> list[dict]:
    """What the scoring command says of the PHOTOS."""
    scorer = Scorer(load_detector(WEIGHTS / "meso4"))
    rows = []
    for of_photo in scorer.score(find_photos([str(path) for path in PHOTOS]), stability):
        for row in of_photo:
            row.path = Path(row.path).name
            rows.append(row.as_dict(FIELDS))
    return rows


@pytest.mark.parametrize("asked", [False, True])
def test_stability_is_that_of_the_command_line_and_only_on_request(service, asked):
    answer = post(service, "/api/score", *files(*PHOTOS), MESO4, *[STABILITY] * asked).json()
    for row, own in zip(answer["rows"], own_rows(asked), strict=True):
        assert row == pytest.approx(own, abs=1e-6)
    assert any(row["reason"] for row in answer["rows"]) == asked
    assert all(row[name] is None for row in answer["rows"] for name in STABILITY_FIELDS) != asked


def test_requests_that_wait_together_get_each_what_they_asked_for(service):
    def ask(number: int) -> list[float | None]:
        more = [STABILITY] if number % 2 else []
        answer = post(service, "/api/score", *files(PHOTOS[0]), MESO4, *more).json()
        return [row["stability"] for row in answer["rows"]]

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    assert answers == [[None], [own_rows(True)[0]["stability"]]] * 6


def test_in_words(service):
    """For each sentence a real face that gets it; without JavaScript, too."""
    page = post(service, "/", *files(*PHOTOS), MESO4, STABILITY).text
    said = [
        re.search(r"<dt>Does the verdict hold\?</dt>\s*<dd>(.*?)</dd>", article)
        for article in page.split("<article")[1:]
    ]
    broken, held, mostly, unread = (match and match[1] for match in said)
    assert broken.startswith("No, so none is given: the face gets another verdict by itself")
    assert held.startswith("Yes, also when the photo is saved again, made smaller, mirrored or")
    assert re.match(r"Not always: of 5 copies .* 4 get the same verdict\.", mostly)
    for sentences in (broken, held, mostly):
        assert re.search(r"(as high|of fake) (goes from .* to|stays at) ", sentences)
    assert unread is None
    assert "By its score alone this would be “nothing found”" in page.split("<article")[1]
    assert "Does the verdict hold?" not in post(service, "/", *files(*PHOTOS), MESO4).text


def test_several_faces_and_detectors_are_named(service):
    two = SAMPLES / "two_people.jpg"
    models = [MESO4, ("model", (None, "mesoinception4"))]
    page = ("page", (None, "1"))
    answer = post(service, "/api/score", *files(two), *models, STABILITY, page).json()
    holds = re.search(r'<div class="holding">.*?</div>', answer["html"], re.DOTALL)[0]
    said = re.findall(r"<dd>(Face \d, \w+): ", holds)
    assert said == [f"Face {row['face'] + 1}, {row['model']}" for row in answer["rows"]]
    assert len(said) == 4


def test_a_score_far_from_the_thresholds_and_a_detector_of_an_earlier_version():
    [rows] = Scorer(load_detector(WEIGHTS / "meso4")).score(find_photos([str(PHOTOS[0])]), True)
    row = rows[0]
    detector = next(each for each in find_installed(WEIGHTS) if each.name == "meso4")
    earlier = holding(row, dataclasses.replace(detector, real_scores=None))
    assert re.search(r"The probability of fake goes from 13\.\d % to 42\.\d %\.$", earlier)
    row.stability = None
    assert holding(row, detector).startswith("Not tried, because the score is far from")


@pytest.fixture(scope="module")
def saved(service, tmp_path_factory) -> Path:
    """The folder with the report and the record of the PHOTOS, by two detectors."""
    models = [MESO4, ("model", (None, "efficientnet_lite0"))]
    answer = post(service, "/api/record", *files(*PHOTOS), *models, STABILITY)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    assert 'filename="record.zip"' in answer.headers["content-disposition"]
    folder = tmp_path_factory.mktemp("saved")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["report.html", "report.json"]
        archive.extractall(folder)
    return folder


def test_a_record_holds_for_the_same_photos_and_for_no_others(saved, tmp_path):
    record = read_record(saved / "report.json")
    assert other_version(record) == ""
    assert record.run["options"]["stability"] is True
    found = verify(record, [str(path) for path in PHOTOS])
    assert (found.photos, found.problems, found.unchecked) == (4, [], 0)
    changed = tmp_path / PHOTOS[0].name
    changed.write_bytes(PHOTOS[0].read_bytes() + b"\0")
    [problem] = verify(record, [str(changed), *map(str, PHOTOS[1:])]).problems
    assert "this photo was changed" in problem


def test_the_report_has_the_same_rows_and_names_its_record(saved):
    record = read_record(saved / "report.json")
    columns, photos = read_report(saved / "report.html")
    assert columns == record.columns and "agreement" in columns
    in_report = {rows[0]["path"]: rows for _, rows in photos}
    assert in_report == {photo.path: photo.rows for photo in record.photos}
    page = (saved / "report.html").read_text(encoding="utf-8")
    assert "report.json" in page and page.count("data:image/jpeg") == len(PHOTOS) - 1


def test_verify_report_takes_a_record_of_a_single_photo(service, tmp_path):
    answer = post(service, "/api/record", ("sample", (None, FACE_SAMPLE.name)), MESO4)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extract("report.json", tmp_path)
    command = [sys.executable, "verify_report.py", tmp_path / "report.json", FACE_SAMPLE]
    checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 photo: the same files and the same rows" in checked.stdout


def test_two_photos_of_one_name_cannot_be_told_apart_in_a_record(service):
    parts = [("files", ("face.jpg", path.read_bytes())) for path in PHOTOS[:2]]
    answer = post(service, "/api/record", *parts, MESO4)
    assert answer.status_code == 422
    assert "face.jpg" in answer.json()["error"]
