"""JPEGs without an end marker, with too few scans and with too many."""

import io
import logging
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import ImageError
from pipeline.photos.images import read_image
from tests.broken_files import encoded
from tests.conftest import SAMPLES

END = b"\xff\xd9"
ENCODINGS = {
    "plain": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "progressive, 4:4:4": {"progressive": True, "subsampling": 0, "quality": 97},
    "restarts": {"restart_marker_blocks": 4},
    "grey": {"mode": "L"},
    "grey, restarts": {"mode": "L", "restart_marker_blocks": 4},
    "CMYK": {"mode": "CMYK"},
    "low quality": {"quality": 30},
}


def read_bytes(content: bytes) -> np.ndarray:
    return read_image(io.BytesIO(content))


def pictures() -> list[Image.Image]:
    photos = [read_image(SAMPLES / name) for name in ("real_collins.jpg", "two_people.jpg")]
    return [Image.fromarray(photo).resize((77, 59)) for photo in photos]


@pytest.fixture(scope="module", params=ENCODINGS)
def jpegs(request) -> list[bytes]:
    options = dict(ENCODINGS[request.param])
    mode = options.pop("mode", "RGB")
    return [encoded(picture.convert(mode), "JPEG", **options) for picture in pictures()]


def test_a_missing_end_marker_is_no_fault(jpegs):
    for jpeg in jpegs:
        assert jpeg.endswith(END)
        for ending in (b"", b"\xff", bytes(2), bytes(5000)):
            image = read_bytes(jpeg.removesuffix(END) + ending)
            np.testing.assert_array_equal(image, read_bytes(jpeg))


def test_missing_pixels_stay_an_error(jpegs):
    for jpeg in jpegs:
        for missing in (10, 11, 12, 13, 14, 30, 100, 300, len(jpeg) // 2):
            for ending in (b"", END[:1], bytes(100), b"\x37\x91" * 1000, bytes(len(jpeg))):
                with pytest.raises(ImageError, match="cut short"):
                    read_bytes(jpeg[:-missing] + ending)


def test_missing_scans_are_an_error():
    """Cut just before a scan, a progressive picture has all pixels, but blurred."""
    jpeg = encoded(pictures()[0], "JPEG", progressive=True)
    starts = [i for i in range(len(jpeg)) if jpeg.startswith(b"\xff\xda", i)]
    assert len(starts) > 5
    for start in starts[1:]:
        with pytest.raises(ImageError, match="cut short"):
            read_bytes(jpeg[: jpeg.rfind(b"\xff\xc4", 0, start)])
        with pytest.raises(ImageError, match="cut short"):
            read_bytes(jpeg[:start])


def test_only_the_log_tells_of_it(tmp_path, caplog):
    path = tmp_path / "no end.jpg"
    path.write_bytes(encoded(pictures()[0], "JPEG").removesuffix(END))
    with caplog.at_level(logging.WARNING):
        read_image(path)
    (record,) = caplog.records
    assert "no end.jpg" in record.getMessage() and "end marker" in record.getMessage()


def test_what_follows_the_end_does_not_matter(caplog):
    for picture in pictures():
        jpeg = encoded(picture, "JPEG")
        for trailer in (
            b"\0",
            b"\xff",
            bytes(3000),
            b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40,
        ):
            np.testing.assert_array_equal(read_bytes(jpeg + trailer), read_bytes(jpeg))
        np.testing.assert_array_equal(read_bytes(jpeg + jpeg[: len(jpeg) // 2]), read_bytes(jpeg))
    assert not caplog.records


def test_what_would_take_long_to_find_out_stays_an_error():
    content = endless(9_000, 9_000, 20, progressive=True)
    assert read_bytes(content).shape == (9_000, 9_000, 3)
    with pytest.raises(ImageError, match="cut short"):
        read_bytes(content.removesuffix(END))


def test_an_mpo_whose_second_picture_is_cut_shows_its_first():
    first, second = pictures()
    mpo = encoded(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_bytes(mpo[:-300]), read_bytes(mpo))


def endless(width: int, height: int, scans: int, progressive: bool) -> bytes:
    """A JPEG of few bytes whose decoder passes over all pixels for each scan."""
    jpeg = encoded(Image.new("L", (16, 16)), "JPEG", progressive=progressive)
    size = jpeg.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    jpeg = jpeg[:size] + struct.pack(">HH", height, width) + jpeg[size + 4 :]
    coefficients = (1, 5, 2) if progressive else (0, 63, 0)
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, *coefficients)
    second = jpeg.find(b"\xff\xda", jpeg.index(b"\xff\xda") + 2)
    return jpeg[: second if progressive else -2] + scan * scans + END


def test_a_jpeg_of_endless_scans_is_refused_at_once():
    with pytest.raises(ImageError, match="2001 passes"):  # decoding them takes half a minute
        read_bytes(endless(9_000, 9_000, 2_000, progressive=True))


def test_as_many_scans_as_a_large_progressive_photo_has_are_read():
    assert read_bytes(endless(4_000, 3_000, 20, progressive=True)).shape == (3_000, 4_000, 3)


def as_ycck(picture: Image.Image) -> bytes:
    """As Adobe's programs write it: inverted inks, three of them as YCbCr."""
    inverted = np.array(Image.fromarray(255 - np.array(picture)).convert("YCbCr"))
    planes = np.dstack([255 - inverted, np.zeros(inverted.shape[:2], np.uint8)])
    jpeg = encoded(Image.fromarray(planes, "CMYK"), "JPEG", quality=98)
    transform = jpeg.index(b"Adobe") + 11
    return jpeg[:transform] + b"\2" + jpeg[transform + 1 :]


def test_ycck():
    for picture in pictures():
        difference = read_bytes(as_ycck(picture)).astype(int) - np.array(picture)
        assert np.abs(difference).mean() < 3


def test_kinds_of_jpeg_that_are_not_read_get_a_sentence():
    jpeg = encoded(pictures()[0], "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    twelve_bits = jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :]
    hierarchical = jpeg[:frame] + b"\xff\xc5" + jpeg[frame + 2 :]
    for content in (twelve_bits, hierarchical):
        with pytest.raises(ImageError, match="JPEG"):
            read_bytes(content)
