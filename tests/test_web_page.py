"""The page in a real browser, by real clicks on the real service with the shipped detectors."""

import importlib.util
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.detectors.detector import WEIGHTS
from pipeline.rows.record import read_record
from pipeline.scoring.verification import verify
from pipeline.service.installed import find_installed
from pipeline.service.results import WORDS
from tests.browser import TIMEOUT, needs_chromium, watched_pages
from tests.conftest import FACE_SAMPLE, SAMPLES
from tests.web_service import serving, write_tiny_generator

pytestmark = needs_chromium

AXE = "axe-core@4.10"


@pytest.fixture(scope="module")
def service(own_cache):
    settings = {"max_file_mb": 2, "generator": own_cache / "no generator"}
    with serving(own_cache, **settings) as running:
        yield running


@pytest.fixture
def open_page(browser, service):
    with watched_pages(browser, f"{service.address}/") as open_page:
        yield open_page


@pytest.fixture(scope="session")
def axe(tmp_path_factory) -> str:
    """The script of axe-core, from the npm registry."""
    if not shutil.which("npm"):
        pytest.skip("axe-core comes with npm, which is not installed")
    folder = tmp_path_factory.mktemp("axe")
    arguments = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", AXE]
    fetched = subprocess.run(arguments, cwd=folder, capture_output=True, timeout=300)
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if fetched.returncode or not script.exists():
        pytest.skip("axe-core cannot be fetched with npm")
    return script.read_text(encoding="utf-8")


def choose(page, *photos: Path | dict) -> None:
    """Choose photos, and wait for the results of all."""
    page.set_input_files("#files", list(photos))
    wait_for_results(page)


def wait_for_results(page) -> None:
    page.wait_for_selector(".result:not(.waiting)")
    page.wait_for_selector("#stop", state="hidden")


