"""The scripts run where Linux' own functions are missing and the console takes few characters."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.files import portable_name
from tests.conftest import FACE_SAMPLE, REPOSITORY, SAMPLES

SCRIPTS = sorted(path.name for path in REPOSITORY.glob("*.py"))
SOURCES = [
    *REPOSITORY.glob("*.py"),
    *(REPOSITORY / "pipeline").rglob("*.py"),
    *(REPOSITORY / "models").rglob("*.py"),
]

pytestmark = pytest.mark.usefixtures("own_cache")


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        timeout=300,
    )


# ---- consoles


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_help_can_be_shown_in_any_encoding(script, encoding):
    done = run(script, "--help", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode(encoding)
    assert f"python {script}" in text and "\\u2192" not in text


def test_a_table_of_names_that_the_console_cannot_show(tmp_path):
    names = ["写真.heic", "a→b.heic", "naïve.heic"]
    for name in names:
        shutil.copy(FACE_SAMPLE, tmp_path / name)
    (tmp_path / "кот.jpg").write_bytes(b"no photo")
    done = run("infer_meso4.py", tmp_path, "--face", "none", PYTHONIOENCODING="cp1252",
               PYTHONUTF8="0")  # fmt: skip
    assert done.returncode == 1, done.stderr.decode()
    table = done.stdout.decode("cp1252")
    for shown in (
        "\\u5199\\u771f.heic",
        "a\\u2192b.heic",
        "naïve.heic",
        "\\u043a\\u043e\\u0442.jpg",
    ):
        assert shown in table


def test_the_users_own_way_stays():
    done = run("train_vit.py", "--help", PYTHONIOENCODING="cp1252:replace", PYTHONUTF8="0")
    assert "? weights/vit/" in done.stdout.decode("cp1252")


# ---- functions that not every system has

ELSEWHERE = """
import os, runpy, signal, sys
import psutil  # which has a part for each system
for name in ("sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "fork", "sysconf",
             "getloadavg", "mkfifo", "killpg", "setsid", "posix_fadvise", "fdatasync"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGPIPE", "alarm"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_start_without_what_only_some_systems_have(script):
    done = run("-c", ELSEWHERE, script, "--help")
    assert done.returncode == 0, done.stderr.decode()


def test_photos_are_scored_without_it(tmp_path):
    rows = tmp_path / "rows.csv"
    done = run("-c", ELSEWHERE, "infer_meso4.py", SAMPLES, "--output", rows)
    assert done.returncode == 0, done.stderr.decode()
    assert len(rows.read_text(encoding="utf-8").splitlines()) > 9


def test_a_dataset_is_prepared_without_it(tmp_path):
    for label in ("real", "fake"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number, path in enumerate(sorted(SAMPLES.glob(f"{label}_*"))[:3]):
            shutil.copy(path, folder / f"{number}{path.suffix}")
    done = run("-c", ELSEWHERE, "prepare_dataset.py", tmp_path / "photos", "--output",
               tmp_path / "dataset")  # fmt: skip
    assert done.returncode in (0, 1), done.stderr.decode()
    assert list((tmp_path / "dataset").rglob("*.png"))
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_called_that_only_some_systems_have(path):
    """What is imported or asked for with hasattr where it may be missing is fine."""
    text = path.read_text(encoding="utf-8")
    for pattern in (
        r"%-[a-zA-Z]\b(?=[^\"']*\})",  # in a date's format, what glibc alone understands
        r"strftime\([^)]*%-",
        r"\bos\.(fork|forkpty|setsid|killpg|mkfifo|geteuid|getloadavg|O_DIRECTORY|sysconf)\b",
        r"\bsignal\.(SIGKILL|SIGHUP|SIGUSR1|alarm|setitimer)\b",
        r"\bpreexec_fn\b",
        r"^import (fcntl|resource|pwd|grp|termios)",
        r"(?<!os)\.rename\(",  # of pathlib: over an existing file it fails on Windows
        r"[\"']/(tmp|dev/null|dev/shm)\b",
    ):
        found = re.search(pattern, text, re.MULTILINE)
        assert not found, f"{path.name}: {found and found[0]}"


# ---- names


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("con", "_con"), ("CON.tar.gz", "_CON.tar.gz"), ("Aux", "_Aux"), ("nul .txt", "_nul .txt"),
        ("com1", "_com1"), ("LPT9.png", "_LPT9.png"), ("com10", "com10"), ("contact", "contact"),
        ("stylegan", "stylegan"), ("name. ", "name"), ("console.log", "console.log"),
    ],
)  # fmt: skip
def test_names_that_windows_keeps_for_devices(name, portable):
    assert portable_name(name) == portable


def test_a_generator_named_like_a_device_gets_another_folder(tmp_path):
    for label in ("real", "fake"):
        folder = tmp_path / "photos" / label / "aux"
        folder.mkdir(parents=True)
        for number, path in enumerate(sorted(SAMPLES.glob(f"{label}_*"))[:2]):
            shutil.copy(path, folder / f"con.{number}{path.suffix}")
    done = run("prepare_dataset.py", tmp_path / "photos", "--output", tmp_path / "dataset",
               "--face", "none")  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    written = [path.relative_to(tmp_path / "dataset") for path in
               (tmp_path / "dataset").rglob("*.png")]  # fmt: skip
    assert written
    for path in written:
        assert all(portable_name(part) == part for part in Path(path).parts)
