"""Wrong verdicts that are reported on the page: only where that was asked for, only from here."""

import csv
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline.requests.addresses import is_local
from pipeline.requests.settings import Settings
from pipeline.service.routes import create_app
from tests.conftest import SAMPLES
from tests.web_service import files

PHOTO = SAMPLES / "fake_hopper_face_on_collins.jpg"
MESO4 = ("model", (None, "meso4"))  # which does not call it fake
HERE = ("127.0.0.1", 5000)
pytestmark = pytest.mark.usefixtures("own_cache")


def browser(reports: Path | str, client: tuple[str, int] = HERE) -> TestClient:
    app = create_app(Settings(reports=str(reports)))
    return TestClient(app, base_url="http://localhost", client=client)


def parts(truth: str, *more, photo: Path = PHOTO) -> list:
    return [*files(photo), MESO4, ("truth", (None, truth)), *more]


def test_a_face_is_kept_once_with_the_row_that_was_wrong(tmp_path):
    folder = tmp_path / "reported"
    with browser(folder) as visitor:
        scored = visitor.post("/api/score", files=[*files(PHOTO), MESO4]).json()["rows"][0]
        for _ in range(2):
            answer = visitor.post("/api/report", files=parts("fake"))
            assert answer.status_code == 200, answer.text
    kept = Path(answer.json()["kept"])
    assert kept.parent == folder / "fake" and kept.is_file()
    with open(folder / "reports.csv", encoding="utf-8", newline="") as file:
        [line] = csv.DictReader(file)
    assert (line["label"], line["photo"], line["model"]) == ("fake", PHOTO.name, "meso4")
    assert float(line["fake_probability"]) == pytest.approx(scored["fake_probability"], abs=1e-6)


@pytest.mark.parametrize(
    ("sent", "fact"),
    [
        (parts("perhaps"), "real or fake"),
        (files(PHOTO), "real or fake"),
        (parts("fake", ("face", (None, "7"))), "no face 7"),
        (parts("fake", ("face", (None, "-1"))), "whole number"),
        (parts("real", photo=SAMPLES / "real_cameraman.png"), "real already"),
        (parts("real", photo=SAMPLES / "README.md"), "no verdict to report"),
        (parts("fake", *files(PHOTO)), "one photo"),
    ],
)
def test_what_is_no_wrong_verdict_is_refused_and_nothing_is_kept(tmp_path, sent, fact):
    with browser(tmp_path / "reported") as visitor:
        answer = visitor.post("/api/report", files=sent)
    assert answer.status_code == 422
    assert fact in answer.json()["error"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".csv", ".png", ".jpg")]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with browser(tmp_path / "file" / "reported") as visitor:
        answer = visitor.post("/api/report", files=parts("fake"))
    assert answer.status_code == 500
    assert "cannot be written" in answer.json()["error"]


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        (("192.0.2.7", 5000), {}),
        (HERE, {"X-Forwarded-For": "192.0.2.7"}),
        (HERE, {"X-Forwarded-For": "127.0.0.1"}),
        (HERE, {"Host": "faces.example"}),
        (HERE, {"Via": "1.1 proxy"}),
        (HERE, {"Origin": "https://faces.example"}),
    ],
)
def test_others_are_neither_offered_it_nor_served(tmp_path, client, headers):
    settings = Settings(
        reports=str(tmp_path / "reported"),
        allowed_hosts="localhost,faces.example",
        allowed_origins="https://faces.example",
    )
    page = ("page", (None, "1"))
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost", client=client) as visitor:
        answer = visitor.post("/api/report", files=parts("fake"), headers=headers)
        shown = visitor.post("/api/score", files=[*files(PHOTO), MESO4, page], headers=headers)
    assert answer.status_code == 404
    assert shown.status_code == 200 and "It is a fake" not in shown.json()["html"]
    assert not (tmp_path / "reported").exists()


def test_it_is_off_unless_a_folder_is_named(tmp_path):
    page = ("page", (None, "1"))
    for folder, status in (("", 404), (tmp_path / "reported", 200)):
        with browser(folder) as visitor:
            shown = visitor.post("/api/score", files=[*files(PHOTO), MESO4, page]).json()["html"]
            assert ("It is a fake" in shown) == (status == 200)
            assert visitor.post("/api/report", files=parts("fake")).status_code == status


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_this_computer_has_several_names(address, host):
    headers = [(b"host", host.encode()), (b"origin", b"http://localhost:8000")]
    assert is_local({"type": "http", "client": (address, 1), "headers": headers})
    assert not is_local({"type": "http", "client": None, "headers": headers})
