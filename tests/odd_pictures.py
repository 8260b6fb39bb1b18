"""Pictures of kinds that Pillow cannot write, which cameras and other programs do."""

import struct

import numpy as np

RGB, CFA, LINEAR_RAW = 2, 32803, 34892  # of the tag PhotometricInterpretation


def bmp_with_alpha(picture: np.ndarray, alpha: int | np.ndarray, header_size: int = 124) -> bytes:
    """A BMP of 32 bits a pixel with an alpha mask: header versions 3 to 5 (56, 108, 124 bytes), or
    with plain BI_RGB (40), which has a fourth byte without a meaning."""
    height, width = picture.shape[:2]
    is_plain = header_size == 40
    masks = () if is_plain else (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHI", header_size, width, height, 1, 32, 0 if is_plain else 3)
    header += struct.pack("<IiiII", 4 * width * height, 0, 0, 0, 0)
    header += struct.pack(f"<{len(masks)}I", *masks)
    header = header.ljust(header_size, b"\0")
    last = np.broadcast_to(np.asarray(alpha, np.uint8), (height, width))
    pixels = np.dstack([picture[::-1, :, ::-1], last[::-1]]).tobytes()
    start = 14 + header_size
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


def raw_like_tiff(
    picture: np.ndarray,
    order: str = "<",
    big: bool = False,
    in_chain: bool = False,
    photometric: int = RGB,
    preview_tags: tuple[tuple[int, int, int], ...] = ((254, 4, 1),),
    picture_tags: tuple[tuple[int, int, int], ...] = ((254, 4, 0),),
) -> bytes:
    """A TIFF that begins with a magenta preview of 8 × 8, as camera raw files do.

    The `picture` (H, W, 3) uint8 stands in a sub-directory or, `in_chain`, on the next page. Tags
    are (number, type, value); those of the preview say that it is one (NewSubfileType 1).
    """
    builder = _Tiff(order, big)
    preview = np.full((8, 8, 3), (255, 0, 255), np.uint8)
    main = builder.directory(picture, photometric, picture_tags, following=0)
    if not in_chain:
        preview_tags = (*preview_tags, (330, 18 if big else 13, main))
    first = builder.directory(preview, RGB, preview_tags, following=main if in_chain else 0)
    return builder.finish(first)


class _Tiff:
    """Puts together a TIFF or BigTIFF."""

    def __init__(self, order: str, big: bool):
        self._order, self._word = order, "Q" if big else "I"
        self._count = "Q" if big else "H"
        mark = b"II" if order == "<" else b"MM"
        header = struct.pack(f"{order}HHH", 43, 8, 0) if big else struct.pack(f"{order}H", 42)
        self._start = len(mark + header)
        self._content = bytearray(mark + header + bytes(struct.calcsize(self._word)))

    def directory(self, pixels: np.ndarray, photometric: int, tags: tuple, following: int) -> int:
        """Add a picture; the offset of its directory."""
        height, width = pixels.shape[:2]
        data = self._add(pixels.tobytes())
        if len(self._content) % 2:
            self._content += b"\0"
        bits = (258, 3, 8)
        if pixels.ndim == 3:  # three numbers of 16 bits, which BigTIFF has room for
            three = struct.pack(f"{self._order}3H", 8, 8, 8)
            bits = (258, 3, three if self._word == "Q" else self._add(three), 3)
        entries = [
            *((256, 4, width), (257, 4, height), bits, (259, 3, 1), (262, 3, photometric)),
            *((273, 4, data), (277, 3, 3 if pixels.ndim == 3 else 1), (278, 4, height)),
            *((279, 4, pixels.nbytes), *tags),
        ]
        offset = len(self._content)
        self._content += struct.pack(self._order + self._count, len(entries))
        for entry in sorted(entries, key=lambda entry: entry[0]):
            self._content += self._entry(*entry)
        self._content += struct.pack(self._order + self._word, following)
        return offset

    def finish(self, first: int) -> bytes:
        struct.pack_into(self._order + self._word, self._content, self._start, first)
        return bytes(self._content)

    def _add(self, data: bytes) -> int:
        offset = len(self._content)
        self._content += data
        return offset

    def _entry(self, tag: int, kind: int, value: int | bytes, number: int = 1) -> bytes:
        size = struct.calcsize(self._word)
        if isinstance(value, int):
            form = "H" if kind == 3 and number == 1 else self._word if kind == 18 else "I"
            value = struct.pack(self._order + form, value)
        head = struct.pack(f"{self._order}HH{self._word}", tag, kind, number)
        return head + value.ljust(size, b"\0")
