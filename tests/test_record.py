"""The record of a run: complete, the same in HTML and JSON, and printed without cut tables."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.detectors.detector import load_detector
from pipeline.detectors.together import SECTION
from pipeline.photos.images import read_image
from pipeline.photos.inputs import find_photos
from pipeline.photos.photo import Photo
from pipeline.rows.files import open_output, read_rows
from pipeline.rows.handing_out import ScoredPhoto, hand_out
from pipeline.rows.record import read_record
from pipeline.rows.rows import FIELDS, Row
from pipeline.scoring.provenance import describe_run, measured
from pipeline.scoring.scoring import Scorer
from pipeline.videos.frames import Sampling
from tests.conftest import DETECTOR, REPOSITORY, SAMPLES
from tests.test_html_report import CHROMIUM, Elements
from tests.tiny_detectors import make_detector

OPTIONS = {"face_mode": None, "threshold": None}
PHOTOS = ("real_collins.jpg", "no_face_coffee.webp", "two_people.jpg")

pytestmark = pytest.mark.usefixtures("own_cache")


def run_of(scorer: Scorer) -> dict:
    return describe_run(scorer.described(), OPTIONS, Sampling())


def score_into(output: Path, detector: Path, *paths: Path, resume: bool = False) -> None:
    """What the scoring command does."""
    scorer = Scorer(load_detector(detector))
    with open_output(
        output, list(scorer.settings()), resume, FIELDS, scorer.settings(), run_of(scorer)
    ) as writer:
        photos = (photo for photo in find_photos(map(str, paths)) if photo.path not in writer.done)
        for scored in scorer.look(writer.watch(photos)):
            writer.write(scored.rows)


@pytest.fixture(scope="module")
def bright(tmp_path_factory) -> Path:
    """A detector whose fake_probability rises with a face's brightness."""
    return make_detector(tmp_path_factory.mktemp("weights") / "bright", "meso4", 9, -4, 64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        shutil.copy(SAMPLES / name, folder)
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def page(bright, photos, own_cache) -> Path:
    page = photos.parent / f"{photos.name}-report" / "report.html"
    score_into(page, bright, photos)
    return page


def test_everything_that_a_reader_must_know_is_in_both(page, bright, photos):
    record = json.loads(page.with_suffix(".json").read_bytes())
    texts = " ".join(" ".join(Elements(page).texts).split())
    described = load_detector(bright).description
    [detector] = record["detectors"]
    [member] = detector["members"]
    assert member["graphs"] == {"model.onnx": described["files"]["model.onnx"]}
    assert member["precision"] == "fp32" and detector["margin"] == 1.3
    assert detector["settings"]["face"] == "auto"
    assert detector["calibration"]["threshold"] == 0.5
    assert record["options"] == OPTIONS and record["sampling"] == {"frames": 32, "every": None}
    assert datetime.fromisoformat(record["made"]).tzinfo is not None
    program = record["program"]
    for fact in (
        *("bright", member["graphs"]["model.onnx"], detector["settings"]["version"]),
        *(program["code_sha256"], program["version"], record["made"][:10], "1.3 times", "fp32"),
        *(detector["measured"][0], sha256_of(page.with_suffix(".json"))),
    ):
        assert fact in texts
    by_name = {Path(photo["path"]).name: photo for photo in record["photos"]}
    assert set(by_name) == {*PHOTOS, "broken.jpg"}
    for name, photo in by_name.items():
        assert photo["sha256"] == sha256((photos / name).read_bytes()).hexdigest()
        assert photo["bytes"] == (photos / name).stat().st_size
        assert datetime.fromisoformat(photo["scored"]).tzinfo is not None
        assert photo["sha256"] in texts
    assert [row["verdict"] for row in by_name["broken.jpg"]["rows"]] == ["error"]
    assert len(by_name["two_people.jpg"]["rows"]) == 2
    key = str
    rows = sorted(read_rows(page), key=key)
    assert rows == sorted((row for photo in record["photos"] for row in photo["rows"]), key=key)
    assert rows == sorted(read_rows(page.with_suffix(".json")), key=key)


def test_json_alone_holds_the_same(page, bright, photos, tmp_path):
    alone = tmp_path / "alone.json"
    score_into(alone, bright, photos)
    records = [json.loads(path.read_bytes()) for path in (alone, page.with_suffix(".json"))]
    for record in records:
        del record["made"]
        for photo in record["photos"]:
            del photo["scored"]
    assert records[0] == records[1]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == []


@pytest.mark.parametrize("name", ["rows.html", "rows.json"])
def test_a_record_is_continued_whole(bright, photos, tmp_path, name):
    output = tmp_path / name
    score_into(output, bright, photos / PHOTOS[0], photos / PHOTOS[1])
    first = read_record(output.with_suffix(".json")).photos[0]
    score_into(output, bright, photos, resume=True)
    record = read_record(output.with_suffix(".json"))
    assert {Path(photo.path).name for photo in record.photos} == {*PHOTOS, "broken.jpg"}
    assert record.photos[0] == first, "its time is that when it was scored"
    assert all(photo.sha256 for photo in record.photos)
    assert sorted(path.suffix for path in tmp_path.glob("rows*")) == sorted(
        {".json", output.suffix}
    ), "nothing was set aside"


def test_a_file_of_others_beside_a_report_is_kept(bright, photos, tmp_path, capsys):
    beside = tmp_path / "report.json"
    beside.write_text("mine")
    score_into(tmp_path / "report.html", bright, photos / PHOTOS[0])
    assert (tmp_path / "report.json.bak").read_text() == "mine"
    assert "report.json was there already" in capsys.readouterr().err
    assert read_record(beside).photos


def test_one_run_at_a_time_writes_the_record_of_a_report(bright, tmp_path):
    scorer = Scorer(load_detector(bright))
    run = run_of(scorer)
    with (
        open_output(tmp_path / "report.json", ["bright"], record=run),
        pytest.raises(UserError, match=r"report\.json: another run"),
    ):
        open_output(tmp_path / "report.html", ["bright"], record=run)
    with open_output(tmp_path / "report.html", ["bright"], record=run):
        pass


def test_columns_of_any_name_are_shown(page):
    text = page.read_text(encoding="utf-8")
    head = re.search(r'<table class="details"><thead>(.*?)</thead>', text)[1]
    shown = re.findall("<th>(.*?)</th>", head.replace("<wbr>", ""))
    [*rows] = read_rows(page)
    of_first = [row for row in rows if row["path"] == rows[0]["path"]]
    wanted = [name for name in FIELDS if any(row[name] is not None for row in of_first)]
    sentences = ("path", "error", "declared", "declared_by")
    assert shown == [name for name in wanted if name not in sentences]


def test_heat_maps_are_shown_and_survive_a_continued_run(bright, photos, tmp_path):
    """Made in the way of --explain: a file for each row."""
    page, drawn = tmp_path / "report.html", tmp_path / "drawn.png"
    Image.fromarray(np.full((64, 128, 3), 90, np.uint8)).save(drawn)
    scorer = Scorer(load_detector(bright))
    for resume in (False, True):
        with open_output(
            page, ["bright"], resume, FIELDS, scorer.settings(), run_of(scorer)
        ) as out:
            photo_paths = find_photos([str(photos / name) for name in PHOTOS[: 1 + 2 * resume]])
            new = (photo for photo in photo_paths if photo.path not in out.done)
            for scored in scorer.look(out.watch(new)):
                faces = [n for n, row in enumerate(scored.rows) if row.face is not None]
                out.note_heat_maps(dict.fromkeys(faces, drawn))
                out.write(scored.rows)
    record = read_record(page.with_suffix(".json"))
    of_photo = {Path(photo.path).name: photo.heat_maps for photo in record.photos}
    assert of_photo[PHOTOS[0]] == [{"row": 0, "file": "drawn.png"}]
    assert of_photo[PHOTOS[1]] == []
    assert [each["row"] for each in of_photo[PHOTOS[2]]] == [0, 1]
    images = [image for image in Elements(page).of("img") if image["class"] == "heat-map"]
    assert len(images) == 3 and len({image["src"] for image in images}) == 1
    shown = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].partition(",")[2])))
    assert shown.size == (128, 64)


