"""Pictures of further kinds that people send: bitmaps with alpha, collections, all rotations."""

import io

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from pipeline.common.errors import ImageError
from pipeline.photos.images import read_image
from tests.broken_files import encoded
from tests.odd_pictures import bmp_with_alpha
from tests.test_images import smooth_picture

PICTURE = smooth_picture(60, 84)
XMP_TURN = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def read_bytes(content: bytes) -> np.ndarray:
    return read_image(io.BytesIO(content))


@pytest.mark.parametrize("alpha", [0, 255])
@pytest.mark.parametrize("header_size", [40, 56, 108, 124])
def test_a_bitmap_is_opaque_where_its_alpha_says_nothing(header_size, alpha):
    content = bmp_with_alpha(PICTURE, alpha, header_size)
    np.testing.assert_array_equal(read_bytes(content), PICTURE)


@pytest.mark.parametrize("header_size", [56, 108, 124])
def test_alpha_that_a_bitmap_does_use_counts(header_size):
    alpha = np.zeros(PICTURE.shape[:2], np.uint8)
    alpha[10:20, 10:20] = 255
    image = read_bytes(bmp_with_alpha(PICTURE, alpha, header_size))
    np.testing.assert_array_equal(image, PICTURE * (alpha[..., None] > 0))


def test_alpha_of_the_last_pixel_of_a_large_bitmap_counts():
    picture = np.full((700, 900, 3), 200, np.uint8)  # more than is looked at at once
    alpha = np.zeros((700, 900), np.uint8)
    alpha[0, -1] = 255
    assert read_bytes(bmp_with_alpha(picture, alpha)).sum() == 600


def test_transparency_of_other_formats_is_black():
    """There it is nobody's oversight."""
    clear = Image.fromarray(PICTURE).convert("RGBA")
    clear.putalpha(0)
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert not read_bytes(encoded(clear, format, **options)).any()


@pytest.mark.parametrize("primary", [0, 1, 2])
def test_of_a_heic_collection_the_primary_picture_counts(primary):
    """As bursts and portraits with several shots are stored."""
    collection = pillow_heif.HeifFile()
    for index in range(3):
        shown = PICTURE if index == primary else np.zeros_like(PICTURE)
        collection.add_from_pillow(Image.fromarray(shown))
    file = io.BytesIO()
    collection.save(file, primary_index=primary, quality=95)
    assert np.abs(read_bytes(file.getvalue()).astype(int) - PICTURE).mean() < 3


@pytest.mark.parametrize("format", ["AVIF", "WEBP"])
def test_an_animation_shows_its_first_picture(format):
    several = {"save_all": True, "append_images": [Image.new("RGB", (84, 60))] * 2}
    content = encoded(Image.fromarray(PICTURE), format, quality=95, **several)
    assert np.abs(read_bytes(content).astype(int) - PICTURE).mean() < 3


@pytest.mark.parametrize("told_by", ["EXIF", "XMP", "both"])
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "HEIF", "TIFF", "AVIF"])
def test_a_rotation_that_is_told_twice_is_undone_once(format, told_by):
    exif = Image.Exif()
    exif[0x0112] = 6
    told = {"exif": exif.tobytes()} if told_by != "XMP" else {}
    if told_by != "EXIF":
        told |= {"tiffinfo": {700: XMP_TURN}} if format == "TIFF" else {"xmp": XMP_TURN}
    stored = np.ascontiguousarray(np.rot90(PICTURE))
    image = read_bytes(encoded(Image.fromarray(stored), format, quality=95, **told))
    # Only its own boxes turn an AVIF, as in every browser.
    expected = stored if (format, told_by) == ("AVIF", "XMP") else PICTURE
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("name", ["photo.png", "photo.tif", "photo.dng", "photo.nef", "photo.heic"])
def test_the_ending_of_the_name_does_not_matter(name, tmp_path):
    (tmp_path / name).write_bytes(encoded(Image.fromarray(PICTURE), "BMP"))
    np.testing.assert_array_equal(read_image(tmp_path / name), PICTURE)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\xff\x0a" + bytes(range(200)), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "JPEG 2000"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\1\0\1\0\x10\x10" + bytes(100), "icon"),
        (b"8BPS\0\1" + bytes(100), "Photoshop"),
    ],
)
def test_what_is_no_photo_that_is_read_is_named(content, name):
    with pytest.raises(ImageError, match=name):
        read_bytes(content)


def test_an_empty_file():
    with pytest.raises(ImageError, match="empty"):
        read_bytes(b"")
