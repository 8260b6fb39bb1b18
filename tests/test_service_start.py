"""How the service starts and ends, and what it says where it cannot."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.common.errors import UserError
from pipeline.detectors.detector import WEIGHTS
from pipeline.photos.inputs import find_photos
from pipeline.requests.settings import Settings, describe_settings, read_settings
from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.web_service import Running, client, files, metric, serving, wait_for

PHOTOS = [Path(photo.path) for photo in find_photos([str(SAMPLES)])]


def test_settings_come_from_the_environment():
    settings = read_settings({"DETECTOR_PORT": "9000", "DETECTOR_MAX_FILE_MB": "0.5", "HOME": "/"})
    assert (settings.port, settings.max_file_mb, settings.host) == (9000, 0.5, "127.0.0.1")
    for name in ("PORT", "TOKEN", "MAX_MEGAPIXELS"):
        assert f"DETECTOR_{name}" in describe_settings()


def test_an_option_counts_before_the_environment():
    environment = {"DETECTOR_PORT": "9000", "DETECTOR_PLACES": "3"}
    settings = read_settings(environment, {"port": "9001", "root_path": "/det", "host": None})
    assert (settings.port, settings.places, settings.root_path) == (9001, 3, "/det")
    assert settings.host == "127.0.0.1"


WRONG_SETTINGS = [
    ("port", "http"),
    ("port", "65536"),
    ("max_file_mb", "0"),
    ("max_file_mb", "nan"),
    ("max_body_mb", "inf"),
    ("places", "-1"),
    ("allowed_origins", "faces.example"),
    ("allowed_origins", "https://faces.example/det"),
    ("allowed_origins", "https://a.example,*"),
    ("allowed_origins", "null"),
    ("allowed_hosts", "https://faces.example"),
    ("allowed_hosts", "faces.example:8000"),
    ("allowed_hosts", "faces.*"),
    ("root_path", "det"),
    ("root_path", "/det/../x"),
    ("root_path", "/det//x"),
    ("root_path", '/"><script>'),
    ("root_path", "https://faces.example/det"),
    ("root_path", "/api"),
    ("trusted_proxies", "*"),
    ("trusted_proxies", "10.0.0.7/8"),
    ("trusted_proxies", "proxy.example"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_SETTINGS)
def test_wrong_settings_are_refused(name, value):
    variable, option = f"DETECTOR_{name.upper()}", f"--{name.replace('_', '-')}"
    with pytest.raises(UserError) as refused:
        read_settings({variable: value})
    assert variable in str(refused.value)
    with pytest.raises(UserError) as refused:
        read_settings({}, {name: value})
    assert option in str(refused.value)


def test_a_misspelt_setting_is_refused():
    with pytest.raises(UserError, match=r"DETECTOR_MAX_FILEMB.*DETECTOR_MAX_FILE_MB"):
        read_settings({"DETECTOR_MAX_FILEMB": "3"})


def start_backend(*arguments: str, hidden: str = "", **settings: str) -> tuple[int, str]:
    """The exit code and the standard error of a backend.py that cannot start."""
    program = "; ".join(
        [
            "import runpy, sys",
            f"sys.modules[{hidden!r}] = None" if hidden else "pass",  # as if it were not installed
            "runpy.run_path('backend.py', run_name='__main__')",
        ]
    )
    return ended(["-c", program, *arguments], settings)


def start_by_uvicorn(**settings: str) -> tuple[int, str]:
    return ended(["-m", "uvicorn", "backend:app", "--port", "0"], settings)


def ended(arguments: list[str], settings: dict[str, str]) -> tuple[int, str]:
    """The exit code and the standard error of a Python that ends by itself."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    "package", ["uvicorn", "fastapi", "jinja2", "python_multipart", "prometheus_client"]
)
def test_a_package_that_is_not_installed_is_named(package):
    code, said = start_backend(hidden=package)
    assert code == 2
    assert f" {package}," in said and "pip install -r requirements-web.txt" in said
    assert said.count("\n") == 1


