"""Reading photos: every format and mode, every kind of broken file, and resizing."""

import errno
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.common.errors import ImageError
from pipeline.photos.images import PHOTO_SUFFIXES, read_image, read_picture, resize
from tests.broken_files import (
    as_lab,
    encoded,
    make_broken_files,
    make_odd_but_good_files,
    make_png,
    make_tiff,
    png_chunk,
)

# Pillow's warnings are silenced where photos are read, but pytest turns them on again.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

REPOSITORY = Path(__file__).resolve().parent.parent


def smooth_picture(height: int = 121, width: int = 90) -> np.ndarray:
    """A picture without symmetry that lossy formats keep well."""
    y, x = np.mgrid[:height, :width]
    red, green = x * 255 // width, y * 255 // height
    return np.stack([red, green, 255 - (red + green) // 2], axis=-1).astype(np.uint8)


def read_bytes(content: bytes, **options) -> np.ndarray:
    return read_image(io.BytesIO(content), **options)


def test_every_kind_of_broken_file_has_its_sentence(tmp_path):
    phrases = make_broken_files(tmp_path)  # a pipe that is opened would hang here
    sentences = {}
    for name in phrases:
        try:
            sentences[name] = f"was read: {read_image(tmp_path / name).shape}"
        except ImageError as error:
            sentences[name] = str(error)
    wrong = {name: sentences[name] for name in phrases if phrases[name] not in sentences[name]}
    assert wrong == {}
    assert not any("\n" in sentence or str(tmp_path) in sentence for sentence in sentences.values())
    assert {Path(name).suffix for name in phrases} <= PHOTO_SUFFIXES


@pytest.mark.parametrize(
    ("path", "phrase"),
    [
        ("gone.jpg", "no such file"),
        ("photo.png/inside.jpg", "no such file"),
        ("", "no such file"),
        ("n" * 300 + ".jpg", "too long"),
        ("nul\0byte.jpg", "no file can have such a name"),
        ("lone surrogate \ud800.jpg", "no file can have such a name"),
        (".", "a folder"),
    ],
)
def test_paths_that_lead_to_no_file(tmp_path, monkeypatch, path, phrase):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(encoded(Image.fromarray(smooth_picture()), "PNG"))
    with pytest.raises(ImageError, match=phrase):
        read_image(path)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket may have no more than 108 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        with pytest.raises(ImageError, match="a socket"):
            read_image("socket.jpg")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs Unix permissions")
def test_no_permission(tmp_path):
    locked = tmp_path / "locked.png"
    locked.write_bytes(encoded(Image.fromarray(smooth_picture()), "PNG"))
    locked.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError, match="no permission"):
            read_image(locked)
    finally:
        os.seteuid(user)


def test_a_failing_disk_is_not_taken_for_a_damaged_picture():
    class FailingDisk(io.BytesIO):
        def read(self, size=-1):
            if self.tell() >= 1024:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(min(size, 1024))

    with pytest.raises(ImageError, match="check the disk"):
        read_image(FailingDisk(encoded(Image.fromarray(smooth_picture()), "BMP")))


def test_the_pixel_limit_is_looked_up_in_the_header():
    exactly = encoded(Image.new("RGB", (100, 50)), "PNG")
    assert read_bytes(exactly, max_pixels=5000).shape == (50, 100, 3)
    with pytest.raises(ImageError, match="100 x 50 pixels, more than the limit of 4,999"):
        read_bytes(exactly, max_pixels=4999)
    # Had this one been decoded first, the sentence would be that it is cut short.
    with pytest.raises(ImageError, match="100 x 50 pixels"):
        read_bytes(exactly[:60], max_pixels=4999)


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF", "MPO"]
)
def test_the_pixel_limit_holds_in_every_format(format):
    with pytest.raises(ImageError, match="64 x 48 pixels, more than the limit"):
        read_bytes(encoded(Image.new("RGB", (64, 48)), format), max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("height", [120, 121])
def test_every_odd_but_good_file_shows_the_picture(tmp_path, height):
    picture = smooth_picture(height)
    for name, tolerance in make_odd_but_good_files(tmp_path, picture).items():
        image = read_image(tmp_path / name)
        assert image.shape == picture.shape, name
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        assert np.abs(image.astype(int) - picture).mean() <= tolerance, name
        assert Path(name).suffix.lower() in PHOTO_SUFFIXES


def grey_tiff(values, dtype: str) -> bytes:
    return encoded(Image.fromarray(np.array([values], dtype)), "TIFF")


def grey_png(values: list[int], transparent: int | None = None) -> bytes:
    rows = b"\0" + struct.pack(f">{len(values)}H", *values)
    extra = b"" if transparent is None else png_chunk(b"tRNS", struct.pack(">H", transparent))
    return make_png(rows, len(values), 1, bits=16, extra=extra)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(grey_png([0, 257, 32896, 65535]), [0, 1, 128, 255], id="16-bit PNG"),
        pytest.param(grey_png([0, 2570, 65535], 2570), [0, 0, 255], id="16-bit PNG, one shade out"),
        pytest.param(grey_tiff([0, 2570, 65535], "<u2"), [0, 10, 255], id="16-bit TIFF"),
        pytest.param(
            make_tiff(struct.pack("<3H", 0, 2570, 65535), 3, 16, photometric=0),
            [255, 245, 0],
            id="16-bit TIFF, white is zero",
        ),
        pytest.param(
            make_tiff(bytes([0xFF, 0xF0, 0x00, 0x80, 0x08, 0x08]), 4, 12),
            [255, 0, 128, 128],
            id="12-bit TIFF",
        ),
        pytest.param(grey_tiff([-5, 7, 255], "<i4"), [0, 7, 255], id="32-bit, 8 used"),
        pytest.param(grey_tiff([0, 257, 65535], "<i4"), [0, 1, 255], id="32-bit, 16 used"),
        pytest.param(grey_tiff([0, 10**9, 2 * 10**9], "<i4"), [0, 128, 255], id="32-bit, all used"),
        pytest.param(grey_tiff([-1, 0.2, 1], "<f4"), [0, 51, 255], id="fractions to 1"),
        pytest.param(grey_tiff([np.nan, 7.4, 200], "<f4"), [0, 7, 200], id="fractions to 255"),
        pytest.param(grey_tiff([0, 0, 0], "<f4"), [0, 0, 0], id="black fractions"),
        pytest.param(
            encoded(Image.fromarray(np.array([[True, False]])), "PNG"), [255, 0], id="bits"
        ),
        pytest.param(make_tiff(b"\xa0", 3, 1, photometric=0), [0, 255, 0], id="fax"),
        pytest.param(make_png(b"\0\x1b", 4, 1, bits=2), [0, 85, 170, 255], id="2-bit PNG"),
        pytest.param(encoded(Image.new("L", (2, 1), 77), "WEBP", lossless=True), [77, 77], id="L"),
        pytest.param(encoded(Image.new("LA", (2, 1), (200, 51)), "PNG"), [40, 40], id="LA"),
        pytest.param(encoded(Image.new("LA", (2, 1), (200, 51)), "TIFF"), [40, 40], id="LA TIFF"),
    ],
)
def test_grey_of_every_depth(content, expected):
    assert read_bytes(content).tolist() == [[[value] * 3 for value in expected]]