# What was measured


def test_error_rates_are_those_of_the_detector():
    detector = load_detector(DETECTOR)
    said = " ".join(measured(detector, detector.calibration.threshold))
    assert "Of 1,000 real faces like those that it was tested on, it calls about 50 fake" in said
    assert "measured on 700 faces; 36 to 69 with 95 % confidence" in said  # Wilson
    assert "it finds about 450 (" in said
    metrics = detector.description["metrics"]
    kinds, value = ", ".join(metrics["unseen_measured"]["sets"]), metrics["unseen_auc"]
    assert f"kinds that it was not trained on ({kinds}) its AUC is {value:.3f}" in said
    assert "this run had" not in said
    assert "its own threshold of 0.736; this run had 0.900" in measured(detector, 0.9)[0]


def test_error_rates_of_a_pair_are_its_own():
    first, second = (
        load_detector(REPOSITORY / "weights" / name) for name in ("vit", "efficientnet_lite0")
    )
    graph = second.description["files"]["model.onnx"]
    recall = first.description[SECTION][graph]["metrics"]["recall_fake"]
    pair = replace(first, members=(first, second))
    assert f"it finds about {1000 * recall:.0f} (" in " ".join(
        measured(pair, pair.calibration.threshold)
    )


def test_what_was_recorded_of_test_sets_is_said(tmp_path):
    folder = make_detector(tmp_path / "known", "meso4")
    path = folder / "detector.json"
    of = {"real": 200, "called_fake": 4, "fake": 50, "found": 40, "date": "2026-11-28"}
    sets = {
        "flux": of | {"kind": "unseen", "threshold": 0.5},
        "old": of | {"kind": "seen", "threshold": 0.7},  # before it was calibrated anew
    }
    metrics = {"recall_real": 0.99, "recall_fake": 0.8, "images": {"real": 100, "fake": 100}}
    described = json.loads(path.read_text()) | {"metrics": metrics | {"test_sets": sets}}
    path.write_text(json.dumps(described))
    said = " ".join(measured(load_detector(folder), 0.5))
    assert "In the test set flux, a kind new to it, it finds 80.0% (67.0% to 88.8%) of 50" in said
    assert "calls 2.0% (0.8% to 5.0%) of 200 real faces fake" in said
    assert "test set old" not in said


