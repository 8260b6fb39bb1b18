"""What docs/commands.md says of exit codes, of every script; and too little memory among it."""

import resource
import shutil
import signal
import subprocess
import sys

import pytest

from pipeline.common.out_of_memory import (
    LEAST_ADDRESS_SPACE,
    LEAST_TO_SCORE,
    LEAST_TO_TRAIN,
    is_out_of_memory,
)
from tests.conftest import FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.tiny_dataset import make_dataset

SCRIPTS = sorted(path.name for path in REPOSITORY.glob("*.py"))
MB = 1 << 20

pytestmark = pytest.mark.usefixtures("own_cache")


def under(limit: int, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a script as under `ulimit -v`, of so many bytes."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def assert_refused_in_a_sentence(done: subprocess.CompletedProcess, script: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{script}: ") and "ulimit -v" in last


# ---- 2: wrong use, missing weights, too little memory


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_use(infer, script):
    done = infer("--no-such-option", script=script)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr and script.encode() in done.stderr.splitlines()[-1]


def test_missing_weights(infer):
    done = infer(FACE_SAMPLE, "--weights", "nowhere")
    assert done.returncode == 2
    assert b"nowhere" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("limit", [100 * MB, 450 * MB])
def test_memory_that_does_not_suffice_for_the_libraries(script, limit):
    assert_refused_in_a_sentence(under(limit, script, "--help"), script)


@pytest.mark.parametrize("limit", [LEAST_ADDRESS_SPACE, 1150 * MB, 1400 * MB, LEAST_TO_SCORE - MB])
def test_memory_that_does_not_suffice_to_score(limit):
    assert_refused_in_a_sentence(under(limit, "infer_meso4.py", SAMPLES), "infer_meso4.py")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1560 * MB, 1700 * MB, 2000 * MB, 2500 * MB])
def test_memory_that_just_suffices_or_not(limit):
    done = under(limit, "infer_meso4.py", SAMPLES)
    assert done.returncode in (0, 1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert ("memory" in done.stdout + done.stderr) == (done.returncode > 0)


@pytest.mark.parametrize("script", ["train_meso.py", "train_vit.py"])
@pytest.mark.parametrize("limit", [1100 * MB, 3500 * MB, LEAST_TO_TRAIN - MB])
def test_memory_that_does_not_suffice_to_train(script, limit, tmp_path):
    data = make_dataset(tmp_path / "data", train=4, validate=4)
    done = under(limit, script, "--data", data, "--init", "none", "--output", tmp_path / "out")
    assert_refused_in_a_sentence(done, script)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Exception from src/core.cpp:117:\nstd::bad_alloc\n"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("libcv.so: cannot allocate memory in static TLS block"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        Exception("OpenCV(5.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate"),
    ],
)
def test_each_way_to_say_it_is_understood(error):
    assert is_out_of_memory(error)
    try:
        raise ValueError("the library could not be loaded") from error
    except ValueError as wrapped:
        assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error", [ValueError("wrong shape"), ImportError("No module named x"), OSError(2, "absent")]
)
def test_other_errors_are_none_of_memory(error):
    assert not is_out_of_memory(error)


# ---- 0, 1 and 130


@pytest.mark.parametrize("script", SCRIPTS)
def test_0_for_help(infer, script):
    done = infer("--help", script=script)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()


def test_0_where_all_is_scored_and_1_where_something_is_not(infer, tmp_path):
    shutil.copy(FACE_SAMPLE, tmp_path)
    assert infer(tmp_path, "--face", "none").returncode == 0
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    done = infer(tmp_path, "--face", "none", "--output", tmp_path / "rows.csv")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3, "the good one is there, too"


def test_130_after_ctrl_c(start_infer):
    process = start_infer("-", "--face", "none", "--batch-size", "1")
    process.stdin.write(f"{FACE_SAMPLE}\n".encode() * 400)
    process.stdin.flush()  # and it waits for more
    assert process.stdout.readline(), "it scores"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in said


def test_every_code_is_documented_once():
    text = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    for code in (0, 1, 2, 130):
        assert text.count(f"\n| {code} |") == 1
