"""Lists of paths, one a line, in whatever encoding a shell or an editor wrote them."""

import codecs
import os
from collections.abc import Iterator
from typing import BinaryIO

_MARKS = {  # UTF-32 before UTF-16: the mark of one begins like that of the other
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_HEAD = 8  # bytes that tell an encoding


def read_list(stream: BinaryIO) -> Iterator[str]:
    """The paths of a list, each as soon as it has arrived; empty lines are left out.

    A line ends with a line feed, after a carriage return or not; where there is a NUL, as in the
    lists of `find -print0`, paths end with a NUL instead. What begins with a byte-order mark is
    decoded as the mark says; without one, UTF-16 and UTF-32 are known by the zeros of their Latin
    letters. All other lists are taken byte for byte, so that names in any encoding pass through.
    """
    head = b""
    while len(head) < _HEAD and (chunk := stream.read1(1 << 16)):
        head += chunk
    mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
    encoding = _MARKS[mark] if mark else _by_its_zeros(head)
    # A list that was put together from several has a mark at the beginning of each.
    inner_mark = codecs.BOM_UTF8 if mark else b""
    separator = rest = b""
    for chunk in _as_bytes_of_paths(head.removeprefix(mark), stream, encoding):
        separator = separator or (b"\0" if b"\0" in chunk else b"\n")
        *lines, rest = (rest + chunk).split(separator)
        yield from _paths(lines, inner_mark)
    yield from _paths([rest], inner_mark)


def _by_its_zeros(head: bytes) -> str:
    """UTF-16 or UTF-32 where the beginning of a list cannot be anything else, else "utf-8".

    As single bytes it would be a list, separated by NUL, of names of one byte each.
    """
    if len(head) < _HEAD:
        return "utf-8"
    # No sign has a number above 0x10FFFF.
    if not any(head[3::4]) and max(head[2::4]) <= 0x10:
        return "utf-32-le"
    if not any(head[0::4]) and max(head[1::4]) <= 0x10:
        return "utf-32-be"
    first, second = head[0::2], head[1::2]
    if b"\0\0\0" not in first and b"\0\0\0" not in second:
        return "utf-8"
    return "utf-16-le" if second.count(0) > first.count(0) else "utf-16-be"


def _as_bytes_of_paths(head: bytes, stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    if encoding == "utf-8":
        yield head
        while chunk := stream.read1(1 << 16):
            yield chunk
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(head).encode()
    while chunk := stream.read1(1 << 16):
        yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()


def _paths(lines: list[bytes], inner_mark: bytes) -> Iterator[str]:
    for line in lines:
        line = line.removesuffix(b"\r").removeprefix(inner_mark)  # lists made on Windows
        if line:
            yield _path(line)


def _path(line: bytes) -> str:
    try:
        return os.fsdecode(line)
    except UnicodeDecodeError:  # on Windows, where names are text; there is no file of this name
        return line.decode("utf-8", "replace")