def test_without_measurements_that_is_said(bright):
    [sentence] = measured(load_detector(bright), 0.5)
    assert "was not measured" in sentence


def test_malformed_measurements_stop_nobody(tmp_path):
    folder = make_detector(tmp_path / "odd", "meso4")
    path = folder / "detector.json"
    for metrics in ({"recall_real": "all"}, {"recall_real": 0.5}, ["recall_real"]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": metrics}))
        [sentence] = measured(load_detector(folder), 0.5)
        assert "cannot be read" in sentence


# For the web page


def test_a_report_is_handed_out_without_a_file(bright, tmp_path):
    path = SAMPLES / "two_people.jpg"
    scorer = Scorer(load_detector(bright))
    [scored] = scorer.look([Photo(str(path))])
    seen = np.hstack([scored.pixels[1], scored.pixels[1]])
    photo = ScoredPhoto(path.read_bytes(), scored.rows, read_image(path), {1: seen})
    broken = ScoredPhoto(b"x", [Row(path="b.jpg", verdict="error", error="No photo.")], None)
    handed = hand_out(run_of(scorer), FIELDS, [photo, broken])
    (tmp_path / "report.json").write_bytes(handed.json)
    (tmp_path / "report.html").write_bytes(handed.html)
    record = read_record(tmp_path / "report.json")
    assert record.photos[0].sha256 == sha256_of(path)
    assert record.photos[0].heat_maps == [{"row": 1, "file": "row 1"}]
    assert list(read_rows(tmp_path / "report.html")) == [
        *(row.as_dict(FIELDS) for row in scored.rows),
        broken.rows[0].as_dict(FIELDS),
    ]
    elements = Elements(tmp_path / "report.html")
    assert not [link for link in elements.of("a") if "two_people" in link["href"]]
    classes = [image["class"] for image in elements.of("img")]
    assert classes == ["thumbnail", "heat-map"]
    assert sha256(handed.json).hexdigest() in handed.html.decode()


# On paper


@pytest.mark.skipif(not CHROMIUM, reason="needs the browser Chromium")
@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_nothing_is_cut_on_paper(page, tmp_path, paper, browser):
    width, height = {"A4": (794, 1123), "Letter": (816, 1056)}[paper]  # CSS pixels
    tab = browser.new_page(viewport={"width": width - 91, "height": height - 106})  # the margins
    tab.goto(page.as_uri())
    assert tab.locator("table.details").first.is_hidden()
    tab.check("#show-details")
    assert tab.locator("table.details").first.is_visible()
    tab.uncheck("#show-details")
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width - 91
    tables = tab.locator("table")
    for number in range(tables.count()):
        table = tables.nth(number)
        assert table.is_visible()
        box = table.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width - 91
        assert table.evaluate(
            "t => [...t.querySelectorAll('th, td')].every(c => c.scrollWidth <= c.clientWidth + 1)"
        )
    assert not tab.locator("form").is_visible()
    pdf = tab.pdf(format=paper, prefer_css_page_size=False)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) <= 4
    tab.close()
