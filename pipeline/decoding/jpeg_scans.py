"""The scans of a JPEG, each a pass over its pixels: whether all are there, and not far too many."""

import re
from collections.abc import Iterator
from io import BytesIO
from random import Random
from typing import BinaryIO

from PIL import Image, ImageChops

from pipeline.common.errors import ImageError

# The decoder passes over all pixels once a scan, however little a scan holds: a file of 30 kB may
# keep it busy for minutes. Progressive pictures have about 10 scans, and here 100 megapixels may
# have 20 and 12 megapixels 166.
MOST_PIXELS_OF_ALL_SCANS = 2_000_000_000

_END = b"\xff\xd9"
_START_OF_SCAN = b"\xff\xda"
# A marker with a segment behind it, or the end; not those that stand in or between pixels.
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # which are tables and the like
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FILLINGS = 8
# Each filling is decoded: 50 megapixels of one scan, or 12 megapixels of ten, take 10 seconds. The
# decoder passes over the pixels once a scan and, taking about as long as two, to put them together.
_MOST_PIXELS_OF_ALL_PASSES = 150_000_000
_LAST_BYTES = 8


class MissingEnd(OSError):
    """A JPEG has no end marker, and may lack pixels as well."""


def check_scans(file: BinaryIO, pixels: int) -> None:
    """Look at a JPEG of so many pixels before it is decoded.

    Raises `ImageError` where its scans would take minutes, `MissingEnd` where it has no end.
    """
    file.seek(0)
    content = file.read()
    most = MOST_PIXELS_OF_ALL_SCANS // max(pixels, 1)
    # Looking for bytes is quick, and hardly ever is there reason to look closer.
    if content.count(_START_OF_SCAN) > most:
        scans = sum(marker == 0xDA for marker, _ in _segments(content))
        if scans > most:
            raise ImageError(
                f"this JPEG is stored in {scans} passes, which would take minutes to decode; "
                "save it anew as a plain JPEG or PNG"
            )
    if content.rfind(_END) < content.rfind(_START_OF_SCAN) and not _has_end(content):
        raise MissingEnd("truncated: no end marker")


def with_end(file: BinaryIO) -> BytesIO | None:
    """A copy of a JPEG with the end marker that it lacks; None where any pixel is missing, too, or
    the picture is too large to find out.

    Nothing in a JPEG says where its pixels end, and decoders make up what is missing. So several
    kinds of random bits are put behind the last byte: where these change nothing, no pixel is
    missing. And where they change nothing some bytes before the end either, no pixel rests on the
    end of the file: the true one is missing, and something else stands in its place.
    """
    file.seek(0)
    content = _without_filling(file.read())
    if not _has_all_scans(content) or _pixels_of_passes(content) > _MOST_PIXELS_OF_ALL_PASSES:
        return None
    if not _is_same_with_all_fillings(content):
        return None
    if _is_same_with_all_fillings(content[:-_LAST_BYTES]):
        return None
    return BytesIO(content + _END)


def _without_filling(content: bytes) -> bytes:
    """Without half of an end marker, or the zeros that a broken download leaves in its place."""
    if content.endswith(b"\xff"):
        return content[:-1]
    without = content.rstrip(b"\0")
    zeros = len(content) - len(without)
    is_data = zeros == 1 or without.endswith(b"\xff")  # FF 00 stands for the byte FF
    return without + b"\0" * (zeros > 0 and is_data)


def _is_same_with_all_fillings(content: bytes) -> bool:
    restarts = _RESTART.findall(content)
    restart = restarts[-1][1] - 0xD0 + 1 if restarts else 0  # the number of the next one
    first, *others = (
        BytesIO(content + _filling(seed, restart) + _END) for seed in range(_FILLINGS)
    )
    try:
        with Image.open(first, formats=["JPEG"]) as one:
            for other in others:
                with Image.open(other, formats=["JPEG"]) as another:
                    if ImageChops.difference(one, another).getbbox(alpha_only=False):
                        return False
    except OSError:  # cut within a header
        return False
    return True


def _filling(seed: int, restart: int) -> bytes:
    """Bits for the end of a scan and, behind their restart markers, for whole intervals of it."""
    random = Random(seed)
    parts = [random.randbytes(32).replace(b"\xff", b"\x7f") for _ in range(9)]
    markers = [bytes([0xFF, 0xD0 + number % 8]) for number in range(restart, restart + 8)]
    return parts[0] + b"".join(map(bytes.__add__, markers, parts[1:]))


def _has_all_scans(content: bytes) -> bool:
    """Whether each component of the frame has its scans; of a progressive one every coefficient
    down to its last bit (ITU-T T.81, annex G)."""
    components, progressive = b"", False
    last_bits: dict[tuple[int, int], int] = {}  # (component, coefficient): those not yet sent
    for marker, segment in _segments(content):
        if marker in _FRAMES:
            components, progressive = segment[6::3], marker in _PROGRESSIVE
        elif marker == 0xDA:
            number = segment[0]
            first, last, bits = segment[1 + 2 * number : 4 + 2 * number]
            for component in segment[1 : 1 + 2 * number : 2]:
                for coefficient in range(first, last + 1) if progressive else (0,):
                    last_bits[component, coefficient] = bits & 15 if progressive else 0
    coefficients = range(64) if progressive else (0,)
    return bool(components) and all(
        last_bits.get((component, coefficient)) == 0
        for component in components
        for coefficient in coefficients
    )


def _pixels_of_passes(content: bytes) -> int:
    pixels = scans = 0
    for marker, segment in _segments(content):
        if marker in _FRAMES:
            pixels = int.from_bytes(segment[1:3], "big") * int.from_bytes(segment[3:5], "big")
        scans += marker == 0xDA
    return pixels * (scans + 2)


def _has_end(content: bytes) -> bool:
    return any(marker == _END[1] for marker, _ in _segments(content))


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers of the first picture up to its end, and what stands in their segments."""
    position = 2
    while match := _MARKER.search(content, position):
        marker, start = match[1][0], match.end()
        if marker == _END[1]:
            yield marker, b""
            return
        position = start + int.from_bytes(content[start : start + 2], "big")
        yield marker, content[start + 2 : position]
