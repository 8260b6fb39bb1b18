"""The report: complete, sorted, safe against names, readable again, and alone in a browser."""

import base64
import io
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.photos.images import read_image
from pipeline.photos.inputs import find_photos
from pipeline.photos.photo import Photo
from pipeline.rows import html_report
from pipeline.rows.files import open_output, read_rows
from pipeline.rows.pictures import THUMBNAIL_SIDE, PictureKeeper
from pipeline.rows.rows import COMPARED_FIELDS, FIELDS, VIDEO_FIELDS, Row
from tests.conftest import REPOSITORY, SAMPLES
from tests.test_rows import MODELS, TWO, any_rows, both, broken, die, face

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def scored(path: str, probability: float, verdict: str = "real", **others) -> Row:
    row = face(path, verdict=verdict)
    row.fake_probability = probability
    for name, value in others.items():
        setattr(row, name, value)
    return row


def save(page: Path, *photos: list[Row], resume: bool = False, fields=FIELDS) -> None:
    """Write the rows and, where there is such a file, its picture."""
    with open_output(page, MODELS if fields == FIELDS else TWO, resume, fields) as writer:
        for rows in photos:
            if rows[0].path not in writer.done:
                for photo in writer.watch([Photo(rows[0].path)]):
                    if os.path.exists(photo.path):
                        photo.read()
                writer.write(rows)


class Elements(HTMLParser):
    """Every element of a page, as a browser would see them."""

    def __init__(self, page: Path):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_most_suspicious_photo_comes_first(tmp_path):
    page = tmp_path / "report.html"
    save(
        page,
        [scored("low.jpg", 0.2)],
        [Row(path="none.jpg", verdict="no face", model="meso4")],
        [scored("two.jpg", 0.1), scored("two.jpg", 0.9, "fake", face=1)],
        [broken("broken.jpg")],
        [scored("middle.jpg", 0.5, "uncertain")],
    )
    assert [row["path"] for row in read_rows(page)] == (
        ["two.jpg", "two.jpg", "middle.jpg", "low.jpg", "none.jpg", "broken.jpg"]
    )
    elements = Elements(page)
    classes = [attributes["class"] for attributes in elements.of("article")]
    assert classes == ["fake real", "uncertain", "real", "no-face"]
    text = "".join(elements.texts)
    for fact in ("4 photos", "empty", "meso4", "0.500", "90.0%"):
        assert fact in text
    assert os.listdir(tmp_path) == [page.name]


