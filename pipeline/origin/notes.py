"""Where each kind of picture file keeps what it says about itself, besides its pixels.

Only the places that the standards name are looked at, and each part is read within bounds: what is
larger is as if it were not there. Bytes behind the end of the picture are no part of it.
"""

import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO, NamedTuple

from PIL import Image

from pipeline.origin.exif import C2PA, XMP, read_tags
from pipeline.origin.generators import TEXT_KEYWORDS

LARGEST_NOTE = 1 << 20  # bytes of EXIF, XMP or text, and of what compressed text unfolds to
LARGEST_MANIFEST = 16 << 20  # bytes; it may hold thumbnails of the pictures that went into it
MOST_PARTS = 10_000  # segments, chunks or boxes of a file that are passed in search of notes

_PNG_XMP = "XML:com.adobe.xmp"
_JPEG_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


class Notes(NamedTuple):
    """What a file says besides its pixels; empty where it does not."""

    exif: BinaryIO | None = None  # begins as a TIFF file does
    xmp: bytes = b""
    texts: tuple[tuple[str, str], ...] = ()  # of a PNG, of TEXT_KEYWORDS, each keyword once
    manifest: bytes = b""  # a C2PA manifest store (JUMBF)


def read_notes(file: BinaryIO, kind: str) -> Notes:
    """The notes in a picture file of a kind as `image_kinds.picture_format` names it.

    The file must have been decoded before, which has refused the worst and loaded what opens its
    kind. Raises ValueError where it is damaged.
    """
    if kind in ("AVIF", "HEIF"):
        return _of_heif(file, kind)
    reader = _READERS.get(kind)
    return reader(file) if reader else Notes()


def _of_jpeg(file: BinaryIO) -> Notes:
    """Exif and XMP in APP1 (CIPA DC-008; XMP part 3), C2PA in APP11, each up to the pixels."""
    exif = xmp = b""
    manifests: dict[bytes, bytearray] = {}  # by the number of the box
    room = LARGEST_MANIFEST
    for marker, segment in _segments(file):
        if marker == 0xE1 and segment.startswith(_JPEG_EXIF):
            exif = exif or segment[len(_JPEG_EXIF) :]
        elif marker == 0xE1 and segment.startswith(_JPEG_XMP):
            xmp = xmp or segment[len(_JPEG_XMP) :]
        elif marker == 0xEB and segment[:2] == b"JP" and len(segment) <= room:
            # "JP", number of the box (2), of the part (4), then the box's own header in each part.
            number, header = segment[2:4], 16 if segment[8:12] == b"\0\0\0\1" else 8
            room -= len(segment)
            begun = number in manifests
            manifests.setdefault(number, bytearray()).extend(segment[8 + header * begun :])
    stores = (bytes(box) for box in manifests.values() if b"c2pa" in box[:64])
    return Notes(_file(exif), xmp, manifest=next(stores, b""))


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The APP1 and APP11 segments before the first scan."""
    file.seek(2)
    for _ in range(MOST_PARTS):
        mark = file.read(2)
        if mark == b"\xff\xff":  # a filling byte before the marker
            file.seek(-1, 1)
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        if mark[:1] != b"\xff" or mark[1:] in (b"\xda", b"\xd9") or length < 0:
            return
        if mark[1] in (0xE1, 0xEB):
            yield mark[1], file.read(length)
        else:
            file.seek(length, 1)


def _of_png(file: BinaryIO) -> Notes:
    """Exif in eXIf, XMP and text in tEXt, zTXt and iTXt (PNG, third edition), C2PA in caBX."""
    exif = manifest = b""
    texts: dict[str, str] = {}
    for kind, data in _chunks(file):
        if kind == b"eXIf":
            exif = exif or data
        elif kind == b"caBX":
            manifest = manifest or data
        else:
            keyword = data[:80].partition(b"\0")[0].decode("latin-1")
            if keyword not in texts and (keyword in TEXT_KEYWORDS or keyword == _PNG_XMP):
                texts[keyword] = _text(kind, data[len(keyword) + 1 :])
    xmp = texts.pop(_PNG_XMP, "").encode("utf-8")
    return Notes(_file(exif), xmp, tuple(texts.items()), manifest)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The intact chunks that may hold notes, up to the end of the picture."""
    largest = dict.fromkeys((b"tEXt", b"zTXt", b"iTXt", b"eXIf"), LARGEST_NOTE)
    largest[b"caBX"] = LARGEST_MANIFEST
    file.seek(8)
    for _ in range(MOST_PARTS):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind == b"IEND":
            return
        if length > largest.get(kind, -1):
            file.seek(length + 4, 1)
            continue
        data = file.read(length)
        if file.read(4) == zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big"):
            yield kind, data


