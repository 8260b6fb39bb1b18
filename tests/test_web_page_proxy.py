"""The page in a real browser behind a proxy that names the service's own address as its host."""

import pytest

from tests.browser import needs_chromium, watched_pages
from tests.conftest import FACE_SAMPLE
from tests.reverse_proxy import Way, small_proxy
from tests.web_service import free_port, serving, write_tiny_generator

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(own_cache, tmp_path_factory):
    """Where a visitor sees the page: below a path that the proxy cuts off."""
    folder = tmp_path_factory.mktemp("proxy")
    write_tiny_generator(folder / "generator")
    port = free_port()
    settings = {
        "root_path": "/det",
        "allowed_origins": f"http://127.0.0.1:{port}",
        "generator": folder / "generator",
    }
    with (
        serving(own_cache, **settings) as running,
        small_proxy(port, running.port, Way("/det"), folder) as proxy,
    ):
        yield f"{proxy}/det/"


@pytest.fixture
def open_page(browser, address):
    """Nothing may be asked for but what lies below the path."""
    with watched_pages(browser, address) as open_page:
        yield open_page


def test_the_page_has_its_looks_and_its_samples(open_page):
    page = open_page()
    assert page.evaluate("document.styleSheets.length") == 1
    assert page.evaluate("document.styleSheets[0].cssRules.length") > 10
    page.locator(".sample-list img").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.sample-list img').naturalWidth > 0")


def test_a_photo_a_sample_and_a_generated_face(open_page):
    page = open_page()
    page.set_input_files("#files", FACE_SAMPLE)
    page.wait_for_selector(".result:not(.waiting)")
    assert page.locator(".result h2").inner_text() == FACE_SAMPLE.name
    page.click("text=Take a sample")
    page.click("text=real collins")
    page.wait_for_selector(".result:nth-of-type(2)")
    page.wait_for_selector("#stop", state="hidden")
    page.click("text=Generate a face")
    page.fill("#seed", "5")
    page.click("text=Generate and check")
    page.wait_for_selector(".result:nth-of-type(3)")
    page.wait_for_selector("#stop", state="hidden")
    assert "seed 5" in page.locator(".result h2").first.inner_text()
    assert page.locator("#error").inner_text() == ""


def test_without_javascript(open_page, address):
    page = open_page(java_script_enabled=False)
    page.set_input_files("#files", FACE_SAMPLE)
    page.click("text=Check the photos")
    assert page.locator(".result h2").inner_text() == FACE_SAMPLE.name
    assert page.url == address
    page.click("text=Take a sample")
    page.click("text=real collins")
    assert page.locator(".result h2").inner_text() == "real_collins.jpg"


def test_the_links_of_the_page_lead_somewhere(open_page, address):
    page = open_page()
    links = page.locator("footer a").evaluate_all("links => links.map(link => link.href)")
    assert links == [f"{address}openapi.json", f"{address}api/models"]
    assert [page.request.get(link).status for link in links] == [200, 200]


def test_what_the_proxy_refuses_is_said(open_page):
    page = open_page()
    large = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": bytes(2_000_000)}
    page.set_input_files("#files", large)  # nginx takes one megabyte, unless it is told otherwise
    page.wait_for_selector("#error:not(:empty)")
    assert "too large" in page.locator("#error").inner_text()
