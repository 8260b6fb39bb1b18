"""The page in a real browser, by real clicks on the real service with the shipped detectors."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.detectors.detector import WEIGHTS
from pipeline.service.installed import find_installed
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


def choose_and_check(page, *photos: Path | dict) -> None:
    page.set_input_files("#files", list(photos))
    page.click("text=Check the photos")
    page.wait_for_selector(".result")


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
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{problem['id']}: {problem['nodes'][0]['html'][:200]}"
        for problem in found
        if problem["impact"] in ("serious", "critical")
    ]


def test_upload_with_the_recommended_model(open_page):
    page = open_page()
    recommended = find_installed(WEIGHTS)[0].name
    assert page.locator("input[name=model]:checked").get_attribute("value") == recommended
    choose_and_check(page, SAMPLES / "two_people.jpg")
    assert page.locator(".result h3").inner_text() == "two_people.jpg"
    assert page.locator(".box").count() == 2
    assert page.locator(".judgement").count() == 2
    words = page.locator(".judgement .verdict strong").all_inner_texts()
    assert set(words) <= {"Looks real", "Looks fake", "Undecided"}
    assert re.search(rf"{recommended}: \w+, \d+\.\d %", page.locator("#status").inner_text())
    assert "trained on" in page.locator(".judgement details summary").first.inner_text()


def test_boxes_lie_on_the_faces_of_a_rotated_photo(open_page):
    page = open_page()
    choose_and_check(page, SAMPLES / "real_hopper_rotated.jpg")
    photo, box = (page.locator(css).bounding_box() for css in ("svg.photo image", ".box"))
    assert photo["height"] > photo["width"]
    assert photo["x"] < box["x"] < box["x"] + box["width"] < photo["x"] + photo["width"]
    centre = (box["y"] + box["height"] / 2 - photo["y"]) / photo["height"]
    assert 0.2 < centre < 0.6


def test_several_photos_side_by_side_by_all_models(open_page):
    page = open_page()
    page.check("input[value=all]")
    choose_and_check(page, FACE_SAMPLE, SAMPLES / "no_face_coffee.webp", SAMPLES / "README.md")
    assert page.locator(".result").count() == 3
    assert page.locator(".judgement").count() == len(find_installed(WEIGHTS))
    assert page.locator(".result").nth(1).locator(".verdict.none").count() == 1
    assert "a text file" in page.locator(".result").nth(2).inner_text()
    assert page.locator("#visits li").count() == 3


@pytest.mark.parametrize(("event", "target"), [("drop", "#drop"), ("paste", "body")])
def test_drop_and_paste(open_page, event, target):
    page = open_page()
    give(page, event, target, SAMPLES / "real_collins.jpg")
    page.wait_for_selector(".result")
    assert page.locator(".result h3").inner_text() == "real_collins.jpg"


def test_a_phone_offers_its_camera(open_page):
    assert open_page().locator("#camera").is_hidden()
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.locator("#camera").is_visible()
    assert page.locator("#camera").get_attribute("capture") == "user"
    page.set_input_files("#camera", FACE_SAMPLE)
    page.tap("text=Check the photos")
    page.wait_for_selector(".result")
    assert page.locator(".judgement").count() == 1


def test_a_sample_is_one_click_away(open_page):
    page = open_page()
    page.click("text=two people")
    page.wait_for_selector(".result")
    assert page.locator(".judgement").count() == 2


def test_downloads(open_page, tmp_path):
    page = open_page()
    choose_and_check(page, SAMPLES / "two_people.jpg")
    with page.expect_download() as started:
        page.click("text=Download as JSON")
    started.value.save_as(tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["face"] for row in rows] == [0, 1]
    shown = page.locator(".probability b").all_inner_texts()
    assert shown == [f"{row['fake_probability'] * 100:.1f} %" for row in rows]
    with page.expect_download() as started:
        page.click("text=Download as an image")
    started.value.save_as(tmp_path / "verdict.png")
    with Image.open(tmp_path / "verdict.png") as image:
        assert image.width == 1024
        assert image.height > 512
        assert len(np.unique(np.asarray(image.convert("L"))[-30:])) > 5, "no words below the photo"


def test_history_outlives_a_reload_and_can_be_forgotten(open_page):
    page = open_page()
    choose_and_check(page, FACE_SAMPLE)
    page.click("#visits button")
    assert page.evaluate("document.activeElement.className") == "result"
    page.reload()
    assert FACE_SAMPLE.name in page.locator("#visits li").inner_text()
    page.click("text=Forget it")
    assert page.locator("#history").is_hidden()
    page.reload()
    assert page.locator("#visits li").count() == 0


def test_broken_and_huge_files_get_a_sentence(open_page):
    page = open_page()
    choose_and_check(
        page, {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff\xe0 cut"}
    )
    assert page.locator(".result .verdict.error").count() == 1
    page.set_input_files(
        "#files", {"name": "huge.png", "mimeType": "image/png", "buffer": bytes(3_000_000)}
    )
    page.click("text=Check the photos")
    page.wait_for_selector("#error:not(:empty)")
    assert re.search(r"huge\.png.* 2 MB", page.locator("#error").inner_text())
    assert page.locator(".result").count() == 1
    page.set_input_files("#files", [])
    page.click("text=Check the photos")
    assert "photo" in page.locator("#error").inner_text()
    assert "huge.png" not in page.locator("#error").inner_text()


def test_a_name_is_shown_and_never_run(open_page):
    page = open_page()
    name = "<img src=x onerror=document.title='run'>.jpg"
    title = page.title()
    choose_and_check(page, {"name": name, "mimeType": "image/jpeg", "buffer": b"no photo"})
    assert page.locator(".result h3").inner_text() == name
    assert page.title() == title


def test_a_service_that_is_gone_is_said(browser, service):
    page = browser.new_page()
    page.goto(service.address)
    page.context.set_offline(True)
    page.set_input_files("#files", FACE_SAMPLE)
    page.click("text=Check the photos")
    page.wait_for_selector("#error:not(:empty)")
    assert "cannot be reached" in page.locator("#error").inner_text()
    page.close()


def test_without_javascript(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#another").is_hidden()
    page.set_input_files("#files", FACE_SAMPLE)
    page.click("text=Check the photos")
    assert page.locator(".result h3").inner_text() == FACE_SAMPLE.name
    assert page.locator(".judgement").count() == 1
    page.click("text=real collins")
    assert page.locator(".result h3").inner_text() == "real_collins.jpg"
    page.click("text=Check the photos")
    assert "photo" in page.locator("#error").inner_text()


def test_by_keyboard_alone(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#results"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.value") == "real_collins.jpg":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus cannot be seen"
    page.keyboard.press("Enter")
    page.wait_for_selector(".result")
    assert page.evaluate("document.activeElement.className") == "result"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    assert page.locator(".judgement details[open]").count() == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"color_scheme": "dark"},
        {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True},
    ],
    ids=["light", "dark", "narrow"],
)
def test_layouts_are_accessible(open_page, axe, options):
    page = open_page(**options)
    assert violations(page, axe) == []
    page.check("input[value=all]")
    choose_and_check(page, SAMPLES / "two_people.jpg", SAMPLES / "README.md")
    page.click("text=Generate a face")
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
        page.wait_for_selector(".result", timeout=TIMEOUT)
        assert "seed 5" in page.locator(".result h3").inner_text()
        page.click("text=Another face")
        page.wait_for_selector(".result:nth-of-type(2)")
        assert "seed 5," not in page.locator(".result h3").first.inner_text()
        page.close()


@pytest.mark.slow
def test_heat_map_and_its_slider(open_page):
    page = open_page()
    if not importlib.util.find_spec("pipeline.scoring.explanation"):
        assert page.locator("input[name=explain]").is_disabled()
        assert "requirements.txt" in page.locator("#heat-note").inner_text()
        pytest.skip("pipeline.scoring.explanation is not there yet")
    page.check("input[name=explain]")
    page.set_input_files("#files", FACE_SAMPLE)
    page.click("text=Check the photos")
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
    page.click("text=Check the photos")
    page.click("text=Stop")
    page.wait_for_selector("#status:text-is('Stopped.')")
    assert page.locator("#stop").is_hidden()
