"""Inputs that people really sent, through the scripts and the page: none is lost, none is wrong."""

import itertools
import shutil

import httpx
import pytest

from pipeline.rows.files import read_rows
from tests.conftest import FACE_SAMPLE
from tests.shared import SHARED, needs_shared
from tests.web_service import serving

FAILING = SHARED / "failing"
PANORAMA = "10_panorama_12000x1500.webp"

pytestmark = needs_shared


def test_a_list_that_powershell_wrote(infer, tmp_path):
    (tmp_path / "list").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(FAILING / "03_reference_256.png", tmp_path / "list" / name)
    stdin = (FAILING / "09_list_utf16.txt").read_bytes()
    process = infer("-", "--output", "rows.jsonl", stdin=stdin)
    assert process.returncode == 0
    rows = list(read_rows(tmp_path / "rows.jsonl"))
    assert [row["path"] for row in rows] == ["list/a.png", "list/b.png"]
    assert {row["verdict"] for row in rows} <= {"real", "uncertain", "fake"}


def test_a_list_of_photos_that_are_not_there_walks_nowhere(infer, tmp_path):
    stdin = (FAILING / "09_list_utf16.txt").read_bytes()
    process = infer("-", "--output", "rows.jsonl", stdin=stdin)
    assert process.returncode == 1
    assert [row["path"] for row in read_rows(tmp_path / "rows.jsonl")] == [
        "list/a.png",
        "list/b.png",
    ]


def test_a_list_with_a_whole_drive_in_it(infer, tmp_path):
    process = infer("-", "--output", "rows.jsonl", stdin=f"/\n{FACE_SAMPLE}\n".encode())
    assert process.returncode == 1
    refused, face = read_rows(tmp_path / "rows.jsonl")
    assert (refused["path"], refused["verdict"]) == ("/", "error")
    assert "whole drive" in refused["error"]
    assert face["path"] == str(FACE_SAMPLE)


def test_the_panorama_by_the_script(infer, tmp_path):
    process = infer(FAILING / PANORAMA, "--output", "rows.jsonl")
    assert process.returncode == 0
    assert_five_faces(list(read_rows(tmp_path / "rows.jsonl")))


@pytest.fixture(scope="module")
def service(own_cache):
    with serving(own_cache) as running:
        yield running


def test_the_panorama_by_the_page(service):
    parts = [("files", (PANORAMA, (FAILING / PANORAMA).read_bytes()))]
    answer = httpx.post(f"{service.address}/api/score", files=parts, timeout=120)
    assert answer.status_code == 200
    assert_five_faces(answer.json()["rows"])


def assert_five_faces(rows: list[dict]) -> None:
    assert [row["face"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["verdict"] in ("real", "uncertain", "fake") for row in rows)
    assert all(150 < row["bottom"] - row["top"] < 260 for row in rows)
    lefts = sorted(row["left"] for row in rows)
    assert all(right - left > 260 for left, right in itertools.pairwise(lefts))