def palette_picture() -> Image.Image:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    return picture


RED, GREEN, BLUE, BLACK = [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(encoded(palette_picture(), "PNG"), [RED, GREEN, BLUE], id="palette"),
        pytest.param(encoded(palette_picture(), "BMP"), [RED, GREEN, BLUE], id="palette BMP"),
        pytest.param(encoded(palette_picture(), "TIFF"), [RED, GREEN, BLUE], id="palette TIFF"),
        pytest.param(
            encoded(palette_picture(), "PNG", transparency=1),
            [RED, BLACK, BLUE],
            id="one colour out",
        ),
        pytest.param(
            encoded(palette_picture(), "PNG", transparency=b"\xff\x00\x80"),
            [RED, BLACK, [0, 0, 128]],
            id="alpha in the palette",
        ),
        pytest.param(
            encoded(palette_picture(), "GIF", transparency=1), [RED, BLACK, BLUE], id="GIF, one out"
        ),
        pytest.param(
            encoded(Image.new("RGBA", (1, 1), (200, 100, 50, 51)), "PNG"), [[40, 20, 10]], id="RGBA"
        ),
        pytest.param(
            encoded(
                Image.new("RGBA", (1, 1), (200, 100, 50, 0)), "WEBP", lossless=True, exact=True
            ),
            [BLACK],
            id="colour under full transparency",
        ),
        pytest.param(
            encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
            [BLACK],
            id="RGB, one colour out",
        ),
        pytest.param(
            make_png(b"\0" + struct.pack(">4H", 257, 65535, 32896, 65535), 1, 1, 16, 6),
            [[1, 255, 128]],
            id="16-bit RGBA",
        ),
        pytest.param(
            encoded(Image.new("CMYK", (1, 1), (255, 0, 0, 51)), "TIFF"), [[0, 204, 204]], id="CMYK"
        ),
        pytest.param(
            encoded(Image.new("YCbCr", (1, 1), (90, 90, 240)), "TIFF"), [[247, 23, 23]], id="YCbCr"
        ),
        pytest.param(
            encoded(as_lab(Image.new("RGB", (1, 1), (180, 120, 90))), "TIFF"),
            [[180, 120, 90]],
            id="LAB",
        ),
    ],
)
def test_colour_of_every_mode(content, expected):
    difference = read_bytes(content).astype(int) - np.array([expected])
    assert difference.shape == (1, len(expected), 3)
    assert np.abs(difference).max() <= 2


