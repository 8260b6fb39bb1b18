"""A PNG reduced to the chunks that say what its picture looks like.

What a file tells besides its pixels may be as large or as damaged as it likes: no text, no colour
profile and no wrong checksum of either decides whether the picture can be seen.
"""

import zlib
from io import BytesIO
from typing import BinaryIO

from pipeline.common.errors import ImageError

_SIGNATURE_BYTES = 8
_LARGEST_NOTE = 1 << 20  # bytes of text, and of what it decompresses to: the most that Pillow reads
_TRANSPARENCY_AND_ROTATION = (b"tRNS", b"eXIf")
# Where other programs write EXIF and XMP, which may hold the rotation, into chunks of text.
_NOTES_WITH_ROTATION = (b"Raw profile type exif", b"XML:com.adobe.xmp")


def without_ancillary(file: BinaryIO) -> BytesIO:
    """A copy of a PNG without all that is neither pixels, transparency nor rotation.

    Of chunks with a wrong checksum, ancillary ones (PNG specification, third edition, 5.4) are
    left out as if they were not there; one of pixels raises `ValueError`. The other critical
    chunks, and whatever follows where no chunk begins or one is cut short, are handed on for the
    decoder to judge. An animation is reduced to its first or default picture. Raises `ImageError`
    for Apple's variant, which is no PNG but for its signature.
    """
    file.seek(0)
    copy = BytesIO()
    copy.write(file.read(_SIGNATURE_BYTES))
    while head := file.read(8):
        kind, length = head[4:], int.from_bytes(head[:4], "big")
        if kind == b"CgBI":
            raise ImageError(
                "this is a PNG as only Apple's devices read it (CgBI), taken from an app; "
                "save it as PNG in a program there"
            )
        is_chunk = len(kind) == 4 and kind.isalpha()
        is_ancillary = is_chunk and bool(kind[0] & 0x20)
        data = file.read(length if is_chunk else -1)
        checksum = file.read(4)
        intact = checksum == zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big")
        if kind == b"IDAT" and len(checksum) == 4 and not intact:
            raise ValueError("wrong checksum of pixels")
        if not is_ancillary or (intact and _is_wanted(kind, data)):
            copy.writelines((head, data, checksum))
        if kind == b"IEND":
            break
    copy.seek(0)
    return copy


def _is_wanted(kind: bytes, data: bytes) -> bool:
    if kind in _TRANSPARENCY_AND_ROTATION:
        return True
    keyword, _, text = data.partition(b"\0")
    if keyword not in _NOTES_WITH_ROTATION or len(data) > _LARGEST_NOTE:
        return False
    if kind == b"zTXt":
        return _decompresses(text[1:])
    if kind == b"iTXt" and text[:1] == b"\1":  # compressed; then method, language, translation
        return _decompresses(text[2:].split(b"\0", 2)[-1])
    return kind in (b"tEXt", b"iTXt")


def _decompresses(compressed: bytes) -> bool:
    """Whether this is zlib's, and of a size that may be read."""
    stream = zlib.decompressobj()
    try:
        stream.decompress(compressed, _LARGEST_NOTE)
    except zlib.error:
        return False
    return not stream.unconsumed_tail
