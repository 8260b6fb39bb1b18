"""The few fields of EXIF that say where a picture comes from, read within bounds.

A file may hold thousands of entries that all point to the same megabyte. Only the entries that are
asked for are read, and not more of each than a name or the settings of a generator take.
"""

import struct
from typing import BinaryIO

from pipeline.origin.generators import generator_named_in, generator_of_settings
from pipeline.origin.source_types import CAMERA, GENERATED, plain

MAKE, MODEL, SOFTWARE, USER_COMMENT = 0x010F, 0x0110, 0x0131, 0x9286
XMP, C2PA = 0x02BC, 0xCD41  # in a TIFF
_EXIF_DIRECTORY = 0x8769
_MOST_ENTRIES = 1_000  # of a directory; cameras write some dozens
_SIZES = {1: 1, 2: 1, 4: 4, 7: 1, 13: 4}  # bytes, by the type of an entry: BYTE, ASCII, LONG, …
_CHARACTER_CODE = 8  # bytes before a UserComment's text


def read_tags(file: BinaryIO, wanted: dict[int, int]) -> dict[int, bytes]:
    """The values of TIFF's tags in the first directory of a TIFF file or EXIF block, and of its
    EXIF directory: {tag: at most `wanted[tag]` bytes}, of those that are there.

    Raises ValueError where this is neither (TIFF 6.0, section 2; BigTIFF is not read).
    """
    file.seek(0)
    head = file.read(8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        raise ValueError("neither TIFF nor EXIF")
    [start] = struct.unpack(f"{order}I", head[4:])
    found = _directory(file, order, start, wanted | {_EXIF_DIRECTORY: 4})
    if len(within := found.pop(_EXIF_DIRECTORY, b"")) == 4:
        found = _directory(file, order, struct.unpack(f"{order}I", within)[0], wanted) | found
    return found


def _directory(file: BinaryIO, order: str, start: int, wanted: dict[int, int]) -> dict[int, bytes]:
    file.seek(start)
    count = file.read(2)
    if len(count) < 2:
        return {}
    entries = file.read(12 * min(struct.unpack(f"{order}H", count)[0], _MOST_ENTRIES))
    found: dict[int, bytes] = {}
    whole = entries[: len(entries) // 12 * 12]
    for tag, kind, number, value in struct.iter_unpack(f"{order}HHI4s", whole):
        if tag in wanted and kind in _SIZES and tag not in found:
            size = number * _SIZES[kind]
            if size > 4:
                file.seek(struct.unpack(f"{order}I", value)[0])
                value = file.read(min(size, wanted[tag]))
            found[tag] = value[:size]
    return found


_SHORT, _LONG = 256, 1 << 20  # bytes
_FIELDS = {MAKE: _LONG, MODEL: _LONG, SOFTWARE: _SHORT, USER_COMMENT: _LONG}


def statements(file: BinaryIO) -> list[tuple[str, str]]:
    """What an EXIF block says of the origin: pairs of one of RANKS and the field that says so.

    Raises ValueError where it is none.
    """
    found = read_tags(file, _FIELDS)
    make, model, software = (_text(found.get(tag, b"")) for tag in (MAKE, MODEL, SOFTWARE))
    said = []
    if name := generator_named_in(software):
        said.append((GENERATED, f"EXIF Software: {name}"))
    if name := generator_of_settings(_comment(found.get(USER_COMMENT, b""))):
        said.append((GENERATED, f"EXIF UserComment: {name}"))
    # ComfyUI puts its settings where nobody looks for them: "workflow:{…" and "prompt:{…".
    for field, text in (("Make", make), ("Model", model)):
        if text.startswith(("workflow:{", "prompt:{")):
            said.append((GENERATED, f"EXIF {field}: ComfyUI"))
        elif name := generator_named_in(text[:_SHORT]):
            said.append((GENERATED, f"EXIF {field}: {name}"))
    if make.strip() and model.strip() and not said:
        said.append((CAMERA, f"EXIF Make and Model: {plain(make, 30)}, {plain(model, 40)}"))
    return said


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")


def _comment(value: bytes) -> str:
    """A UserComment without its zeros: what is looked for in it is ASCII, which UTF-16 of either
    byte order then is, too."""
    return value[_CHARACTER_CODE:].replace(b"\0", b"").decode("utf-8", "replace")