def test_a_wrong_setting_ends_in_a_sentence():
    for code, said in (
        start_backend(DETECTOR_PORT="http"),
        start_by_uvicorn(DETECTOR_PORT="http"),
    ):
        assert code == 2
        assert said.startswith("backend.py: DETECTOR_PORT=http: ")
        assert said.count("\n") == 1
    code, said = start_backend("--max-files", "none")
    assert code == 2
    assert said.startswith("backend.py: --max-files none: ")


def test_an_option_that_there_is_not_is_named():
    code, said = start_backend("--threshold", "0.5")
    assert code == 2
    assert "--threshold" in said


def test_all_settings_but_the_secret_one_are_options():
    ran = subprocess.run(
        [sys.executable, "backend.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 0
    variables = {line.split()[0] for line in describe_settings().splitlines()}
    assert "DETECTOR_ALLOWED_ORIGINS" in variables
    for variable in variables - {"DETECTOR_TOKEN"}:
        option = variable.removeprefix("DETECTOR_").replace("_", "-").lower()
        assert f"--{option} X" in ran.stdout
        assert f"({variable};" in " ".join(ran.stdout.split())
    assert "--token" not in ran.stdout


def test_the_documentation_has_each_setting():
    text = (REPOSITORY / "docs" / "service.md").read_text(encoding="utf-8")
    rows = {
        line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `DETECTOR")
    }
    assert len(rows) == len(dataclasses.fields(Settings))
    for field in dataclasses.fields(Settings):
        row = rows[f"DETECTOR_{field.name.upper()}"]
        assert field.metadata["meaning"] in row
        assert f"`--{field.name.replace('_', '-')}`" in row or field.name == "token"
        default = str(field.default).replace(str(WEIGHTS), "weights")
        assert f"| {f'`{default}`' if default else 'none'} |" in row


def damaged(folder: Path, name: str, content: bytes | None) -> Path:
    """A folder of weights with one detector, of which a file is replaced or removed."""
    shutil.copytree(DETECTOR, folder / "meso4")
    if content is None:
        (folder / "meso4" / name).unlink()
    else:
        (folder / "meso4" / name).write_bytes(content)
    return folder / "meso4" / name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", b"no graph"),
        ("model.onnx", None),
        ("README.md", b"changed"),
        ("detector.json", b"{"),
        ("detector.json", b"[]"),
        ("detector.json", b"\xff\xfe"),
    ],
)
def test_damaged_weights_are_a_sentence_at_the_start(tmp_path, name, content):
    path = damaged(tmp_path, name, content)
    for code, said in (
        start_backend(DETECTOR_WEIGHTS=str(tmp_path)),
        start_by_uvicorn(DETECTOR_WEIGHTS=str(tmp_path)),
    ):
        assert code == 2
        assert str(path) in said
        assert said.count("\n") == 1


def test_a_detector_without_figures_alone_is_a_sentence_at_the_start(tmp_path):
    description = json.loads((DETECTOR / "detector.json").read_text())
    del description["metrics"]
    damaged(tmp_path, "detector.json", json.dumps(description).encode())
    code, said = start_backend(DETECTOR_WEIGHTS=str(tmp_path))
    assert code == 2
    assert str(tmp_path / "meso4") in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_folder_of_weights_that_cannot_be_read_is_a_sentence(tmp_path, kind):
    weights = tmp_path / "weights"
    if kind == "a file":
        weights.write_bytes(b"")
    code, said = start_backend("--weights", str(weights))
    assert code == 2
    assert str(weights) in said and "DETECTOR_WEIGHTS" in said
    assert said.count("\n") == 1


def test_without_a_detector_the_page_says_what_to_do_and_one_is_found_later(tmp_path, own_cache):
    with serving(own_cache, weights=tmp_path) as running:
        refused = httpx.post(f"{running.address}/api/score", files=files(FACE_SAMPLE), timeout=60)
        assert refused.status_code == 503
        for text in (httpx.get(running.address).text, refused.json()["error"]):
            assert "DETECTOR_WEIGHTS" in text
            assert "python train_efficientnet.py" in text
            assert str(tmp_path) not in text
        assert httpx.get(f"{running.address}/api/models").json() == []
        assert httpx.get(f"{running.address}/healthz").status_code == 200
        shutil.copytree(DETECTOR, tmp_path / "meso4")
        assert 'value="meso4" checked' in httpx.get(running.address).text
        scored = httpx.post(f"{running.address}/api/score", files=files(FACE_SAMPLE), timeout=60)
        assert scored.json()["models"] == ["meso4"]


def test_a_detector_that_is_damaged_later_is_refused_without_its_path(tmp_path):
    shutil.copytree(DETECTOR, tmp_path / "meso4")
    with client(weights=str(tmp_path)) as browser:
        (tmp_path / "meso4" / "model.onnx").write_bytes(b"no graph")
        answer = browser.post("/api/score", files=files(FACE_SAMPLE))
        assert answer.status_code == 503
        assert "cannot be loaded" in answer.json()["error"]
        assert str(tmp_path) not in answer.text


def test_the_shipped_weights_pass():
    with client(weights=str(WEIGHTS)) as browser:
        alone = [each for each in browser.get("/api/models").json() if not each["members"]]
        assert len(alone) == len(list(WEIGHTS.glob("*/detector.json")))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_in_use_is_a_sentence(host):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, said = start_backend("--host", host, "--port", port)
    assert code == 2
    assert port in said and host in said and "DETECTOR_PORT" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.invalid", "not a name"])
def test_an_address_that_is_not_of_this_machine_is_a_sentence(host):
    code, said = start_backend(DETECTOR_HOST=host)
    assert code == 2
    assert host in said and "DETECTOR_HOST" in said
    assert said.count("\n") == 1


def test_the_address_of_the_page_is_told(own_cache):
    with serving(own_cache, "--root-path", "/det", "--host", "localhost") as running:
        assert f"http://127.0.0.1:{running.port}/det/" in running.log()
        assert httpx.get(f"http://localhost:{running.port}/healthz").status_code == 200


def test_uvicorns_own_command_starts_it(own_cache):
    with serving(own_cache, by_uvicorn=True) as running:
        answer = httpx.post(f"{running.address}/api/score", files=files(FACE_SAMPLE), timeout=60)
        assert answer.json()["rows"][0]["face"] == 0


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)], ids=["TERM", "INT"]
)
def test_it_answers_before_it_stops(own_cache, sent, code):
    with serving(own_cache) as running, concurrent.futures.ThreadPoolExecutor() as pool:
        answer = pool.submit(
            httpx.post, f"{running.address}/api/score", files=files(*PHOTOS), timeout=120
        )
        wait_for(lambda: metric(running.address, "detector_requests_in_progress") == 1)
        running.process.send_signal(sent)
        assert answer.result().status_code == 200
        assert len(answer.result().json()["photos"]) == len(PHOTOS)
        assert running.process.wait(60) == code
        assert "Traceback" not in running.log()


@contextlib.contextmanager
def half_a_request(running: Running) -> Iterator[socket.socket]:
    """A request whose sender keeps the service waiting."""
    with socket.create_connection(("127.0.0.1", running.port)) as slow:
        slow.sendall(
            b"POST /api/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        wait_for(lambda: metric(running.address, "detector_requests_in_progress") == 1)
        yield slow


def test_a_second_ctrl_c_does_not_wait(own_cache):
    with serving(own_cache, body_seconds=300, shutdown_seconds=300) as running:
        with half_a_request(running):
            running.process.send_signal(signal.SIGINT)
            wait_for(lambda: "CTRL+C" in running.log())
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(60) == 0
        assert "Traceback" not in running.log()


def test_requests_that_take_too_long_for_a_stop_are_told_so(own_cache):
    with serving(own_cache, body_seconds=300, shutdown_seconds=1) as running:
        with half_a_request(running) as slow:
            running.process.send_signal(signal.SIGINT)
            slow.settimeout(60)
            assert slow.recv(1000).startswith(b"HTTP/1.1 503 ")
            assert running.process.wait(60) == 0
        assert "Traceback" not in running.log()


def test_ctrl_c_while_nothing_happens(own_cache):
    with serving(own_cache) as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 0
        assert "Traceback" not in running.log()