def test_cmyk_jpeg_as_photoshop_stores_it():
    """Inks inverted, which an Adobe marker says; Pillow writes it that way too."""
    content = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in content
    assert np.abs(read_bytes(content).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_give_the_very_pixels_of_pillow(format):
    content = encoded(Image.fromarray(random_picture(121, 90)), format, quality=60)
    np.testing.assert_array_equal(read_bytes(content), np.array(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("shape", [(2, 300_000), (300_000, 2), (1000, 700)])
def test_large_pictures_are_put_together_rightly(shape):
    picture = random_picture(*shape)
    np.testing.assert_array_equal(
        read_bytes(encoded(Image.fromarray(picture), "PNG", compress_level=1)), picture
    )


UPRIGHT_OF_STORED = {  # EXIF 2.32, table 6: where row 0 and column 0 of the stored picture belong
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_every_orientation(format, orientation):
    stored = smooth_picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(stored), format, exif=exif.tobytes(), quality=95)
    upright = UPRIGHT_OF_STORED[orientation](stored)
    image = read_bytes(content)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 4


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk"]
)
def test_damaged_exif_does_no_harm(exif):
    picture = smooth_picture()
    content = encoded(Image.fromarray(picture), "PNG", exif=exif)
    np.testing.assert_array_equal(read_bytes(content), picture)


def test_odd_exif_still_says_what_is_up():
    """A tag of the wrong type, over which Pillow's exif_transpose stumbles."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x0100, 2, 4, 0x41414141)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    stored = smooth_picture()
    image = read_bytes(encoded(Image.fromarray(stored), "PNG", exif=exif))
    np.testing.assert_array_equal(image, UPRIGHT_OF_STORED[6](stored))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = smooth_picture()
    content = encoded(Image.fromarray(picture), "PNG", exif=exif.tobytes())
    np.testing.assert_array_equal(read_bytes(content), picture)


def test_an_open_file_is_read_from_its_start_and_left_open(tmp_path):
    picture = smooth_picture()
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(Image.fromarray(picture), "PNG"))
    with open(path, "rb") as file:
        file.seek(100)
        np.testing.assert_array_equal(read_image(file), picture)
        assert not file.closed
    upload = io.BytesIO(path.read_bytes())
    np.testing.assert_array_equal(read_image(upload), picture)
    assert not upload.closed
    np.testing.assert_array_equal(read_image(str(path)), picture)
    np.testing.assert_array_equal(read_image(os.fsencode(path)), picture)


def test_very_long_paths(tmp_path):
    longest = 3_900 if sys.platform == "linux" else 900  # Linux allows 4,095 bytes, macOS 1,023
    folder = tmp_path
    while len(os.fsencode(folder)) < longest - 250:
        folder /= "é" * 100
    folder.mkdir(parents=True)
    picture = smooth_picture()
    path = folder / "photo.png"
    path.write_bytes(encoded(Image.fromarray(picture), "PNG"))
    np.testing.assert_array_equal(read_image(path), picture)


def test_a_link_to_a_photo_is_read(tmp_path):
    picture = smooth_picture()
    (tmp_path / "photo.png").write_bytes(encoded(Image.fromarray(picture), "PNG"))
    (tmp_path / "link.jpg").symlink_to("photo.png")
    np.testing.assert_array_equal(read_image(tmp_path / "link.jpg"), picture)


def test_many_threads_read_what_one_reads(tmp_path):
    good = sorted(make_odd_but_good_files(tmp_path, smooth_picture()))
    alone = [read_image(tmp_path / name) for name in good]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read_image, [tmp_path / name for name in good] * 5))
    for index, image in enumerate(together):
        np.testing.assert_array_equal(image, alone[index % len(good)])


def test_a_fresh_program_reads_heic_lazily_and_prints_nothing(tmp_path):
    picture = Image.fromarray(smooth_picture())
    jpeg, heic, odd = tmp_path / "a.jpg", tmp_path / "b.heic", tmp_path / "c.tif"
    jpeg.write_bytes(encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    heic.write_bytes(encoded(picture, "HEIF"))
    odd.write_bytes(encoded(picture, "TIFF")[:-1000])
    program = (
        "import sys\n"
        "from pipeline.photos.images import read_image\n"
        "from pipeline.common.errors import ImageError\n"
        "heavy = {'tensorflow', 'torch', 'sklearn', 'matplotlib', 'pandas', 'pillow_heif'}\n"
        "read_image(sys.argv[1])\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert read_image(sys.argv[2]).shape == (121, 90, 3)\n"
        "try:\n"
        "    read_image(sys.argv[3])\n"
        "except ImageError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, jpeg, heic, odd],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are bound so on Linux")
def test_a_picture_is_decoded_with_as_many_threads_as_there_are_cores_for_it(tmp_path):
    picture = Image.fromarray(smooth_picture())
    for name, kind in (("a.heic", "HEIF"), ("b.avif", "AVIF")):
        (tmp_path / name).write_bytes(encoded(picture, kind))
    program = (
        "import os, sys\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pipeline.photos.images import read_image\n"
        "for path in sys.argv[1:]: assert read_image(path).shape == (121, 90, 3)\n"
        "import pillow_heif\n"
        "from PIL import AvifImagePlugin\n"
        "print(pillow_heif.options.DECODE_THREADS, AvifImagePlugin.DEFAULT_MAX_THREADS)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.heic", tmp_path / "b.avif"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("1 1\n", "")


def large_file(format: str, mode: str = "RGB", width: int = 8000) -> bytes:
    """A picture of plain squares, three quarters as high as it is wide."""
    y, x = np.mgrid[: width * 3 // 4, :width] // 50
    return encoded(Image.fromarray((x + y).astype(np.uint8)).convert(mode), format)


@pytest.mark.parametrize(
    ("format", "mode"),
    [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB")],
)
def test_pixels_are_copied_bit_by_bit(format, mode):
    content = large_file(format, mode, 2000)
    read_bytes(content)  # what is imported then does not count
    tracemalloc.start()
    try:
        image = read_bytes(content)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1.3 * image.nbytes + len(content)


@pytest.mark.parametrize(("format", "mode"), [("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA")])
def test_other_threads_run_while_a_large_photo_is_read(format, mode, monkeypatch):
    """Pillow keeps Python's lock while it hands over pixels, so it is asked for few at a time."""
    content = large_file(format, mode, 4000)
    handed_over, hand_over = [], Image.Image.tobytes

    def counted(image: Image.Image, *arguments, **options) -> bytes:
        handed_over.append(image.width * image.height)
        return hand_over(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "tobytes", counted)
    image = read_bytes(content)
    assert sum(handed_over) >= image.shape[0] * image.shape[1]
    assert max(handed_over) <= image.shape[0] * image.shape[1] / 40


@pytest.mark.parametrize("options", [
    {}, {"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"},
    {"subsampling": "4:1:1"}, {"keep_rgb": True}, {"restart_marker_rows": 1}, {"quality": 20},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(121, 90), (1, 1), (17, 8)])
def test_a_jpeg_has_the_pixels_that_pillow_sees(options, mode, size):
    if mode != "RGB" and not options.keys() <= {"progressive", "restart_marker_rows", "quality"}:
        pytest.skip("of colours only")
    picture = Image.fromarray(smooth_picture(*size)).convert(mode)
    content = encoded(picture, "JPEG", **options)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(read_bytes(content), np.asarray(image.convert("RGB")))


@settings(deadline=None, max_examples=300)
@given(st.integers(20, 4000), st.integers(0, 255), st.booleans(), st.booleans())
def test_of_a_damaged_jpeg_no_more_is_read_than_pillow_reads(place, byte, progressive, is_cut):
    content = bytearray(encoded(Image.fromarray(smooth_picture()), "JPEG", progressive=progressive))
    place = place % (len(content) - 2)
    content[place] = byte
    if is_cut:
        del content[place + 1 :]
    try:
        pixels = read_bytes(bytes(content))
    except ImageError:
        return
    with Image.open(io.BytesIO(bytes(content) + b"\xff\xd9")) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what was read")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_a_file_is_read_once(format, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.fromarray(noise), format))
    read_picture(path)  # what is imported then does not count

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    read_picture(path)
    assert bytes_read() - before < 1.1 * path.stat().st_size + 1000


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults of a thread")
@pytest.mark.skipif(
    HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(),
    reason="where all memory comes in huge pages, there are too few faults to count",
)
def test_memory_for_a_large_photo_comes_cleared():
    """Whoever first touches a page of memory takes a fault: the decoder, not who clears it.

    Counted in a thread, whose memory the C library keeps for it, and several times over.
    """
    from resource import RUSAGE_THREAD, getrusage

    clearing, filling = [], []

    def use_memory() -> None:
        for _ in range(5):
            started = getrusage(RUSAGE_THREAD).ru_minflt
            image = Image.new("RGB", (8000, 6000), None)
            cleared = getrusage(RUSAGE_THREAD).ru_minflt
            image.paste((1, 2, 3), (0, 0, *image.size))
            clearing.append(cleared - started)
            filling.append(getrusage(RUSAGE_THREAD).ru_minflt - cleared)

    thread = threading.Thread(target=use_memory)
    thread.start()
    thread.join()
    assert sum(clearing) < sum(filling) / 100


def small_files() -> list[bytes]:
    picture = Image.fromarray(smooth_picture(24, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    formats = ["JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"]
    files = [encoded(picture, format, exif=exif.tobytes()) for format in formats]
    files += [encoded(picture, "JPEG", progressive=True), encoded(picture.convert("CMYK"), "JPEG")]
    files += [encoded(picture, "WEBP", lossless=True), encoded(picture.convert("LA"), "PNG")]
    files += [encoded(picture.quantize(16), "PNG", transparency=3)]
    files += [encoded(picture, "PNG", save_all=True, append_images=[picture.rotate(180)])]
    files += [
        encoded(picture, "TIFF", compression=compression)
        for compression in ("tiff_lzw", "tiff_deflate", "packbits")
    ]
    return [*files, encoded(as_lab(picture), "TIFF"), grey_png([1, 2]), grey_tiff([1, 2], "<f4")]


SMALL_FILES = small_files()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_bytes_give_a_picture_or_a_sentence(data):
    content = bytearray(data.draw(st.sampled_from(SMALL_FILES)))
    places = st.integers(0, len(content) - 1) | st.integers(0, min(200, len(content) - 1))
    flips = st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)
    for place, byte in data.draw(flips):
        content[place] = byte
    end = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    try:
        image = read_bytes(bytes(content[:end]), max_pixels=1_000_000)
    except ImageError as error:
        assert "; " in str(error) or ": " in str(error)  # what is wrong, and what to do
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert 0 < image.shape[0] * image.shape[1] <= 1_000_000


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([content[:16] for content in SMALL_FILES] + [b"", b"RIFF", b"\0\0\0\x18ftyp"]),
    st.binary(max_size=200),
)
def test_noise_gives_a_sentence(start, noise):
    try:
        assert read_bytes(start + noise, max_pixels=1_000_000).ndim == 3
    except ImageError as error:
        assert len(str(error)) > 20


def random_picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), np.uint8
    )


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 400))
def test_nearest_is_pillows_nearest(height, width, size):
    image = random_picture(height, width)
    pillows = Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize(image, size, "nearest"), np.array(pillows))


