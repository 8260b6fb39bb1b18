"""Files that are either whole or not there: atomic writing, checksums, replacing a folder."""

import contextlib
import glob
import hashlib
import itertools
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

_DEVICES = re.compile(r"con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]", re.IGNORECASE)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path` that takes its place when the block ends well.

    Whoever reads `path` sees the old content or the new, never a part, even after a power cut or
    kill -9. If the block raises, the old file stays. Text is UTF-8. `mode` is "w" or "wb".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may have 255 bytes, which can be as few as 63 characters.
    temporary = path.parent / f".{path.name[:50]}.{secrets.token_hex(4)}"
    # Unlike tempfile's, a file that is opened has the permissions that the user's umask gives.
    file = open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8")  # noqa: SIM115
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def set_aside(path: Path) -> Path:
    """Rename a file to a free name, `<name>.bak`, `<name>.2.bak` and so on; its new path."""
    names = itertools.chain([".bak"], (f".{number}.bak" for number in itertools.count(2)))
    backups = (path.with_name(path.name + name) for name in names)
    backup = next(backup for backup in backups if not os.path.lexists(backup))
    os.rename(path, backup)
    return backup


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what C++ libraries write to standard error within the block, past Python's own stream.

    An exception is not affected: Python prints it after the block.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def portable_name(name: str) -> str:
    """A file's or folder's name as one that Windows takes, too: there CON, AUX, COM1 and the like
    are devices, whatever follows after a dot, and dots and spaces at the end are dropped."""
    name = name.rstrip(". ")
    return f"_{name}" if _DEVICES.fullmatch(name.partition(".")[0].rstrip()) else name


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until the files among the paths are on the disk."""
    mode = "rb+" if os.name == "nt" else "rb"  # Windows writes out only what is open for writing
    for path in paths:
        if path.is_file():
            with open(path, mode) as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Give the block a new folder to fill, which then replaces `target`.

    Until the end, and if the block raises or the program is killed, `target` stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(target)
    for unfinished in target.parent.glob(f".{glob.escape(target.name)}.*.new"):  # killed there
        shutil.rmtree(unfinished, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        yield new
        new.chmod(0o755)
        replace_folder(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in the place of `target`; both lie in the same file system.

    The old folder is set aside as `.<name>.previous` for the moment between the two renames.
    Were the program killed in that moment, `recover_folder` brings the old one back.
    """
    sync_files(new.rglob("*"))  # on the disk before their name is: a power cut may follow
    previous = _previous(target)
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(target, previous)
    os.rename(new, target)
    shutil.rmtree(previous, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Undo a `replace_folder` that was killed between its two renames."""
    previous = _previous(target)
    # os.path says no where the path is too long or barred; whoever reads the folder says why.
    if os.path.isdir(previous) and not os.path.exists(target):
        os.rename(previous, target)


def _previous(target: Path) -> Path:
    target = Path(os.path.abspath(target))  # "." has no name
    return target.parent / f".{target.name}.previous"
