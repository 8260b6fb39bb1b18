"""The web service as a program of its own, for tests that talk to it over the network."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from pipeline.requests.settings import Settings
from pipeline.service.routes import create_app
from tests.conftest import REPOSITORY
from tests.shared import SHARED


class Running:
    """A service that runs: where, as which process, and the file with what it has logged."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path):
        self.process = process
        self.port = port
        self.address = f"http://127.0.0.1:{port}"
        self._log = log

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(
    cache: Path, *options: str, by_uvicorn: bool = False, **settings: object
) -> Iterator[Running]:
    """Start backend.py, itself or by uvicorn's command, with options of either and with settings,
    named as in Settings; stop it at the end of the block."""
    port = free_port()
    variables = {f"DETECTOR_{name.upper()}": str(value) for name, value in settings.items()}
    arguments = ["-m", "uvicorn", "backend:app", f"--port={port}"] if by_uvicorn else ["backend.py"]
    log = cache / f"service-{port}.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments, *options],
            cwd=REPOSITORY,
            env=os.environ | variables | {"DETECTOR_PORT": str(port), "XDG_CACHE_HOME": str(cache)},
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    running = Running(process, port, log)
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{running.address}/healthz")
                break
            assert process.poll() is None, running.log()
            time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def client(**settings) -> TestClient:
    """The service in this process, with settings; for a block, which runs it."""
    return TestClient(create_app(Settings(**settings)), base_url="http://localhost")


def files(*paths: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """The photos as parts of a form."""
    return [("files", (path.name, path.read_bytes())) for path in paths]


def metric(address: str, name: str) -> float:
    """What the service counts under this name."""
    text = httpx.get(f"{address}/metrics").text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE).group(1))


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until the condition holds, which it must within a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write_tiny_generator(folder: Path) -> None:
    """A generator of 64 × 64 pixels with random weights, in a generator's folder; or skip."""
    pytest.importorskip(
        "pipeline.service.generation", reason="pipeline.service.generation is not there yet"
    )
    material = SHARED / "stylegan3"
    if not material.is_dir():
        pytest.skip("needs the tiny generators in ../shared, which are not published")
    import torch

    from pipeline.service.generation import save_generator

    arguments = json.loads((material / "stylegan3_t_config.json").read_text())
    with np.load(material / "stylegan3_t_weights.npz") as weights:
        state = {name: torch.from_numpy(weights[name]) for name in weights.files}
    save_generator(arguments, state, folder, "random weights")
