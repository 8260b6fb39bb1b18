"""What a file is, told by its first bytes: a picture of a kind that is read, or what else."""

import codecs

READ = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC"
"""The kinds of pictures that are read, for a sentence."""

_PICTURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_HEIF_BRANDS = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())
_AVIF_BRANDS = frozenset((b"avif", b"avis"))


_CANON_RAW = b"II*\0\x10\0\0\0CR"  # a CR2: a TIFF whose first directories are all previews


def picture_format(head: bytes) -> str | None:
    """The name that Pillow gives to the format of these first bytes, or None for all others."""
    if head.startswith(_CANON_RAW):
        return None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = _brands(head)
        if brands[0] in _AVIF_BRANDS or (
            brands[0] in (b"mif1", b"msf1") and _AVIF_BRANDS & {*brands}
        ):
            return "AVIF"
        return "HEIF" if brands[0] in _HEIF_BRANDS else None
    return next((name for name, starts in _PICTURES.items() if head.startswith(starts)), None)


def _brands(head: bytes) -> list[bytes]:
    """The major brand and the compatible ones of an ISO base media file (ISO/IEC 14496-12, 4.3)."""
    size = int.from_bytes(head[:4], "big")
    return [head[8:12]] + [head[i : i + 4] for i in range(16, min(size, len(head)), 4)]


RAW = "a camera raw file (save it as JPEG or PNG in the camera's or another program)"
"""What a raw file is called in a sentence."""

_OTHER_TYPES = {
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a zip archive or office document",
    b"PK\x05\x06": "an empty zip archive",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
    b"\x00\x00\x01\xba": "an MPEG video",
    b"FLV\x01": "a Flash video",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 picture",
    b"\xff\x4f\xff\x51": "a JPEG 2000 picture",
    b"8BPS": "a Photoshop document",
    b"%!PS": "a PostScript document",
    b"\x00\x00\x01\x00": "a Windows icon",
    _CANON_RAW: RAW,
    b"FUJIFILMCCD-RAW": RAW,
    b"II\x1a\0\0\0HEAPCCDR": RAW,  # Canon CRW
    b"IIRO": RAW,  # Olympus ORF, as the next two
    b"IIRS": RAW,
    b"MMOR": RAW,
    b"IIU\0": RAW,  # Panasonic RW2
    b"\0MRM": RAW,  # Minolta
    b"FOVb": RAW,  # Sigma
    b"ID3": "an MP3 sound",
    b"version https://git-lfs": "a Git LFS pointer (fetch the photo with `git lfs pull`)",
}
_OTHER_BRANDS = {
    b"qt  ": "a QuickTime video",
    b"crx ": RAW,
    b"M4A ": "an MP4 sound",
}
_OTHER_RIFF = {b"AVI ": "an AVI video", b"WAVE": "a WAV sound"}


def other_type(head: bytes) -> str:
    """What the first bytes are, with its article, for a sentence."""
    if head[4:8] == b"ftyp":
        return _OTHER_BRANDS.get(head[8:12], "an MP4 video")
    if head[:4] == b"RIFF" and head[8:12] in _OTHER_RIFF:
        return _OTHER_RIFF[head[8:12]]
    for start, name in _OTHER_TYPES.items():
        if head.startswith(start):
            return name
    text = head.lower()
    if b"<svg" in text:
        return "an SVG drawing"
    if b"<html" in text or b"<!doctype html" in text:
        return "a web page"
    return "a text file" if _is_text(head) else "a file of an unknown type"


def _is_text(head: bytes) -> bool:
    try:
        # Incremental, because the last character may be cut in two.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(character >= " " or character in "\t\n\r\f" for character in text)
