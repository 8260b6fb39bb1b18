"""Chromium for the tests of the page, and pages on which nothing may go wrong unnoticed."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs the browser Chromium")

TIMEOUT = 120_000  # milliseconds


@contextlib.contextmanager
def started_browser() -> Iterator["sync_api.Browser"]:
    """Chromium, without a window."""
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def watched_pages(browser, address: str) -> Iterator[Callable]:
    """A function that opens a page below an address. At the end there must have been no complaint
    on the console (but for statuses that a test asks for), no error, no failed request, and no
    request to anywhere else."""
    contexts, complaints = [], []

    def check_request(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            complaints.append(f"a request to {request.url}")

    def check_console(said) -> None:
        if said.type in ("error", "warning") and "status of" not in said.text:
            complaints.append(said.text)

    def open_page(path: str = "", **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("request", check_request)
        page.on("pageerror", lambda error: complaints.append(f"an error: {error}"))
        page.on("console", check_console)
        assert page.goto(address + path).ok
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
