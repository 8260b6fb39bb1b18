"""Small pictures of every kind that is read, and seeded ways to spoil them."""

import struct
from collections.abc import Iterator
from random import Random

import numpy as np
from PIL import Image, PngImagePlugin

from tests.broken_files import as_lab, encoded, make_png, png_chunk
from tests.odd_pictures import bmp_with_alpha, raw_like_tiff

EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 9_999, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def mutants(number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`number` spoilt pictures as (name, content), the same for the same seed."""
    return spoilt(small_pictures(), number, seed)


def spoilt(pictures: dict[str, bytes], number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The pictures in turn, spoilt, as often as there shall be `number` of them."""
    random = Random(seed)
    for index in range(number):
        name = list(pictures)[index % len(pictures)]
        content = pictures[name]
        for _ in range(random.choice([1, 1, 1, 2, 4])):
            content = random.choice(_MUTATIONS)(content, random, pictures)
        if "png" in name.lower() and random.random() < 0.5:
            content = with_right_checksums(content)
        yield f"{index:04} {name}", content


def small_pictures() -> dict[str, bytes]:
    """One picture of each kind, 48 × 40 pixels: {name: content}."""
    y, x = np.mgrid[:40, :48]
    grain = np.random.default_rng(3).integers(0, 40, (40, 48, 3))
    picture = Image.fromarray((np.stack([x * 4, y * 5, x + y], axis=-1) + grain).astype(np.uint8))
    grey, palette = picture.convert("L"), picture.quantize(16)

    def several() -> dict:  # new ones each time, for Pillow keeps settings in what it saves
        return {"save_all": True, "append_images": [picture.rotate(180), picture.rotate(90)]}

    with_alpha = Image.merge("RGBA", (*picture.split(), grey))
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = {"exif": exif.tobytes()}
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "long " * 200, zip=True)
    notes.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    sixteen = np.concatenate([np.zeros((40, 1), np.uint8), np.array(with_alpha).reshape(40, -1)], 1)
    return {
        "plain.jpg": encoded(picture, "JPEG", **rotated),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "restarts.jpg": encoded(picture, "JPEG", restart_marker_blocks=2, subsampling=0),
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "several.mpo": encoded(picture, "MPO", **several()),
        "plain.png": encoded(picture, "PNG", pnginfo=notes, icc_profile=bytes(500), **rotated),
        "palette.png": encoded(palette, "PNG", transparency=b"\xff\x00\x80"),
        "deep.png": make_png(sixteen.tobytes(), 48, 40, bits=16, colour_type=4),
        "animated.png": encoded(picture, "PNG", **several()),
        "lossy.webp": encoded(picture, "WEBP", **rotated),
        "lossless.webp": encoded(picture, "WEBP", lossless=True),
        "alpha.webp": encoded(with_alpha, "WEBP"),
        "animated.webp": encoded(picture, "WEBP", **several()),
        "plain.bmp": encoded(picture, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "alpha.bmp": bmp_with_alpha(np.array(picture), alpha=0),
        "plain.tif": encoded(picture, "TIFF", **rotated),
        "lzw.tif": encoded(picture, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encoded(with_alpha, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encoded(picture, "TIFF", compression="jpeg"),
        "fax.tif": encoded(picture.convert("1"), "TIFF", compression="group4"),
        "palette.tif": encoded(palette, "TIFF", compression="packbits"),
        "lab.tif": encoded(as_lab(picture), "TIFF"),
        "floats.tif": encoded(grey.convert("F"), "TIFF"),
        "deep.tif": encoded(Image.fromarray(np.array(grey, np.uint16) * 257), "TIFF"),
        "big.tif": encoded(picture, "TIFF", big_tiff=True),
        "pages.tif": encoded(picture, "TIFF", **several()),
        "raw-like.tif": raw_like_tiff(np.array(picture)),
        "plain.gif": encoded(palette, "GIF", transparency=3),
        "animated.gif": encoded(palette, "GIF", **several()),
        "plain.heic": encoded(picture, "HEIF", **rotated),
        "alpha.heic": encoded(with_alpha, "HEIF"),
        "several.heic": encoded(picture, "HEIF", **several()),
        "plain.avif": encoded(picture, "AVIF", speed=9, **rotated),
        "animated.avif": encoded(picture, "AVIF", speed=9, **several()),
    }


def _place(content: bytes, random: Random) -> int:
    """Anywhere, but in half of the cases among the first bytes, where the headers are."""
    end = max(1, len(content))
    return random.randrange(min(end, 300) if random.random() < 0.5 else end)


def _flip_bits(content: bytes, random: Random, _pictures: dict[str, bytes]) -> bytes:
    spoilt = bytearray(content)
    for _ in range(random.choice([1, 2, 8, 40]) if spoilt else 0):
        spoilt[_place(content, random)] ^= 1 << random.randrange(8)
    return bytes(spoilt)


def _cut(content: bytes, random: Random, _pictures: dict[str, bytes]) -> bytes:
    return content[: _place(content, random)]


def _leave_out(content: bytes, random: Random, _pictures: dict[str, bytes]) -> bytes:
    start = _place(content, random)
    return content[:start] + content[start + random.choice([1, 2, 4, 50]) :]


def _insert(content: bytes, random: Random, _pictures: dict[str, bytes]) -> bytes:
    start, source = _place(content, random), _place(content, random)
    size = random.choice([1, 4, 100])
    inserted = random.choice([bytes(size), random.randbytes(size), content[source : source + size]])
    return content[:start] + inserted + content[start:]


def _splice(content: bytes, random: Random, pictures: dict[str, bytes]) -> bytes:
    """The beginning of one picture, and another one, or the rest of it, behind."""
    other = pictures[random.choice(list(pictures))]
    start = _place(other, random)
    return other[:start] + content[random.choice([0, start]) :]


def _claim_extremes(content: bytes, random: Random, _pictures: dict[str, bytes]) -> bytes:
    """Huge widths, lengths and offsets, or none at all."""
    start = _place(content, random)
    number = random.choice(EXTREMES)
    form = random.choice([form for form in ("<H", ">H", "<I", ">I") if _fits(number, form)])
    return content[:start] + struct.pack(form, number) + content[start + struct.calcsize(form) :]


def _fits(number: int, form: str) -> bool:
    return number < 1 << 8 * struct.calcsize(form)


_MUTATIONS = [_flip_bits, _cut, _leave_out, _insert, _splice, _claim_extremes, _claim_extremes]


def with_right_checksums(content: bytes) -> bytes:
    """A PNG whose spoilt chunks get past the comparison of checksums."""
    chunks, position = [content[:8]], 8
    while position + 8 < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        data = content[position + 8 : position + 8 + length]
        if len(data) < length:
            break
        chunks.append(png_chunk(content[position + 4 : position + 8], data))
        position += 12 + length
    return b"".join(chunks) + content[position:]
