"""What tests share, and how they keep to one framework in a process.

TensorFlow and torch are never both in one process, so pytest runs twice: the files in TENSORFLOW in
a process that has TensorFlow, all others in one that may have torch. A plain `pytest` does both;
`--framework` one of them.
"""

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

# Where the tests run in the background, a shell may have told them to ignore Ctrl-C, and what they
# start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY / "samples"
DETECTOR = REPOSITORY / "weights" / "meso4"
FACE_SAMPLE = SAMPLES / "real_hopper_face.heic"  # 256 × 256, nothing but a face

# The files whose tests train or build Keras networks in pytest's own process.
TENSORFLOW = {
    "test_incremental.py",
    "test_keras_backbones.py",
    "test_meso.py",
    "test_runtime.py",
    "test_training.py",
}
FRAMEWORKS = ("tensorflow", "torch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--framework",
        choices=FRAMEWORKS,
        help="only the test files whose process has this framework (default: one after the other)",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run what is asked for in this process, or in two where it needs both frameworks."""
    if config.option.help or config.option.version or hasattr(config, "workerinput"):
        return None
    if config.option.framework:
        return None
    wanted = [one for one in FRAMEWORKS if any(_may_hold(path, one) for path in config.args)]
    if len(wanted) == 1:
        config.option.framework = wanted[0]
        return None
    codes = []
    for one in wanted:
        others = {path for path in config.args if not _may_hold(path, one)}
        arguments = [each for each in config.invocation_params.args if each not in others]
        command = [sys.executable, "-m", "pytest", *arguments, f"--framework={one}"]
        codes.append(subprocess.call(command))
    nothing = pytest.ExitCode.NO_TESTS_COLLECTED  # which -k and -m may do to one of them
    return max((code for code in codes if code != nothing), default=nothing)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files of the other framework; None: as pytest decides."""
    one = config.option.framework
    return True if one and not _may_hold(str(collection_path), one) else None


def _may_hold(argument: str, framework: str) -> bool:
    """Whether a file, folder or `file::test` may hold tests that run with this framework."""
    path = Path(argument.split("::")[0])
    return path.suffix != ".py" or (path.name in TENSORFLOW) == (framework == "tensorflow")


@pytest.fixture(autouse=True)
def one_framework():
    """No test, nor anything that it calls, leaves both frameworks in this process."""
    yield
    assert sum(sys.modules.get(name) is not None for name in FRAMEWORKS) < 2


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
            timeout=900,
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


@pytest.fixture(scope="module")
def browser():
    """Chromium; for tests that are marked with browser.needs_chromium."""
    from tests.browser import started_browser

    with started_browser() as chromium:
        yield chromium
