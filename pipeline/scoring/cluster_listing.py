"""The photos that a cluster shall score: those in folders, here or in object stores, and in lists.

There may be hundreds of millions, so they come one after the other: what is in memory is one folder
at most, and of a store that lists in parts one part.
"""

import io
import itertools
import os
from collections.abc import Iterable, Iterator

import pyarrow
import pyarrow.fs

from pipeline.common.errors import UserError
from pipeline.photos.images import PHOTO_SUFFIXES
from pipeline.photos.inputs import find_photos
from pipeline.photos.path_lists import read_list

PART = 10_000  # entries of a folder that are sorted at a time


def list_photos(sources: Iterable[str], lists: Iterable[str]) -> Iterator[str]:
    """The photos below the sources, and those named in the lists, one a line.

    A source is a photo or folder of this machine, or the address of a folder in an object store
    (s3://, gs://, hdfs://, …). A list may lie in one, too. Local paths come out absolute. Folders
    are listed one by one, each sorted (where it is larger, in parts of PART), so that the same
    photos come in the same order.
    Raises UserError where a source cannot be read.
    """
    for source in sources:
        if "://" in source:
            yield from _list_store(source)
        else:
            yield from map(os.path.abspath, _list_here(source))
    for source in lists:
        files, path = file_system(source)
        try:
            with files.open_input_stream(path) as stream:
                for name in read_list(io.BufferedReader(stream)):
                    yield name if "://" in name else os.path.abspath(name)
        except OSError as error:
            raise UserError(f"{source}: this list cannot be read ({error}).") from error


def file_system(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Where an address lies: pyarrow's own stores, and beyond them whatever fsspec knows."""
    if "://" not in address:
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(address)
    try:
        return pyarrow.fs.FileSystem.from_uri(address)
    except pyarrow.ArrowInvalid:  # not one of its schemes
        pass
    try:
        import fsspec

        files, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address}: this kind of address cannot be opened ({error}).") from error
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files)), path


def _list_here(folder: str) -> Iterator[str]:
    for photo in find_photos([folder]):
        if photo.error:
            raise UserError(f"{photo.path}: {photo.error}")
        if _ends_like_photo(photo.path):
            yield photo.path


def _list_store(source: str) -> Iterator[str]:
    files, folder = file_system(source)
    folder, start = folder.rstrip("/"), source.rstrip("/")
    if isinstance(files, pyarrow.fs.LocalFileSystem):  # where links may lead in circles
        paths = _list_here(folder)
    else:
        paths = _walk(files, folder, source)
    for path in paths:
        yield start + path[len(folder) :]


def _walk(files: pyarrow.fs.FileSystem, top: str, source: str) -> Iterator[str]:
    """The photos below a folder, the deeper folders last."""
    folders = [top]
    while folders:
        entries = _entries(files, folders.pop(), source)
        deeper: list[str] = []
        while part := list(itertools.islice(entries, PART)):
            part.sort(key=lambda info: info.path)
            for info in part:
                if info.type == pyarrow.fs.FileType.Directory:
                    deeper.append(info.path)
                elif info.type == pyarrow.fs.FileType.File and _ends_like_photo(info.path):
                    yield info.path
        folders.extend(sorted(deeper, reverse=True))


def _entries(
    files: pyarrow.fs.FileSystem, folder: str, source: str
) -> Iterator[pyarrow.fs.FileInfo]:
    """What lies in a folder. pyarrow's own stores list it at once (some 200 MB a million objects);
    those of Python may do it in parts, which pyarrow would collect if it were asked."""
    selector = pyarrow.fs.FileSelector(folder)
    try:
        if isinstance(files, pyarrow.fs.PyFileSystem):
            yield from files.handler.get_file_info_selector(selector)
        else:
            yield from files.get_file_info(selector)
    except OSError as error:
        raise UserError(f"{source}: this cannot be listed ({error}).") from error


def _ends_like_photo(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in PHOTO_SUFFIXES
