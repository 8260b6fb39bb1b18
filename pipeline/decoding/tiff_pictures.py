"""What TIFF leaves to its readers: which of its pictures is the photo, and how deep a palette is.

Tags by their numbers in the TIFF 6.0 specification, its supplement 1 (SubIFDs) and Adobe's DNG
specification.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO, NamedTuple

from PIL import Image

from pipeline.common.errors import ImageError
from pipeline.decoding.image_kinds import RAW

_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 259, 262
_HEIGHT, _ORIENTATION, _COLOUR_MAP, _SUB_DIRECTORIES, _MOSAIC = 257, 274, 320, 330, 33421
_PAGE = 2  # of NewSubfileType: one of several pages; 1 is a preview, the others masks and the like
_PREVIEW = 2  # of the older SubfileType
# What stands before the sensor (a mosaic of colours), or linear light: not yet a picture.
_RAW_PHOTOMETRIC = (32803, 34892)
_RAW_COMPRESSIONS = (32767, 32770, 34713, 65535)  # Sony's, Samsung's, Nikon's, Pentax's
_TAGS = frozenset(
    (_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION)
    + (_SUB_DIRECTORIES, _MOSAIC)
)
_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # the types of whole numbers
_MOST_DIRECTORIES = 256  # that are looked at
_MOST_ENTRIES = 1 << 16


class MainPicture(NamedTuple):
    """The photo of a TIFF: a file whose first directory is the photo's, and the orientation (EXIF,
    1 to 8) that it takes over from the file's first directory, having none of its own."""

    file: BinaryIO
    orientation: int


def main_picture(file: BinaryIO) -> MainPicture:
    """Find the photo of a TIFF among its previews; `file` itself where it comes first, as usual.

    Camera raw files are TIFFs that begin with a preview. Their full picture stands in another
    directory or a sub-directory. Raises `ImageError` where this is what the sensor saw, and where
    there is nothing but previews. Damaged directories are passed over.
    """
    directories = list(_directories(file))
    if any(directory.is_raw for directory in directories):
        raise ImageError(f"this is {RAW}; what else is in it is only a preview")
    if not directories or not directories[0].is_preview:
        return MainPicture(file, 1)
    photo = next((each for each in directories if each.has_size and not each.is_preview), None)
    if photo is None:
        raise ImageError(
            "this TIFF or camera raw file holds nothing but a reduced preview; "
            "save the full picture as JPEG or PNG in the program that it comes from"
        )
    orientation = 1 if photo.orientation else directories[0].orientation or 1
    return MainPicture(_beginning_with(file, photo.offset), orientation)


def check_strips(image: Image.Image) -> None:
    """Raise `OSError` where a TIFF lists fewer strips than it has rows: the rest would be black."""
    reached = max((tile.extents[3] for tile in image.tile), default=0)
    if reached < image.tag_v2[_HEIGHT]:
        raise OSError("truncated: strips are missing")


def mend_palette(image: Image.Image) -> None:
    """Read the colours of a palette that counts to 255 instead of 65535, as some programs write it.

    To be called before the pixels of a TIFF are decoded. Pillow keeps the upper 8 of 16 bits, which
    makes such pictures black.
    """
    if image.mode not in ("P", "PA"):
        return
    colours = image.tag_v2[_COLOUR_MAP]
    if max(colours, default=0) <= 255:
        from PIL import ImagePalette

        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


class _Directory(NamedTuple):
    offset: int
    tags: dict[int, tuple[int, ...]]  # the few that matter here

    def _first(self, tag: int) -> int:
        return next(iter(self.tags.get(tag, ())), 0)

    @property
    def has_size(self) -> bool:
        return _WIDTH in self.tags

    @property
    def is_preview(self) -> bool:
        """Whether it is a preview or, since these come after the photo, a mask or the like."""
        is_full = self._first(_NEW_SUBFILE_TYPE) in (0, _PAGE)
        return not is_full or self._first(_SUBFILE_TYPE) == _PREVIEW

    @property
    def is_raw(self) -> bool:
        return (
            self._first(_PHOTOMETRIC) in _RAW_PHOTOMETRIC
            or self._first(_COMPRESSION) in _RAW_COMPRESSIONS
            or _MOSAIC in self.tags
        )

    @property
    def orientation(self) -> int:
        return self._first(_ORIENTATION)


class _Layout(NamedTuple):
    """The byte order and widths of a TIFF or BigTIFF, as struct has them."""

    order: str
    word: str  # of offsets and of numbers of values
    count: str  # of the number of entries of a directory
    first: int  # where the offset of the first directory stands

    def number(self, file: BinaryIO, kind: str) -> int:
        size = struct.calcsize(kind)
        return struct.unpack(self.order + kind, file.read(size))[0]


def _layout(header: bytes) -> _Layout:
    order = "<" if header.startswith(b"II") else ">"
    is_big = 43 in header[2:4]
    return _Layout(order, "Q", "Q", 8) if is_big else _Layout(order, "I", "H", 4)


def _beginning_with(file: BinaryIO, offset: int) -> BytesIO:
    """A copy of a TIFF whose first directory is the one at `offset`."""
    file.seek(0)
    content = bytearray(file.read())
    layout = _layout(content)
    struct.pack_into(layout.order + layout.word, content, layout.first, offset)
    return BytesIO(content)


def _directories(file: BinaryIO) -> Iterator[_Directory]:
    """The directories of a TIFF, each followed by its sub-directories, as far as they can be read;
    each once, even where they lead in a circle."""
    file.seek(0)
    layout = _layout(file.read(8))
    file.seek(layout.first)
    seen = {0}  # which stands for the end
    waiting = [layout.number(file, layout.word)]
    while waiting and len(seen) <= _MOST_DIRECTORIES:
        offset = waiting.pop()
        if offset in seen:
            continue
        seen.add(offset)
        try:
            directory, following = _read_directory(file, layout, offset)
        except (struct.error, OverflowError, ValueError):  # no directory is there
            continue
        yield directory
        waiting += [following, *reversed(directory.tags.get(_SUB_DIRECTORIES, ()))]


def _read_directory(file: BinaryIO, layout: _Layout, offset: int) -> tuple[_Directory, int]:
    """A directory, and the offset of the next one (0: there is none)."""
    file.seek(offset)
    count = layout.number(file, layout.count)
    if count > _MOST_ENTRIES:
        raise ValueError("no directory")
    word = struct.calcsize(layout.word)
    entry = struct.Struct(f"{layout.order}HH{layout.word}{word}s")
    entries = file.read(count * entry.size)
    try:
        following = layout.number(file, layout.word)
    except struct.error:  # the file ends with this directory
        following = 0
    tags = {
        tag: _values(file, layout, _FORMATS[kind], number, value)
        for tag, kind, number, value in entry.iter_unpack(entries)
        if tag in _TAGS and kind in _FORMATS
    }
    return _Directory(offset, tags), following


def _values(
    file: BinaryIO, layout: _Layout, kind: str, number: int, value: bytes
) -> tuple[int, ...]:
    """The values of a tag: `value` itself, or what stands where it points to."""
    number = min(number, _MOST_DIRECTORIES)
    size = number * struct.calcsize(kind)
    if size > len(value):
        file.seek(struct.unpack(layout.order + layout.word, value)[0])
        value = file.read(size)
    return struct.unpack(f"{layout.order}{number}{kind}", value[:size])
