"""PNGs are judged by their pixels, whatever they say besides."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.common.errors import ImageError
from pipeline.photos.images import read_image
from tests.broken_files import encoded, make_png, png_chunk

PICTURE = np.random.default_rng(4).integers(0, 256, (24, 32, 3), np.uint8)
PLAIN = encoded(Image.fromarray(PICTURE), "PNG")
LONG = 1_200_000  # more than the decoder reads of a text


def read_bytes(content: bytes) -> np.ndarray:
    return read_image(io.BytesIO(content))


def with_chunk(kind: bytes, data: bytes, checksum_error: int = 0, before: bytes = b"IDAT") -> bytes:
    start = PLAIN.index(before) - 4
    return PLAIN[:start] + png_chunk(kind, data, checksum_error) + PLAIN[start:]


COMPRESSED = zlib.compress(bytes(LONG))
EXIF_TURN = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
LARGE_NOTES = {
    "zTXt": (b"zTXt", b"Comment\0\0" + COMPRESSED),
    "iTXt": (b"iTXt", b"Comment\0\1\0\0\0" + COMPRESSED),
    "iTXt, plain": (b"iTXt", b"Comment\0\0\0\0\0" + b"x" * LONG),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + COMPRESSED),
    "EXIF as text": (b"zTXt", b"Raw profile type exif\0\0" + COMPRESSED),
    "iCCP": (b"iCCP", b"profile\0\0" + COMPRESSED),
    "tEXt": (b"tEXt", b"Comment\0" + b"x" * 70_000_000),
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("name", LARGE_NOTES)
def test_however_much_is_told_besides(name, before):
    content = with_chunk(*LARGE_NOTES[name], before=before)
    np.testing.assert_array_equal(read_bytes(content), PICTURE)


def test_many_notes():
    notes = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000))) * 70
    start = PLAIN.index(b"IDAT") - 4
    np.testing.assert_array_equal(read_bytes(PLAIN[:start] + notes + PLAIN[start:]), PICTURE)


SMALL_CHUNKS = {
    b"tEXt": b"Comment\0hello",
    b"zTXt": b"Comment\0\0" + zlib.compress(b"hello"),
    b"iTXt": b"Comment\0\0\0\0\0hello",
    b"iCCP": b"profile\0\0" + zlib.compress(b"profile"),
    b"eXIf": EXIF_TURN,
    b"gAMA": (45455).to_bytes(4, "big"),
    b"cHRM": bytes(32),
    b"sRGB": b"\0",
    b"pHYs": bytes(9),
    b"tIME": bytes(7),
    b"bKGD": bytes(6),
    b"tRNS": PICTURE[0, 0].astype(">u2").tobytes(),
    b"prVt": b"a program's own",
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", SMALL_CHUNKS)
def test_a_wrong_checksum_besides_the_pixels(kind, before):
    content = with_chunk(kind, SMALL_CHUNKS[kind], checksum_error=1, before=before)
    np.testing.assert_array_equal(read_bytes(content), PICTURE)


def test_what_is_right_about_transparency_and_rotation_still_counts():
    content = with_chunk(b"tRNS", SMALL_CHUNKS[b"tRNS"])
    assert (read_bytes(content)[0, 0] == 0).all()
    np.testing.assert_array_equal(read_bytes(with_chunk(b"eXIf", EXIF_TURN)), np.rot90(PICTURE, -1))
    for compressed in (False, True):
        notes = PngImagePlugin.PngInfo()
        notes.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=compressed)
        content = encoded(Image.fromarray(PICTURE), "PNG", pnginfo=notes)
        np.testing.assert_array_equal(read_bytes(content), np.rot90(PICTURE, -1))


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_of_what_makes_the_picture_is_an_error(kind):
    palette = encoded(Image.fromarray(PICTURE).quantize(16), "PNG")
    read_bytes(palette)
    start = palette.index(kind)
    end = start + 4 + int.from_bytes(palette[start - 4 : start], "big")
    with pytest.raises(ImageError, match="damaged"):
        read_bytes(palette[:end] + bytes([palette[end] ^ 1]) + palette[end + 1 :])


def test_notes_that_are_cut_short_behind_the_pixels_do_no_harm():
    content = with_chunk(b"tEXt", b"Comment\0" + b"x" * 1000, before=b"IEND")
    np.testing.assert_array_equal(read_bytes(content[:-500]), PICTURE)


def test_pixels_that_are_cut_short_are_an_error():
    for end in (len(PLAIN) // 2, PLAIN.index(b"IEND") - 100):
        with pytest.raises(ImageError, match="cut short"):
            read_bytes(PLAIN[:end])


def test_apples_variant_is_named():
    header = PLAIN.index(b"IHDR") - 4
    content = PLAIN[:header] + png_chunk(b"CgBI", b"\x50\0\x20\x06") + PLAIN[header:]
    with pytest.raises(ImageError, match="CgBI"):
        read_bytes(content)


def test_an_animation_shows_its_first_picture():
    first, second = Image.fromarray(PICTURE), Image.new("RGB", (32, 24))
    several = {"save_all": True, "append_images": [second]}
    for options in ({}, {"default_image": True}):
        content = encoded(first, "PNG", **several, **options)
        assert b"acTL" in content
        np.testing.assert_array_equal(read_bytes(content), PICTURE)


def test_16_bits_of_grey_with_alpha():
    rows = b"\0" + np.array([[257 * 200, 65535], [257 * 200, 0]], ">u2").tobytes()
    content = make_png(rows, 2, 1, bits=16, colour_type=4)
    assert read_bytes(content).tolist() == [[[200] * 3, [0] * 3]]
