"""Which photos and videos a scoring command means: files, folders, patterns, a list on stdin."""

import glob
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

from pipeline.photos.images import PHOTO_SUFFIXES
from pipeline.photos.path_lists import read_list
from pipeline.photos.photo import VIDEO_SUFFIXES, Photo


class PhotoFinder:
    """The photos that `find_photos` finds; iterate over it once."""

    def __init__(self, arguments: Iterable[str], stdin: TextIO | None = None):
        self.skipped = 0  # files so far that were left out: they end like neither photo nor video
        self._arguments = arguments
        self._stdin = stdin
        self._matched = 0  # photos and folders so far that the arguments lead to
        self._walked: set[tuple[int, int]] = set()  # folders, as device and inode
        self._named: set[tuple[tuple[int, int], str]] = set()  # files: their folder and name

    def __iter__(self) -> Iterator[Photo]:
        for argument in self._arguments:
            if argument == "-":
                for path in read_list((self._stdin or sys.stdin).buffer):
                    yield from self._literal(path)
            elif glob.has_magic(argument) and not os.path.lexists(argument):
                yield from self._pattern(argument)
            else:
                yield from self._literal(argument, once=True)

    def _literal(self, path: str, once: bool = False) -> Iterator[Photo]:
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in it
            yield Photo(path, _not_there(path))
        except OSError as error:
            yield Photo(
                path, f"This path cannot be reached ({error.strerror}); check its spelling."
            )
        else:
            if stat.S_ISDIR(mode) and not once and _is_root(path):
                yield Photo(
                    path,
                    "This is a whole drive, which a list must not name; name the folders in it "
                    "that hold the photos.",
                )
            elif stat.S_ISDIR(mode):
                yield from self._walk(path, self._walked)
            elif not once or self._is_new(path):
                yield Photo(path)

    def _pattern(self, pattern: str) -> Iterator[Photo]:
        matched, skipped = self._matched, self.skipped
        yield from self._deep(pattern) if "**" in Path(pattern).parts else self._flat(pattern)
        if self._matched == matched:
            why = (
                "No file matches this pattern; check the spelling."
                if self.skipped == skipped
                else "No file that matches this pattern ends like a photo or a video (.jpg, .mp4, "
                "…); name the files one by one to have them tried all the same."
            )
            yield Photo(pattern, why)

    def _flat(self, pattern: str) -> Iterator[Photo]:
        for path in sorted(glob.glob(pattern)):
            if os.path.isdir(path):
                self._matched += 1
                yield from self._walk(path, self._walked)
            elif not _is_wanted(path):
                self.skipped += 1
            else:
                self._matched += 1
                if self._is_new(path):
                    yield Photo(path)

    def _deep(self, pattern: str) -> Iterator[Photo]:
        """A pattern with `**`; glob.glob would never end where links lead in circles."""
        parts = Path(pattern).parts
        start = parts.index("**")
        head = os.path.join("", *parts[:start]) or os.curdir
        for top in sorted(glob.glob(head)):

            def wanted(path: str, top: str = top) -> bool:
                return _matches(Path(path).relative_to(top).parts, parts[start:])

            for photo in self._walk(top, set(), wanted):
                if photo.error or self._is_new(photo.path):
                    yield photo

    def _walk(
        self,
        top: str,
        walked: set[tuple[int, int]],
        wanted: Callable[[str], bool] = lambda _path: True,
    ) -> Iterator[Photo]:
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                identity = _identity(folder)
                if identity in walked:  # given twice, or a link that leads in a circle
                    continue
                with os.scandir(folder) as entries:
                    found = sorted(
                        (entry.name, _is_folder(entry))
                        for entry in entries
                        if not entry.name.startswith(".")
                    )
            except OSError as error:
                yield Photo(
                    folder,
                    f"This folder cannot be read ({error.strerror}); "
                    "change its permissions or leave it out.",
                )
                continue
            walked.add(identity)

            for name, is_folder in found:
                path = os.path.join(folder, name)
                if is_folder or not wanted(path):
                    continue
                if not _is_wanted(path):
                    self.skipped += 1
                    continue
                self._matched += 1
                if (identity, name) not in self._named:
                    yield Photo(path)
            folders.extend(
                os.path.join(folder, name) for name, is_folder in reversed(found) if is_folder
            )

    def _is_new(self, path: str) -> bool:
        """Whether neither this file nor, with all its photos, its folder has been met before."""
        folder, name = os.path.split(path)
        try:
            identity = _identity(folder or os.curdir)
        except OSError:  # gone since the pattern was matched: reading the photo says so
            return True
        in_walked = identity in self._walked and name[0] != "." and _is_wanted(path)
        if in_walked or (identity, name) in self._named:
            return False
        self._named.add((identity, name))
        return True


def find_photos(arguments: Iterable[str], stdin: TextIO | None = None) -> PhotoFinder:
    """Find the photos and videos that the arguments of a scoring command mean, one after the other.

    An argument is a photo or a video (tried whatever its ending), a folder, a pattern that the
    shell did not expand (`photos/**/*.jpg`; a file that really has such a name comes first), or
    `-`: a list of paths on `stdin` (see path_lists.read_list), none of them a whole drive. Folders
    are searched with all folders in them, sorted by name, links followed (but none to a whole
    drive) and no folder twice; there and among the matches of a pattern only files with an ending
    of `PHOTO_SUFFIXES` or `VIDEO_SUFFIXES` count. What is hidden is left out silently, other files
    are counted in `skipped`. What is given twice comes once; only lines of `stdin` are taken as
    they are, for their number has no limit.

    What does not exist, matches nothing or cannot be read comes as a `Photo` with an error sentence
    (without the path); the others go on. Only the names of one folder are in memory at any moment,
    besides those of the files that arguments and patterns name.
    """
    return PhotoFinder(arguments, stdin)


def _not_there(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return (
            "There is no such file or folder, and the name is not UTF-8; if a list has it, save "
            "the list as UTF-8."
        )
    return "There is no such file or folder; check the spelling."


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path, or a folder that it lies in, matches; both are given part by part."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(path[start:], pattern[1:]) for start in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _is_wanted(path: str) -> bool:
    """Whether a file that was found, not named, is taken for a photo or a video, by its ending."""
    ending = os.path.splitext(path)[1].lower()
    if ending == ".ts":  # of transport streams, and of programs in TypeScript
        return not _is_text(path)
    return ending in PHOTO_SUFFIXES | VIDEO_SUFFIXES


def _is_text(path: str) -> bool:
    """Whether a file begins without any zero byte. Of what cannot be read, reading it as a video
    says why."""
    try:
        if not os.path.isfile(path):  # nothing is opened that would wait for a writer
            return False
        with open(path, "rb") as file:
            return b"\0" not in file.read(4096)
    except OSError:
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir() and not (entry.is_symlink() and _is_root(entry.path))
    except OSError:  # a link to itself: reading it as a photo says what is wrong
        return False


def _is_root(folder: str) -> bool:
    """Whether a folder, links followed, is the top of a file system, as are / and C:\\."""
    real = os.path.realpath(folder)
    return os.path.dirname(real) == real