def _text(kind: bytes, rest: bytes) -> str:
    """What stands behind the keyword of a text chunk; "" where it would unfold to too much."""
    encoding = "latin-1"
    is_compressed = kind == b"zTXt"
    if kind == b"iTXt":  # compressed or not, method, language, translated keyword
        encoding = "utf-8"
        is_compressed = rest[:1] == b"\1"
        rest = rest[1:2] + rest[2:].split(b"\0", 2)[-1]
    if is_compressed:
        rest = _unfolded(rest[1:])
    elif kind == b"iTXt":
        rest = rest[1:]
    return rest.decode(encoding, "replace")


def _unfolded(compressed: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(compressed, LARGEST_NOTE)
    except zlib.error:
        return b""
    return b"" if stream.unconsumed_tail else text


def _of_webp(file: BinaryIO) -> Notes:
    """Chunks of RIFF, up to the end that its header names (WebP container specification)."""
    wanted = {b"EXIF": LARGEST_NOTE, b"XMP ": LARGEST_NOTE, b"C2PA": LARGEST_MANIFEST}
    found: dict[bytes, bytes] = {}
    file.seek(0)
    position, end = 12, 8 + int.from_bytes(file.read(8)[4:], "little")
    for _ in range(MOST_PARTS):
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8 or position + 8 + length > end:
            break
        if length <= wanted.get(head[:4], -1):
            found.setdefault(head[:4], file.read(length))
        position += 8 + length + length % 2
    exif, xmp, manifest = (found.get(kind, b"") for kind in wanted)
    return Notes(_file(exif.removeprefix(_JPEG_EXIF)), xmp, manifest=manifest)


def _of_heif(file: BinaryIO, kind: str) -> Notes:
    """Exif and XMP as items, which the decoder finds; C2PA in a uuid box (ISO/IEC 14496-12)."""
    manifest, whole = b"", file
    for position, box, start, end in _boxes(file):
        if box == b"ftyp" and position > 0:  # another file, which the decoder would look into
            file.seek(0)
            whole = BytesIO(file.read(position))
            break
        if box == b"uuid" and end - start <= LARGEST_MANIFEST and not manifest:
            file.seek(start)
            manifest = _manifest_in(file.read(end - start))
    whole.seek(0)
    try:
        with Image.open(whole, formats=[kind]) as image:
            exif, xmp = image.info.get("exif") or b"", image.info.get("xmp") or b""
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise ValueError(f"{kind} that cannot be opened: {error!r}") from error
    exif = exif[: LARGEST_NOTE + len(_JPEG_EXIF)].removeprefix(_JPEG_EXIF)
    return Notes(_file(exif), xmp if len(xmp) <= LARGEST_NOTE else b"", manifest=manifest)


def _boxes(file: BinaryIO) -> Iterator[tuple[int, bytes, int, int]]:
    """The position and kind of each box of the file, and where its content starts and ends."""
    position = 0
    for _ in range(MOST_PARTS):
        file.seek(position)
        head = file.read(16)
        size, header = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(head[8:], "big"), 16
        if len(head) < 8 or size < header:  # 0: to the end of the file, as pixels may stand last
            return
        yield position, head[4:8], position + header, position + size
        position += size


def _manifest_in(content: bytes) -> bytes:
    """The store in a C2PA box: behind the box's identity (16 bytes), version and flags (4), the
    purpose as text with a zero, and an offset (8)."""
    purpose, _, rest = content[20:].partition(b"\0")
    return rest[8:] if content[:16] == _C2PA_BOX and purpose == b"manifest" else b""


def _of_tiff(file: BinaryIO) -> Notes:
    """The file's own tags: Exif's, XMP's 700 and C2PA's 52545."""
    tags = read_tags(file, {XMP: LARGEST_NOTE, C2PA: LARGEST_MANIFEST})
    return Notes(file, tags.get(XMP, b""), manifest=tags.get(C2PA, b""))


def _file(content: bytes) -> BinaryIO | None:
    return BytesIO(content) if content else None


_READERS = {
    "JPEG": _of_jpeg,
    "PNG": _of_png,
    "WEBP": _of_webp,
    "TIFF": _of_tiff,
}
