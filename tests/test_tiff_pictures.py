"""The photo in a TIFF, never its preview; palettes of both depths; numbers of every kind."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import ImageError
from pipeline.photos.images import PHOTO_SUFFIXES, read_image
from tests.broken_files import encoded, make_tiff
from tests.odd_pictures import CFA, LINEAR_RAW, raw_like_tiff
from tests.shared import SHARED, needs_shared

PICTURE = np.random.default_rng(5).integers(0, 256, (30, 44, 3), np.uint8)
PREVIEW, FULL, OLD_PREVIEW = (254, 4, 1), (254, 4, 0), (255, 3, 2)


def read_bytes(content: bytes) -> np.ndarray:
    return read_image(io.BytesIO(content))


def preview(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image)


@pytest.mark.parametrize("in_chain", [False, True])
@pytest.mark.parametrize(("order", "big"), [("<", False), ("<", True), (">", False)])
def test_the_full_picture_is_read(order, big, in_chain, tmp_path):
    content = raw_like_tiff(PICTURE, order, big, in_chain)
    assert preview(content).shape == (8, 8, 3)  # what a reader of the first directory sees
    np.testing.assert_array_equal(read_bytes(content), PICTURE)
    path = tmp_path / "photo.dng"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path), PICTURE)


def test_a_big_endian_bigtiff_is_refused():
    """Pillow does not read them."""
    with pytest.raises(ImageError, match="save"):
        read_bytes(raw_like_tiff(PICTURE, ">", big=True))


@pytest.mark.parametrize("flag", [PREVIEW, (254, 3, 1), OLD_PREVIEW, (254, 4, 0x10001)])
def test_every_way_to_say_preview(flag):
    np.testing.assert_array_equal(read_bytes(raw_like_tiff(PICTURE, preview_tags=(flag,))), PICTURE)


@pytest.mark.parametrize("tags", [(), (FULL,), ((254, 4, 2),), ((255, 3, 1),)])
def test_every_way_to_say_full_picture(tags):
    np.testing.assert_array_equal(read_bytes(raw_like_tiff(PICTURE, picture_tags=tags)), PICTURE)


@pytest.mark.parametrize("tagged", ["preview", "picture"])
def test_the_rotation_may_stand_beside_the_preview(tagged):
    turn = (274, 3, 6)
    tags = {f"{tagged}_tags": ((PREVIEW if tagged == "preview" else FULL), turn)}
    np.testing.assert_array_equal(read_bytes(raw_like_tiff(PICTURE, **tags)), np.rot90(PICTURE, -1))
    both = raw_like_tiff(PICTURE, preview_tags=(PREVIEW, turn), picture_tags=(FULL, turn))
    np.testing.assert_array_equal(read_bytes(both), np.rot90(PICTURE, -1))


MOSAIC = (33421, 3, 2)
RAW_FILES = {
    "mosaic": raw_like_tiff(PICTURE, photometric=CFA),
    "mosaic, big-endian": raw_like_tiff(PICTURE, ">", photometric=CFA),
    "mosaic, next page": raw_like_tiff(PICTURE, in_chain=True, photometric=CFA),
    "linear light": raw_like_tiff(PICTURE, photometric=LINEAR_RAW),
    "preview that does not say so": raw_like_tiff(PICTURE, photometric=CFA, preview_tags=()),
    "mosaic by its pattern": raw_like_tiff(PICTURE, picture_tags=(FULL, MOSAIC)),
    "nothing but the mosaic": raw_like_tiff(PICTURE, photometric=CFA, preview_tags=(MOSAIC,)),
    "Canon CR2": b"II*\0\x10\0\0\0CR\2\0" + raw_like_tiff(PICTURE)[12:],
    "Canon CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "Canon CRW": b"II\x1a\0\0\0HEAPCCDR" + bytes(100),
    "Fujifilm": b"FUJIFILMCCD-RAW 0201" + bytes(100),
    "Olympus": b"IIRO\x08\0\0\0" + bytes(100),
    "Olympus, older": b"IIRS\x08\0\0\0" + bytes(100),
    "Panasonic": b"IIU\0\x18\0\0\0" + bytes(100),
    "Sigma": b"FOVb" + bytes(100),
    "Minolta": b"\0MRM" + bytes(100),
}


@pytest.mark.parametrize("name", RAW_FILES)
def test_a_raw_file_is_called_one(name):
    with pytest.raises(ImageError, match="camera raw file") as caught:
        read_bytes(RAW_FILES[name])
    assert "JPEG" in str(caught.value)


@pytest.mark.parametrize("compression", [32767, 32770, 34713, 65535, 7, 52546])
def test_a_full_picture_that_cannot_be_decoded_is_an_error(compression):
    content = bytearray(raw_like_tiff(PICTURE))
    first = content.index(struct.pack("<HHI", 259, 3, 1))  # of the picture; the preview's follows
    struct.pack_into("<H", content, first + 8, compression)
    with pytest.raises(ImageError, match="camera raw file"):
        read_bytes(bytes(content))


def test_nothing_but_a_preview_is_an_error():
    with pytest.raises(ImageError, match="preview"):
        read_bytes(encoded(Image.fromarray(PICTURE), "TIFF", tiffinfo={254: 1}))
    with pytest.raises(ImageError, match="preview"):
        read_bytes(raw_like_tiff(PICTURE, picture_tags=(PREVIEW,)))
    mask = raw_like_tiff(PICTURE, picture_tags=((254, 4, 4),))
    with pytest.raises(ImageError, match="preview"):
        read_bytes(mask)


def test_directories_that_lead_nowhere_do_no_harm():
    plain = bytearray(encoded(Image.fromarray(PICTURE), "TIFF"))
    start = struct.unpack_from("<I", plain, 4)[0]
    count = struct.unpack_from("<H", plain, start)[0]
    for following in (start, 3, 0xFFFFFFF0, len(plain) - 1):  # a circle, and no directory at all
        struct.pack_into("<I", plain, start + 2 + 12 * count, following)
        np.testing.assert_array_equal(read_bytes(bytes(plain)), PICTURE)


@pytest.mark.parametrize("name", [".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"])
def test_raw_files_of_a_folder_are_not_passed_over(name):
    assert name in PHOTO_SUFFIXES


def test_pages_show_the_first():
    other = Image.new("RGB", (90, 90))
    content = encoded(Image.fromarray(PICTURE), "TIFF", save_all=True, append_images=[other])
    np.testing.assert_array_equal(read_bytes(content), PICTURE)


def palette_tiff(bits: int, scale: int, order: str = "<") -> tuple[bytes, np.ndarray]:
    """Eight pixels of a palette whose colours count to 255 times `scale`; and the true picture."""
    colours = np.random.default_rng(bits).integers(0, 256, (3, 2**bits))
    colours[:, 1] = 255, 7, 0
    indices = np.arange(8) % 2**bits
    if bits == 8:
        pixels = indices.astype(np.uint8).tobytes()
    else:
        digits = "".join(f"{index:0{bits}b}" for index in indices)
        pixels = bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    content = make_tiff(pixels, 8, bits, photometric=3, colours=colours * scale)
    return content, colours.T[indices]


@pytest.mark.parametrize("scale", [1, 256, 257])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_colours_of_a_palette_count_to_255_or_65535(bits, scale):
    content, expected = palette_tiff(bits, scale)
    assert read_bytes(content)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_palette_of_8_bits_in_every_compression(compression):
    picture = Image.fromarray(PICTURE).quantize(64)
    shown = np.array(picture.convert("RGB"))
    colours = np.array(picture.getpalette("RGB")).reshape(-1, 3)
    content = encoded(picture, "TIFF", compression=compression)
    stored = np.zeros((256, 3), int)
    stored[: len(colours)] = colours
    deep = struct.pack("<768H", *(stored * 256).T.ravel())
    assert deep in content
    content = content.replace(deep, struct.pack("<768H", *stored.T.ravel()))
    np.testing.assert_array_equal(read_bytes(content), shown)


@pytest.mark.parametrize("value", [0, 2**31 - 2**26, 2**31 + 2**26, 2**32 - 1])
def test_unsigned_grey_of_32_bits(value):
    pixels = struct.pack("<3I", 0, value, 2**32 - 1)
    expected = [0, round(value / (2**32 - 1) * 255), 255]
    assert read_bytes(make_tiff(pixels, 3, 32))[0, :, 0].tolist() == expected


def test_missing_strips_are_an_error():
    content = bytearray(encoded(Image.fromarray(PICTURE), "TIFF"))
    height = content.index(struct.pack("<HH", 257, 4)) + 8
    struct.pack_into("<I", content, height, 30_000)
    with pytest.raises(ImageError, match="cut short"):
        read_bytes(bytes(content))


@needs_shared
def test_the_raw_like_dng_is_its_full_picture():
    with Image.open(SHARED / "failing" / "03_reference_256.png") as reference:
        np.testing.assert_array_equal(
            read_image(SHARED / "failing" / "03_raw_like.dng"), np.array(reference.convert("RGB"))
        )
