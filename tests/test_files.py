"""Files and folders stay whole, whatever happens while they are written."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.files import (
    atomic_write,
    quiet_stderr,
    recover_folder,
    replace_folder,
    sha256_of,
)

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST_NAME = "😀" * 62 + ".csv"  # 252 bytes of the 255 that file systems allow


def run_and_expect_kill(program: str, *arguments: Path) -> None:
    """Run a Python program that kills itself with signal 9."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL


def make_folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file.txt").write_text(content)
    return path


def test_a_file_appears_whole_and_its_folder_is_made(tmp_path):
    path = tmp_path / "ünï" / "写真.txt"
    with atomic_write(path) as file:
        file.write("naïve 😀\n")
        assert not path.exists()
    assert path.read_bytes() == "naïve 😀\n".encode()
    with atomic_write(path, "wb") as file:
        file.write(b"\0\xff")
    assert path.read_bytes() == b"\0\xff"
    assert os.listdir(path.parent) == [path.name]


def test_the_longest_name_that_the_file_system_allows(tmp_path):
    path = tmp_path / LONGEST_NAME
    with atomic_write(path) as file:
        file.write("long")
    assert path.read_text() == "long"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write("half of the ne")
        file.flush()
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_exception_before_there_was_a_file_leaves_none(tmp_path):
    with pytest.raises(ValueError), atomic_write(tmp_path / "file.txt"):
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_a_program_killed_in_the_middle_of_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    run_and_expect_kill(
        """
import os, signal, sys
from pipeline.common.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write("half of the ne" * 100_000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
""",
        path,
    )
    assert path.read_text() == "old"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path, umask, mode):
    path = tmp_path / "file.txt"
    program = (
        "import sys; from pipeline.common.files import atomic_write as a\nwith a(sys.argv[1]): pass"
    )
    subprocess.run([sys.executable, "-c", program, path], cwd=REPOSITORY, umask=umask, check=True)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_sha256_of_known_content(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # the first example of FIPS 180-2
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_is_replaced_whole(tmp_path):
    target = make_folder(tmp_path / "weights", "old")
    (target / "only in the old one").touch()
    replace_folder(make_folder(tmp_path / "new", "new"), target)
    assert os.listdir(tmp_path) == ["weights"]
    assert os.listdir(target) == ["file.txt"]
    assert (target / "file.txt").read_text() == "new"


def test_a_folder_comes_where_none_was(tmp_path):
    replace_folder(make_folder(tmp_path / "new", "new"), tmp_path / "weights")
    assert (tmp_path / "weights" / "file.txt").read_text() == "new"


def killed_at_rename(number: int, new: Path, target: Path) -> None:
    """Run `replace_folder` in a program that is killed just before its rename of that number."""
    run_and_expect_kill(
        """
import os, signal, sys
from pathlib import Path
from pipeline.common.files import replace_folder
new, target, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def kill_at_rename(event, arguments):
    global left
    if event == "os.rename":
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
sys.addaudithook(kill_at_rename)
replace_folder(new, target)
""",
        new,
        target,
        Path(str(number)),
    )


@pytest.mark.parametrize("rename", [0, 1])
def test_a_replacement_killed_before_either_rename_keeps_the_old_folder(tmp_path, rename):
    target = make_folder(tmp_path / "weights", "old")
    killed_at_rename(rename, make_folder(tmp_path / "new", "new"), target)
    recover_folder(target)
    assert (target / "file.txt").read_text() == "old"
    recover_folder(target)  # a second time there is nothing to do
    replace_folder(tmp_path / "new", target)
    assert (target / "file.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["weights"]


def test_a_replacement_killed_while_the_old_folder_is_deleted_keeps_the_new_one(tmp_path):
    target = make_folder(tmp_path / "weights", "new")
    make_folder(tmp_path / ".weights.previous", "old")
    recover_folder(target)
    assert (target / "file.txt").read_text() == "new"
    replace_folder(make_folder(tmp_path / "newer", "newer"), target)
    assert (target / "file.txt").read_text() == "newer"
    assert os.listdir(tmp_path) == ["weights"]


def test_the_current_folder_is_recovered_and_replaced_by_any_of_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(make_folder(tmp_path / "weights", "old"))
    recover_folder(Path("."))
    assert Path("file.txt").read_text() == "old"
    monkeypatch.chdir(tmp_path)
    replace_folder(make_folder(tmp_path / "new", "new"), Path("../" + tmp_path.name + "/weights"))
    assert sorted(os.listdir(tmp_path)) == ["weights"]


def test_recovering_a_path_that_cannot_be_is_no_error(tmp_path):
    for path in (Path("/"), tmp_path / ("x" * 255), tmp_path / ("x" * 300), tmp_path / "a" / "b"):
        recover_folder(path)
    assert os.listdir(tmp_path) == []


def test_quiet_stderr_drops_what_is_written_past_python_and_then_comes_back():
    program = """
import os, sys
from pipeline.common.files import quiet_stderr
print("before", file=sys.stderr)
with quiet_stderr():
    os.write(2, b"from C++")
    print("from Python", file=sys.stderr)
os.write(2, b"after\\n")
print("after too", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True)
    assert done.stderr == b"before\nafter\nafter too\n"


def test_quiet_stderr_lets_exceptions_through_and_restores_the_stream():
    before = os.fstat(2), len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), quiet_stderr():
        assert os.fstat(2) != before[0]
        raise ZeroDivisionError
    assert (os.fstat(2), len(os.listdir("/proc/self/fd"))) == before