@pytest.mark.parametrize("size", [224, 256])
def test_nearest_is_pillows_nearest_at_usual_sizes_of_input(size):
    for side in range(1, 2000, 13):
        image = np.zeros((side, 1, 3), np.uint8)
        image[:, 0, 0], image[:, 0, 1] = np.arange(side) % 256, np.arange(side) // 256
        pillows = Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(resize(image, size, "nearest"), np.array(pillows))


def test_area_is_the_mean_of_the_pixels_covered():
    image = random_picture(64 * 3, 64 * 2)
    means = image.reshape(64, 3, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, 64, "area") - means).max() <= 0.5 + 1e-6


def test_area_enlarges_smoothly():
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 200
    enlarged = resize(edge, 64, "area")
    np.testing.assert_array_equal(
        enlarged, cv2.resize(edge, (64, 64), interpolation=cv2.INTER_CUBIC)
    )
    assert len(np.unique(enlarged)) > 5  # no blocks


@pytest.mark.parametrize("filter", ["area", "nearest"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (300, 2), (256, 256), (999, 1001)])
def test_any_shape_becomes_a_square_of_uint8(filter, shape):
    image = random_picture(*shape)
    square = resize(image[:, ::-1], 256, filter)  # a view: not contiguous
    assert square.shape == (256, 256, 3) and square.dtype == np.uint8
    if shape == (256, 256):
        np.testing.assert_array_equal(square, image[:, ::-1])


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="'bilinear'"):
        resize(random_picture(8, 8), 4, "bilinear")
