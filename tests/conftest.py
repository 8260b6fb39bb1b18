"""What tests share."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Two test processes whose networks both use all cores spend a fifth of their time waiting for each
# other. Read when torch is imported, here and in what the tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# TensorFlow and triton (which timm, peft and torch.compile import) bring an LLVM each: in one
# process with both, as here, Python crashes unless triton comes first.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# Where the tests run in the background, a shell may have told them to ignore Ctrl-C, and what they
# start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY / "samples"
DETECTOR = REPOSITORY / "weights" / "meso4"
FACE_SAMPLE = SAMPLES / "real_hopper_face.heic"  # 256 × 256, nothing but a face


@pytest.fixture(scope="session")
def own_cache(tmp_path_factory) -> Path:
    """A folder for compiled graphs and imported weights, in place of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def infer(own_cache, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a script to its end, from a folder that is not the repository."""

    def infer(*arguments: object, script: str = "infer_meso4.py", stdin: bytes = b""):
        return subprocess.run(
            [sys.executable, REPOSITORY / script, *map(str, arguments)],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            timeout=300,
        )

    return infer


@pytest.fixture
def start_infer(own_cache, tmp_path) -> Callable[..., subprocess.Popen]:
    """Start a script with an open standard input; what still runs at the end is killed."""
    started: list[subprocess.Popen] = []

    def start_infer(*arguments: object, script: str = "infer_meso4.py") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, REPOSITORY / script, *map(str, arguments)],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Where the tests run in the background, a shell may have told them to ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start_infer
    for process in started:
        process.kill()
        process.communicate()


def links(folder: Path, pictures: list[Path], number: int) -> list[Path]:
    """Fill a new folder with `number` links to the pictures, in turn; their paths, sorted."""
    folder.mkdir()
    paths = []
    for index in range(number):
        picture = pictures[index % len(pictures)]
        paths.append(folder / f"{index:05}{picture.suffix}")
        os.symlink(picture, paths[-1])
    return paths