def test_boxes_and_thumbnails(tmp_path):
    picture = tmp_path / "photo.png"
    pixels = np.zeros((400, 800, 3), np.uint8)
    pixels[:, 400:] = (255, 0, 0)
    Image.fromarray(pixels).save(picture)
    page = tmp_path / "report.html"
    save(page, [scored(str(picture), 0.9, "fake", left=400, top=100, right=600, bottom=300)])
    elements = Elements(page)
    [image], [box] = elements.of("img"), elements.of("rect")
    assert (image["width"], image["height"]) == (str(THUMBNAIL_SIDE), str(THUMBNAIL_SIDE // 2))
    assert image["loading"] == "lazy"
    sides = [float(box[name]) for name in ("x", "y", "width", "height")]
    assert sides == [side * THUMBNAIL_SIDE / 800 for side in (400, 100, 200, 200)]
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert shown.shape == (100, 200, 3)
    assert shown[50, 150, 0] > 230 > 30 > shown[50, 150, 2]  # red, not blue
    assert shown[50, 50].max() < 30
    [link] = elements.of("a")
    assert link["href"] == "photo.png"  # from the page's folder


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("fields", [FIELDS, COMPARED_FIELDS], ids=["one network", "several"])
@given(photos=st.lists(st.lists(any_rows, min_size=1, max_size=3), max_size=4))
def test_any_row_comes_back_as_it_was(tmp_path_factory, fields, photos):
    page = tmp_path_factory.mktemp("report") / "report.html"
    with open_output(page, MODELS, fields=fields) as writer:
        for rows in photos:
            for row in rows:  # whatever belongs to one photo has one path
                row.path = rows[0].path
            writer.write(rows)
    expected = [row.as_dict(fields) for rows in photos for row in rows]
    assert sorted(map(str, read_rows(page))) == sorted(map(str, expected))
    assert os.listdir(page.parent) == [page.name]


HOSTILE = (
    "<script>alert(1)</script>.jpg",
    "' onload='alert(1)' x='.jpg",
    '"><img src=x onerror=alert(1)>.jpg',
    "javascript:alert(1)",
    "&lt;script&gt;\u202egpj.jpg",
    "two\nlines</p></main><h1>.jpg",
    "bytes\udcff%00.jpg",
    "//evil.example/a.jpg?x#y",
)


def test_names_cannot_become_part_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path("report.html")
    tame, wild = [], []
    for number, name in enumerate(HOSTILE):
        picture = {"width": 10, "height": 10, "jpeg": "AAAA", "time": None}
        for photos, path in ((tame, f"{number}.jpg"), (wild, name)):
            good, bad = scored(path, 0.5, model=path), broken(path + ".broken")
            bad.error = path
            photos += [(good, picture), (bad, None)]
    shapes = []
    for photos in (tame, wild):
        with open_output(page, [row.model for row, _ in photos]) as writer:
            for row, picture in photos:
                if picture:
                    writer._pictures._kept[row.path] = [(Photo(row.path), picture)]
                writer.write([row])
        elements = Elements(page)
        shapes.append([(tag, sorted(attributes)) for tag, attributes in elements.found])
        links = [attributes["href"] for attributes in elements.of("a")]
        assert len(links) == len(HOSTILE)
        assert all(":" not in link and not link.startswith("//") for link in links)
    assert shapes[0] == shapes[1]
    assert {row["path"] for row in read_rows(page)} >= set(HOSTILE)
    assert "\u202e" not in page.read_text(encoding="utf-8")


PHOTOS = ([scored("a.jpg", 0.3)], [scored("b.jpg", 0.9, "fake")], [broken("c.jpg")])


def test_a_run_killed_anywhere_goes_on_without_loss(tmp_path):
    picture = str(SAMPLES / "real_hopper_face.heic")
    photos = ([scored(picture, 0.3)], [scored("b.jpg", 0.9, "fake")], [scored("c.jpg", 0.1)])
    page = tmp_path / "report.html"
    writer = open_output(page, MODELS)
    for rows in photos:
        for photo in writer.watch([Photo(rows[0].path)]):
            if photo.path == picture:
                photo.read()
        writer.write(rows)
    die(writer)
    journal = tmp_path / ".report.html.journal.jsonl"
    content = journal.read_bytes()
    assert not page.exists()
    places = range(0, len(content), len(content) // 40)
    for length in (*places, len(content)):
        page.unlink(missing_ok=True)
        journal.write_bytes(content[:length])
        save(page, *photos, resume=True)
        assert [row["path"] for row in read_rows(page)] == ["b.jpg", picture, "c.jpg"]
        assert len(Elements(page).of("img")) == 1
        assert os.listdir(tmp_path) == [page.name]


def test_a_finished_page_can_be_continued_with_its_pictures(tmp_path, capsys):
    photos = [[scored(str(SAMPLES / "real_collins.jpg"), 0.3)], [scored("b.jpg", 0.2)], PHOTOS[2]]
    page = tmp_path / "report.html"
    save(page, *photos)
    [before] = Elements(page).of("img")
    repaired = [*photos[:2], [scored("c.jpg", 0.9)], [scored("d.jpg", 0.8)]]
    save(page, *repaired, resume=True)
    assert "2 photos" in capsys.readouterr().err
    paths = [row["path"] for row in read_rows(page)]
    assert paths == ["c.jpg", "d.jpg", photos[0][0].path, "b.jpg"]
    assert Elements(page).of("img") == [before]


def test_photos_beyond_the_pictures_have_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(html_report, "MOST_PICTURES", 3)
    photos = [[scored(f"{n}.jpg", n / 10)] for n in range(8)] + [PHOTOS[2]]
    page = tmp_path / "report.html"
    save(page, *photos)
    assert len(Elements(page).of("article")) == 3
    assert "5 more" in "".join(Elements(page).texts)
    save(page, *photos, [scored("new.jpg", 0.95)], resume=True)
    assert [row["path"] for row in read_rows(page)] == (
        ["new.jpg", *(f"{n}.jpg" for n in range(7, -1, -1)), "c.jpg"]
    )


def test_of_two_networks_each_has_its_verdict(tmp_path):
    page = tmp_path / "report.html"
    save(page, both("a.jpg", verdicts=("fake", "real")), fields=COMPARED_FIELDS)
    text = "".join(Elements(page).texts)
    assert "The networks disagree." in text
    # Beside the threshold, at the face, and in its row.
    assert all(text.count(model) == 3 for model in TWO)
    assert Elements(page).of("article")[0]["class"] == "fake real"


def test_a_video_shows_its_most_suspicious_frame(tmp_path):
    page = tmp_path / "report.html"
    path = str(SAMPLES / "real_collins.jpg")

    class At:
        def __init__(self, time):
            self.time = time

    rows = [scored(path, p, time=t) for p, t in ((0.1, 0.0), (0.8, 0.5), (0.2, 1.0))]
    rows.append(scored(path, 0.37, frames=3, median=0.2, fake_share=1 / 3, left=None))
    with open_output(page, MODELS) as writer:
        for photo in writer.watch([Photo(path, frame=At(row.time)) for row in rows[:3]]):
            photo.read()
        writer.write(rows)
    [link] = Elements(page).of("a")
    assert link["href"].endswith("#t=0.50")
    assert len(Elements(page).of("img")) == len(Elements(page).of("rect")) == 1
    for fact in ("20.0%", "33%"):
        assert fact in "".join(Elements(page).texts)
    [curve] = Elements(page).of("polyline")
    assert curve["points"] == "0.0,36.0 50.0,8.0 100.0,32.0"
    assert [tuple(row) for row in read_rows(page)] == [(*FIELDS, *VIDEO_FIELDS)] * 4


def test_pictures_are_kept_only_until_their_rows_come():
    keeper = PictureKeeper()
    path = str(SAMPLES / "real_collins.jpg")
    twice = list(keeper.watch([Photo(path), Photo(path), Photo("x", "There is no such file.")]))
    assert np.array_equal(twice[0].read().pixels, read_image(path))
    twice[1].read()
    assert twice[2].read is None
    for _ in range(2):
        assert keeper.take([scored(path, 0.5)])["jpeg"]
    assert keeper.take([scored(path, 0.5)]) is None
    assert keeper._kept == {}


@pytest.mark.parametrize("content", ["", "<html>", "<!doctype html>\n<p data-rows='[]'>"])
def test_pages_of_others_are_refused_and_left_as_they_are(tmp_path, content):
    page = tmp_path / "report.html"
    page.write_text(content)
    with pytest.raises(UserError, match=page.name):
        open_output(page, MODELS, True)
    assert page.read_text() == content
    save(page, *PHOTOS)
    assert (tmp_path / "report.html.bak").read_text() == content
    whole = page.read_bytes()
    page.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=page.name):
        list(read_rows(page))


def test_the_scoring_command_writes_it(infer, tmp_path):
    (tmp_path / "empty.jpg").touch()
    process = infer(SAMPLES, "empty.jpg", "--output", "report.html")
    assert process.returncode == 1
    elements = Elements(tmp_path / "report.html")
    photos = list(find_photos([str(SAMPLES)]))
    assert len(elements.of("article")) == len(elements.of("img")) == len(photos) == 11
    assert len(elements.of("rect")) == 11  # two in one photo, none in another
    process = infer(SAMPLES, "empty.jpg", "--output", "report.html", "--continue")
    assert "11 photos" in process.stderr.decode()
    assert len(Elements(tmp_path / "report.html").of("img")) == 11


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("script", [True, False], ids=["with its script", "without"])
def test_in_a_browser_it_asks_nobody_and_its_filters_work(tmp_path, script):
    playwright = pytest.importorskip("playwright.sync_api")
    page = tmp_path / "report.html"
    save(
        page,
        [scored(str(SAMPLES / "real_collins.jpg"), 0.9, "fake")],
        [scored("<b>two</b>.jpg", 0.1), scored("<b>two</b>.jpg", 0.8, "fake", face=1)],
        [scored("low.jpg", 0.2)],
        PHOTOS[2],
    )
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        tab = browser.new_page(java_script_enabled=script, viewport={"width": 360, "height": 700})
        requests, messages = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: messages.append(message.text))
        tab.goto(page.as_uri())
        cards = tab.locator("article")
        assert [cards.nth(n).is_visible() for n in range(3)] == [True, True, True]
        tab.uncheck("#show-fake")
        assert [cards.nth(n).is_visible() for n in range(3)] == [False, True, True]
        tab.uncheck("#show-real")
        assert [cards.nth(n).is_visible() for n in range(3)] == [False, False, False]
        tab.check("#show-real")
        assert tab.locator("#search").is_visible() == script
        if script:
            tab.fill("#search", "TWO")
            assert [cards.nth(n).is_visible() for n in range(3)] == [False, True, False]
            assert tab.evaluate("document.documentElement.scrollWidth") == 360
            tab.fill("#search", "")
            tab.check("#show-fake")
            assert tab.locator("img").first.evaluate("image => image.naturalWidth") == 200
        browser.close()
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert messages == []  # the policy in the page has nothing to forbid


def test_writing_takes_no_more_memory_for_more_photos(tmp_path):

    program = (
        "import resource, sys; from tests.test_html_report import *\n"
        "page = Path(sys.argv[1])\n"
        "with open_output(page, MODELS) as writer:\n"
        "    for number in range(int(sys.argv[2])):\n"
        "        picture = {'width': 9, 'height': 9, 'jpeg': 'A' * 40_000, 'time': None}\n"
        "        name = f'{number}.jpg'\n"
        "        writer._pictures._kept[name] = [(Photo(name), picture)]\n"
        "        writer.write([scored(name, number % 100 / 100)])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    peaks = []
    for number in (50, 2000):  # 2 and 80 MB of pictures
        output = subprocess.check_output(
            [sys.executable, "-c", program, str(tmp_path / f"{number}.html"), str(number)],
            cwd=REPOSITORY,
            text=True,
        )
        peaks.append(int(output))
    assert peaks[1] - peaks[0] < 20  # MB