def wait_until(page, condition: Callable[[], bool]) -> None:
    """Wait while the browser goes on, until the condition holds."""
    for _ in range(TIMEOUT // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it never came true")


def give(page, event: str, target: str, photo: Path) -> None:
    """Drop or paste a photo."""
    page.evaluate(
        """([event, target, name, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
            const init = {bubbles: true, cancelable: true};
            document.querySelector(target).dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", {...init, clipboardData: data})
                : new DragEvent(event, {...init, dataTransfer: data}));
        }""",
        [event, target, photo.name, list(photo.read_bytes())],
    )


def violations(page, axe: str) -> list[str]:
    """What axe finds that is serious."""
    page.evaluate(axe)
    # Chosen in the browser: the whole answer repeats photos, and takes minutes to hand over.
    return page.evaluate(
        """() => axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations
            .filter((problem) => ["serious", "critical"].includes(problem.impact))
            .map((problem) => `${problem.id}: ${problem.nodes[0].html.slice(0, 200)}`))"""
    )


def test_a_photo_is_scored_by_the_recommended_two_as_soon_as_it_is_chosen(open_page):
    page = open_page()
    recommended = "vit+efficientnet_lite0"
    assert page.locator("input[name=model]:checked").get_attribute("value") == recommended
    choose(page, SAMPLES / "two_people.jpg")
    assert page.locator(".result h2").inner_text() == "two_people.jpg"
    assert page.locator(".box").count() == 2
    assert page.locator(".judgement").count() == 2
    words = page.locator(".judgement .verdict strong").all_inner_texts()
    assert set(words) <= set(WORDS.values())
    headline = page.locator(".result .head .verdict").inner_text()
    assert headline == "Nothing found that speaks for fake, in 2 faces"
    assert page.locator("#status").text_content() == f"two_people.jpg: {headline}."
    for rests_on in page.locator(".judgement details").all():
        rests_on.locator("summary").click()
        text = rests_on.inner_text()
        assert "vit and efficientnet_lite0 as one" in text
        assert text.count("was trained on") == 2


def test_the_score_is_shown_as_a_share_of_real_faces(open_page):
    page = open_page()
    page.click("#options summary")
    page.check("input[value=efficientnet_lite0]")
    choose(page, SAMPLES / "fake_collins_face_on_hopper.jpg")
    shares = r"Most real faces score|About 1 in [\d,]+ real faces scores"
    assert re.fullmatch(rf"({shares}) as high\.", page.locator(".share").inner_text())
    said = page.locator(".scale svg").get_attribute("aria-label")
    assert page.locator(".share").inner_text() in said and "looks fake from 1 in" in said
    ticks = page.locator(".tick-words").all_text_contents()
    assert ticks == ["1 in 10", "1 in 100", "1 in 1,000"]
    marker, scale = (page.locator(css).bounding_box() for css in (".marker", ".scale svg"))
    assert scale["x"] <= marker["x"] < scale["x"] + scale["width"]


def test_boxes_lie_on_the_faces_of_a_rotated_photo(open_page):
    page = open_page()
    choose(page, SAMPLES / "real_hopper_rotated.jpg")
    photo, box = (page.locator(css).bounding_box() for css in ("svg.photo image", ".box"))
    assert photo["height"] > photo["width"]
    assert photo["x"] < box["x"] < box["x"] + box["width"] < photo["x"] + photo["width"]
    centre = (box["y"] + box["height"] / 2 - photo["y"]) / photo["height"]
    assert 0.2 < centre < 0.6


def test_several_photos_side_by_side_by_all_models(open_page):
    page = open_page()
    page.click("#options summary")
    page.check("input[value=all]")
    choose(page, FACE_SAMPLE, SAMPLES / "no_face_coffee.webp", SAMPLES / "README.md")
    names = page.locator(".result h2").all_inner_texts()
    assert names == [FACE_SAMPLE.name, "no_face_coffee.webp", "README.md"]
    assert page.locator(".judgement").count() == len(find_installed(WEIGHTS))
    assert page.locator(".result").nth(1).locator(".verdict.no-face").count() == 1
    assert "a text file" in page.locator(".result").nth(2).inner_text()
    assert page.locator("#visits li").count() == 3
    assert re.match("3 photos: .*1 × no face found", page.locator("#status").inner_text())


def test_of_several_photos_each_is_shown_as_it_comes(open_page):
    page = open_page()
    held = []
    page.route("**/api/score", lambda route: held.append(route))
    page.set_input_files("#files", [FACE_SAMPLE, SAMPLES / "README.md", FACE_SAMPLE])
    page.wait_for_selector(".result.waiting >> nth=2")
    wait_until(page, lambda: len(held) == 2)
    held[1].continue_()
    page.wait_for_selector(".result:nth-child(2) .verdict.error")
    assert page.locator(".result.waiting").count() == 2
    assert page.locator("#bar").get_attribute("value") == "1"
    assert re.match("1 of 3 photos .*README.md", page.locator("#status").inner_text())
    wait_until(page, lambda: len(held) == 3)
    held[2].continue_()
    page.wait_for_selector(".result:nth-child(3) .judgement")
    assert page.locator(".result:nth-child(1).waiting").count() == 1
    page.click("text=Stop")
    page.wait_for_selector("#status:text-is('Stopped.')")
    assert page.locator(".result").count() == 2 and page.locator(".waiting").count() == 0


def test_where_the_service_is_busy_the_others_wait_and_are_scored(open_page):
    page = open_page()
    busy = {"error": "Too many requests; try again in 1 seconds."}
    refused = []

    def first_refused(route):
        if refused:
            route.continue_()
        else:
            refused.append(route)
            route.fulfill(status=429, headers={"Retry-After": "1"}, json=busy)

    page.route("**/api/score", first_refused)
    choose(page, FACE_SAMPLE, SAMPLES / "README.md")
    assert len(refused) == 1
    assert page.locator(".judgement").count() == 1 and page.locator(".verdict.error").count() == 1


def test_the_same_photos_again_with_another_detector(open_page):
    page = open_page()
    choose(page, FACE_SAMPLE)
    page.click("#options summary")
    page.check("input[value=meso4]")
    page.click("#again")
    page.wait_for_selector(".result >> nth=1")
    wait_for_results(page)
    newest = page.locator(".result").first
    assert newest.locator("h2").inner_text() == FACE_SAMPLE.name
    assert newest.locator(".judgement").get_attribute("aria-label") == "meso4"


@pytest.mark.parametrize(("event", "target"), [("drop", "footer"), ("paste", "body")])
def test_from_drop_or_paste_to_a_verdict_without_a_click(open_page, event, target):
    page = open_page()
    give(page, event, target, SAMPLES / "fake_hopper_face_on_collins.jpg")
    wait_for_results(page)
    assert page.locator(".result h2").inner_text() == "fake_hopper_face_on_collins.jpg"
    assert page.locator(".result .head .verdict").inner_text() == "Looks fake"
    in_view = page.locator(".result .head .verdict").bounding_box()
    assert 0 <= in_view["y"] < page.viewport_size["height"] / 2
    assert page.locator("#samples[open]").count() == page.locator("#options[open]").count() == 0


def test_a_phone_offers_its_camera(open_page):
    assert open_page().locator("#camera").is_hidden()
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.locator("#camera").is_visible()
    assert page.locator("#camera").get_attribute("capture") == "user"
    page.set_input_files("#camera", FACE_SAMPLE)
    wait_for_results(page)
    assert page.locator(".judgement").count() == 1


def test_a_sample_is_one_click_away(open_page):
    page = open_page()
    page.click("text=two people")
    wait_for_results(page)
    assert page.locator(".judgement").count() == 2


def test_downloads(open_page, tmp_path):
    page = open_page()
    choose(page, SAMPLES / "two_people.jpg")
    with page.expect_download() as started:
        page.click("text=Download as JSON")
    started.value.save_as(tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["face"] for row in rows] == [0, 1]
    shown = page.locator(".probability b").all_text_contents()
    assert shown == [f"{row['fake_probability'] * 100:.1f} %" for row in rows]
    with page.expect_download() as started:
        page.click("text=Download as an image")
    started.value.save_as(tmp_path / "verdict.png")
    with Image.open(tmp_path / "verdict.png") as image:
        assert image.width == 1024
        assert image.height > 512
        assert len(np.unique(np.asarray(image.convert("L"))[-30:])) > 5, "no words below the photo"


def test_that_a_verdict_holds_is_tried_unless_that_is_turned_off(open_page, axe):
    page = open_page()
    page.click("#options summary")
    page.check("input[value=meso4]")
    choose(page, SAMPLES / "fake_collins_face_on_hopper.jpg")
    holding = page.locator(".evidence .holding")
    assert holding.locator("dd").inner_text().startswith("No, so none is given: ")
    assert page.locator(".result .head .verdict").inner_text() == WORDS["uncertain"]
    marker, zone = (page.locator(css).bounding_box() for css in (".marker", ".zone-uncertain"))
    assert marker["x"] < zone["x"], "the score is not shown where it lies"
    assert violations(page, axe) == []
    page.uncheck("#stability")
    page.click("#again")
    page.wait_for_selector(".result >> nth=1")
    wait_for_results(page)
    assert page.locator(".result .head .verdict").first.inner_text() == WORDS["real"]
    assert holding.count() == 1


def test_a_record_is_of_what_was_shown_whatever_was_chosen_since(open_page, tmp_path):
    page = open_page()
    page.click("#options summary")
    page.check("input[value=meso4]")
    page.check("#explain")
    photo = SAMPLES / "real_collins.jpg"
    choose(page, photo)
    page.uncheck("#explain")
    page.uncheck("#stability")
    page.check("input[value=mesoinception4]")
    with page.expect_download() as download:
        page.click("text=Save a record")
    assert download.value.suggested_filename == "record.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    record = read_record(tmp_path / "report.json")
    rows = page.evaluate("JSON.parse(sessionStorage.visits)[0].rows")
    assert record.photos[0].rows == [pytest.approx(row, abs=1e-6) for row in rows]
    assert rows[0]["model"] == "meso4" and rows[0]["stability"] is not None
    assert verify(record, [str(photo)]).problems == []
    assert "record.zip" in page.locator("#status").inner_text()
    report = page.context.new_page()
    report.goto((tmp_path / "report.html").as_uri())
    assert report.locator("article").count() == 1
    assert record.photos[0].heat_maps == [{"row": 0, "file": "row 0"}]
    assert report.locator("img.heat-map").evaluate("image => image.naturalWidth") == 512


def test_a_record_that_cannot_be_made_is_said(open_page):
    page = open_page()
    choose(page, FACE_SAMPLE)
    busy = {"error": "The service is busy; try again in a few seconds."}
    page.route("**/api/record", lambda route: route.fulfill(status=503, json=busy))
    page.click("text=Save a record")
    page.wait_for_selector("#error:not(:empty)")
    assert page.locator("#error").inner_text() == busy["error"]
    assert page.locator("text=Save a record").is_enabled()


def test_who_knows_better_can_say_so(browser, own_cache, tmp_path, axe):
    with serving(own_cache, reports=tmp_path / "reported") as running:
        page = browser.new_page()
        page.goto(running.address)
        page.click("#options summary")
        page.check("input[value=meso4]")
        choose(page, SAMPLES / "fake_collins_face_on_hopper.jpg")
        assert page.locator(".wrong button").all_inner_texts() == ["It is real", "It is a fake"]
        assert violations(page, axe) == []
        page.click("text=It is a fake")
        page.wait_for_selector(".wrong:has-text('Kept as fake')")
        page.close()
    assert len(list((tmp_path / "reported" / "fake").iterdir())) == 1


def test_history_outlives_a_reload_and_can_be_forgotten(open_page):
    page = open_page()
    choose(page, FACE_SAMPLE)
    page.click("#visits button")
    assert page.evaluate("document.activeElement.className") == "result"
    assert page.locator("body.answered").count() == 1
    page.reload()
    assert FACE_SAMPLE.name in page.locator("#visits li").inner_text()
    page.click("text=Forget it")
    assert page.locator("#history").is_hidden()
    page.reload()
    assert page.locator("#visits li").count() == 0


def test_broken_and_huge_files_get_a_sentence(open_page):
    page = open_page()
    choose(
        page, {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff\xe0 cut"}
    )
    assert page.locator(".result .verdict.error").count() == 1
    huge = {"name": "huge.png", "mimeType": "image/png", "buffer": bytes(3_000_000)}
    page.set_input_files("#files", huge)
    page.wait_for_selector("#error:not(:empty)")
    assert re.search(r"huge\.png.* 2 MB", page.locator("#error").inner_text())
    assert page.locator(".result").count() == 1
    choose(page, {"name": "again.png", "mimeType": "image/png", "buffer": bytes(9)}, huge)
    assert page.locator("#error").inner_text() == ""
    assert "2 MB" in page.locator(".result").nth(1).inner_text()
    assert "1 × not looked at" in page.locator("#status").inner_text()


def test_a_name_is_shown_and_never_run(open_page):
    page = open_page()
    name = "<img src=x onerror=document.title='run'>.jpg"
    title = page.title()
    choose(page, {"name": name, "mimeType": "image/jpeg", "buffer": b"no photo"})
    assert page.locator(".result h2").inner_text() == name
    assert page.title() == title


def test_a_service_that_is_gone_is_said(browser, service):
    page = browser.new_page()
    page.goto(service.address)
    page.context.set_offline(True)
    page.set_input_files("#files", [FACE_SAMPLE, FACE_SAMPLE])
    page.wait_for_selector("#error:not(:empty)")
    assert page.locator(".result").count() == 0
    assert "cannot be reached" in page.locator("#error").inner_text()
    page.close()


@pytest.mark.parametrize("width", [1200, 360])
def test_without_javascript(open_page, width):
    page = open_page(java_script_enabled=False, viewport={"width": width, "height": 800})
    assert page.locator("#another").is_hidden()
    page.set_input_files("#files", FACE_SAMPLE)
    page.click("text=Check the photos")
    assert page.locator(".result h2").inner_text() == FACE_SAMPLE.name
    assert page.locator(".judgement").count() == 1
    assert page.title().startswith(f"{FACE_SAMPLE.name}: ")
    assert page.locator(".result:focus").count() == 1, "a reader is not taken to the result"
    assert page.locator(".share").count() == 1
    page.click("text=Take a sample")
    page.click("text=real collins")
    assert page.locator(".result h2").inner_text() == "real_collins.jpg"
    page.click("text=Check the photos")
    assert "photo" in page.locator("#error").inner_text()
    assert page.title().startswith("Not checked")


def file_chooser(page, key: str):
    """The dialog that a key opens where the focus is. Chromium 156 without a screen now and then
    opens none for a click that has reached the page: then the key is pressed again."""
    opened = []
    page.on("filechooser", lambda chooser: opened.append(chooser))
    for _ in range(24):
        page.keyboard.press(key)
        page.wait_for_timeout(2000)
        if opened:
            return opened[0]
    pytest.fail(f"{key} opens no dialog")


def test_by_keyboard_alone(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#results"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    outline = "getComputedStyle(document.activeElement.labels[0]).outlineStyle"
    assert page.evaluate(outline) != "none", "the focus cannot be seen"
    file_chooser(page, "Enter").set_files(SAMPLES / "real_collins.jpg")
    wait_for_results(page)
    assert page.evaluate("document.activeElement.className") == "result"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    assert page.locator(".judgement details[open]").count() == 1
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "model":
            break
        if page.evaluate("document.activeElement.textContent") == "Detector and options":
            page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    assert page.locator("input[name=model]:checked").get_attribute("value") == "vit"


def test_what_is_said_to_a_screen_reader(open_page):
    page = open_page()
    choose(page, FACE_SAMPLE)
    status = page.locator("#status")
    assert status.get_attribute("role") == "status"
    assert status.text_content().startswith(f"{FACE_SAMPLE.name}: Nothing found")
    assert status.text_content().endswith(page.locator(".share").inner_text())
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map((each) => each.tagName)")
    assert levels[:2] == ["H1", "H2"]
    assert page.locator("svg.photo").get_attribute("aria-label").startswith("The photo")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"color_scheme": "dark"},
        {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
        {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True},
    ],
    ids=["light", "dark", "narrow", "narrower"],
)
def test_layouts_are_accessible(open_page, axe, options):
    page = open_page(**options)
    assert violations(page, axe) == []
    page.click("#options summary")
    page.check("input[value=all]")
    choose(page, SAMPLES / "two_people.jpg", SAMPLES / "README.md")
    page.click("text=Generate a face")
    for closed in page.locator(".judgement summary").all()[:2]:
        closed.click()
    assert violations(page, axe) == []
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 0, "the page scrolls sideways"


def test_generating_says_how_to_get_a_generator(open_page):
    page = open_page()
    page.click("text=Generate a face")
    page.click("text=Another face")
    page.wait_for_selector("#error:not(:empty)")
    assert "python convert_stylegan3.py" in page.locator("#error").inner_text()
    assert page.locator("#seed").input_value() != "0"


@pytest.mark.slow
def test_generate_and_another_face(browser, own_cache, tmp_path):
    write_tiny_generator(tmp_path / "generator")
    with serving(own_cache, generator=tmp_path / "generator") as running:
        page = browser.new_page()
        page.goto(running.address)
        page.click("text=Generate a face")
        page.fill("#seed", "5")
        page.click("text=Generate and check")
        title = page.locator(".result h2").first
        page.wait_for_selector(".result h2:has-text('seed 5,')", timeout=TIMEOUT)
        page.click("text=Another face")
        page.wait_for_selector(".result h2:has-text('seed'):not(:has-text('seed 5,'))")
        assert "generated face, seed" in title.inner_text()
        page.close()


@pytest.mark.slow
def test_heat_map_and_its_slider(open_page):
    page = open_page()
    if not importlib.util.find_spec("pipeline.scoring.explanation"):
        assert page.locator("input[name=explain]").is_disabled()
        assert "requirements.txt" in page.locator("#heat-note").inner_text()
        pytest.skip("pipeline.scoring.explanation is not there yet")
    page.click("#options summary")
    page.check("input[name=explain]")
    page.set_input_files("#files", FACE_SAMPLE)
    page.wait_for_selector(".heat-map", timeout=300_000)
    slider = page.locator(".opacity").first
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".heat-map").first.evaluate("e => getComputedStyle(e).opacity") == "0"
    page.keyboard.press("End")
    assert page.locator(".heat-map").first.evaluate("e => getComputedStyle(e).opacity") == "1"


def test_stop(open_page):
    page = open_page()
    page.route("**/api/score", lambda _route: None)  # an answer that never comes
    page.set_input_files("#files", FACE_SAMPLE)
    page.click("text=Stop")
    page.wait_for_selector("#status:text-is('Stopped.')")
    assert page.locator("#stop").is_hidden()
