"""The Dockerfile without Docker: its rules, and its steps as far as they can be run here."""

import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import FACE_SAMPLE, REPOSITORY

TRAINING_ONLY = {"torch", "tensorflow", "keras", "timm", "transformers", "matplotlib", "pytest"}


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, in their order."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def arguments(instruction: str) -> list[str]:
    return [argument for name, argument in steps() if name == instruction]


def copies() -> list[tuple[list[str], str]]:
    """What is copied, and where to."""
    pairs = []
    for argument in arguments("COPY"):
        *sources, target = argument.split()
        pairs.append((sources, target))
    return pairs


def variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for argument in arguments("ENV") for pair in argument.split())


def test_it_follows_the_rules():
    names = [name for name, _ in steps()]
    assert names[0] == "FROM" and names.count("FROM") == 1
    assert not {"ADD", "VOLUME"} & set(names), "COPY copies; nothing is to be kept"
    image, tag = arguments("FROM")[0].split(":")
    assert (image, tag != "latest") == ("python", True)
    (user,) = arguments("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number, so that an orchestrator can check"
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    for name in ("CMD", "HEALTHCHECK"):
        command = arguments(name)[0].partition("CMD ")[2] or arguments(name)[0]
        assert json.loads(command)[0] == "python", f"{name} needs no shell"
    assert not [
        argument for argument in arguments("RUN") if "curl" in argument or "wget" in argument
    ]


def test_it_installs_what_scoring_and_the_page_need():
    (install,) = [argument for argument in arguments("RUN") if "pip install" in argument]
    assert install.endswith("-r requirements-web.txt")
    required = ""
    for name in ("requirements-infer.txt", "requirements-web.txt"):
        assert any(name in sources for sources, _ in copies())
        required += (REPOSITORY / name).read_text()
    packages = set(re.findall(r"^([\w-]+)", required, re.MULTILINE))
    assert {"openvino", "fastapi", "uvicorn"} <= packages
    assert not packages & TRAINING_ONLY


def test_what_is_copied_is_there_and_not_ignored():
    ignored = [
        line
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*", "all is left out but what is named"
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for sources, _ in copies():
        for source in sources:
            assert (REPOSITORY / source).exists()
            assert source in let_in
    shipped = [path for path in (REPOSITORY / "weights").glob("*/*") if path.is_file()]
    left_out = [line for line in ignored[1:] if not line.startswith("!")]
    for path in shipped:
        name = path.relative_to(REPOSITORY).as_posix()
        matching = [rule for rule in left_out if fnmatch.fnmatch(name, rule) and "*/" in rule]
        assert not matching, f"without {name} the detector fails its checksums"


@pytest.fixture
def built(tmp_path) -> Path:
    """What the image's /app would hold, for nobody to write."""
    app = tmp_path / "app"
    app.mkdir()
    for sources, target in copies():
        for source in sources:
            path = REPOSITORY / source
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.h5.part")
                shutil.copytree(path, app / target, ignore=ignore)
            else:
                shutil.copy(path, app / target)
    for path in [app, *app.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for folder in list(tmp_path.parents)[:2]:
        folder.chmod(folder.stat().st_mode | 0o011)  # pytest's own are for the user alone
    yield app
    for path in [app, *app.rglob("*")]:
        path.chmod(0o755)


def as_the_user() -> dict:
    """How to start a process as the Dockerfile's user; as oneself where that cannot be.

    Only root may, and only where Python does not lie in a folder of root's own.
    """
    user = int(arguments("USER")[0].split(":")[0])
    as_user = {"user": user, "group": user, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import cv2"], check=True, cwd="/", **as_user)
    except (PermissionError, subprocess.CalledProcessError):
        return {}
    return as_user


@pytest.mark.skipif(sys.platform == "win32", reason="the image is one of Linux")
def test_its_steps_make_a_service_that_writes_nothing(built, tmp_path):
    """With the variables of the Dockerfile, except for the host and the cache, and as its user
    where that can be."""
    cache = tmp_path / "tmpfs"
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = sorted(built.rglob("*"))
    environment = {
        "PATH": os.environ["PATH"],
        **variables(),
        "DETECTOR_HOST": "127.0.0.1",
        "DETECTOR_PORT": str(port),
        "XDG_CACHE_HOME": str(cache),
    }
    process = subprocess.Popen(
        [sys.executable, *json.loads(arguments("CMD")[0])[1:]],
        cwd=built,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **as_the_user(),
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.TransportError:
                assert process.poll() is None, process.stdout.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        answer = httpx.post(
            f"http://127.0.0.1:{port}/api/score",
            files={"files": (FACE_SAMPLE.name, FACE_SAMPLE.read_bytes())},
            timeout=120,
        )
        assert answer.json()["rows"][0]["fake_probability"] is not None
        check = arguments("HEALTHCHECK")[0].partition("CMD ")[2].replace(":8000", f":{port}")
        healthy = subprocess.run([sys.executable, *json.loads(check)[1:]], timeout=60)
        assert healthy.returncode == 0
    finally:
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=60)[0].decode()
    assert "Traceback" not in output
    assert sorted(built.rglob("*")) == before
