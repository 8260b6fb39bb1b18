"""What a visitor sends is shown to nobody else: not on the disk, not in the log, not as markup."""

import subprocess
import sys

import httpx
import pytest
from starlette.testclient import TestClient

from pipeline.requests.guard import Guard
from pipeline.requests.metrics import Metrics
from pipeline.requests.settings import Settings
from pipeline.requests.uploads import display_name
from tests.conftest import FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.web_service import files, serving


@pytest.fixture(scope="module")
def service(own_cache):
    with serving(own_cache) as running:
        yield running


def test_nothing_is_written_and_no_name_is_logged(own_cache):
    code = (
        "import sys\n"
        "from starlette.testclient import TestClient\n"
        "from backend import app\n"
        "written = []\n"
        "def watch(event, arguments):\n"
        "    if event == 'open' and set(arguments[1] or '') & set('wax+'):\n"
        "        written.append(arguments[0])\n"
        "    elif event.startswith('tempfile.'):\n"
        "        written.append(event)\n"
        "with TestClient(app, base_url='http://localhost') as browser:\n"
        "    files = {'files': ('first.jpg', open(sys.argv[1], 'rb'))}\n"
        "    browser.post('/api/score', files=files)\n"  # loads the detector
        "    large = bytes(5_000_000)\n"
        "    files = [('files', ('private.jpg', open(sys.argv[1], 'rb').read() + large))] * 2\n"
        "    sys.addaudithook(watch)\n"
        "    answer = browser.post('/api/score', files=files, data={'page': '1'})\n"
        "    assert answer.json()['rows'][0]['fake_probability'], answer.text\n"
        "    files[1] = ('files', ('other.jpg', files[1][1][1]))\n"
        "    answer = browser.post('/api/record', files=files)\n"
        "    assert answer.content.startswith(b'PK'), answer.text\n"
        "print(written)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, SAMPLES / "real_collins.jpg"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


def test_logs_hold_no_names(service):
    parts = [("files", ("a very private name.jpg", b"no photo")), *files(FACE_SAMPLE)]
    httpx.post(f"{service.address}/api/score", files=parts, timeout=60)
    httpx.post(f"{service.address}/", files=parts, timeout=60)
    httpx.post(f"{service.address}/api/record", files=parts, timeout=60)
    assert "POST /api/score" in service.log()
    assert "private" not in service.log()
    assert FACE_SAMPLE.stem not in service.log()
    assert "Traceback" not in service.log()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("face.jpg", "face.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\face.jpg", "face.jpg"),
        ("a\r\nSet-Cookie: x\x00\x1b[31m.jpg", "aSet-Cookie: x[31m.jpg"),
        ("evil\u202egpj.exe", "evilgpj.exe"),
        ("", "photo 7"),
        (None, "photo 7"),
        ("..", ".."),
    ],
)
def test_names_are_for_display_only(sent, shown):
    assert display_name(sent, 7) == shown


def test_a_long_name_is_shortened():
    name = display_name("x" * 5000 + ".jpeg", 1)
    assert len(name) <= 120
    assert name.endswith(".jpeg")


def test_names_are_escaped(service):
    name = "<img src=x onerror=alert(1)>.jpg"
    page = httpx.post(service.address, files=[("files", (name, b"x"))], timeout=60).text
    assert "&lt;img src=x" in page
    assert "<img src=x" not in page


def test_what_nobody_foresaw_is_a_sentence_and_quotes_nobody(caplog):
    async def failing(_scope, _receive, _send) -> None:
        raise ValueError("a private name")

    guarded = Guard(failing, Settings(), Metrics(lambda: 0))
    answer = TestClient(guarded, base_url="http://localhost").get("/")
    assert (answer.status_code, list(answer.json())) == (500, ["error"])
    assert "private" not in answer.text + caplog.text
    assert "unforeseen ValueError at" in caplog.text
