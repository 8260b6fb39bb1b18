"""Makes photos that cannot be read, each in its own way, and odd ones that must read well.

Everything is generated, so the repository holds no broken binaries. Used by the tests of reading
and by those that score a whole folder.
"""

import os
import struct
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageCms

pillow_heif.register_heif_opener()  # so that Pillow can write HEIC


def make_broken_files(folder: Path) -> dict[str, str]:
    """Write one file of each broken kind into `folder`: {name: a phrase of its error sentence}.

    All names end like photos, so a scan of the folder meets every one of them.
    """
    photo = _test_picture()
    jpeg, png, gif, bmp = (encoded(photo, format) for format in ("JPEG", "PNG", "GIF", "BMP"))
    webp = encoded(photo, "WEBP", lossless=True)
    tiff = encoded(photo, "TIFF", compression="tiff_lzw")
    avif, heic = encoded(photo, "AVIF"), encoded(photo, "HEIF")
    noise = np.random.default_rng(2).bytes(4000)

    contents = {
        "empty.jpg": (b"", "is empty"),
        "one byte.png": (b"\x89", "unknown type"),
        "signature only.png": (png[:8], "like PNG, but its header is damaged or cut short"),
        "header only.jpg": (jpeg[:20], "like JPEG, but its header is damaged or cut short"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "JPEG picture is cut short"),
        "truncated progressive.jpg": (
            encoded(photo, "JPEG", progressive=True)[:-500],
            "JPEG picture is cut short",
        ),
        "truncated.png": (png[: len(png) // 2], "PNG picture is cut short"),
        "truncated.webp": (webp[: len(webp) // 2], "WebP picture is cut short"),
        "truncated.gif": (gif[: len(gif) // 2], "GIF picture is cut short"),
        "truncated.bmp": (bmp[: len(bmp) // 2], "BMP picture is cut short"),
        "truncated.tif": (tiff[: len(tiff) // 2], "TIFF picture is cut short"),
        "truncated.avif": (avif[:-200], "AVIF picture is cut short"),
        "truncated.heic": (heic[:-200], "HEIC picture is cut short"),
        "corrupt middle.png": (_overwritten_middle(png), "PNG picture is damaged"),
        "corrupt middle.webp": (_overwritten_middle(webp), "WebP picture is damaged"),
        "wrong checksum.png": (make_png(b"\0" * 4, 1, 1, checksum_error=1), "header is damaged"),
        "noise after jpeg header.jpg": (jpeg[:20] + noise, "JPEG picture is cut short"),
        "noise after heic header.heic": (heic[:40] + noise, "header is damaged"),
        "noise.jpg": (b"\x01" + noise, "unknown type"),
        "zeros.jpg": (bytes(4000), "unknown type"),
        "bomb.png": (make_png(b"", 30000, 30000), "pixels"),
        "bomb just over the limit.png": (make_png(b"", 10001, 10000), "10001 x 10000 pixels"),
        "bomb.bmp": (bmp[:18] + struct.pack("<ii", 60000, 60000) + bmp[26:], "pixels"),
        "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + gif[10:], "pixels"),
        "zero by zero.png": (make_png(b"", 0, 0), "no width or height"),
        "zero wide.bmp": (bmp[:18] + bytes(4) + bmp[22:], "no width or height"),
        "text.jpg": (b"This was going to be a photo.\n", "a text file"),
        "web page.jpg": (b"<!DOCTYPE html><html><title>404</title></html>", "a web page"),
        "git lfs pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        "document.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        "drawing.png": (b'<?xml version="1.0"?>\n<svg width="9" height="9"/>', "an SVG drawing"),
        "video.jpg": (_ftyp(b"isom", b"isom", b"mp42"), "an MP4 video"),
        "quicktime.heic": (_ftyp(b"qt  "), "a QuickTime video"),
        "webm.webp": (b"\x1aE\xdf\xa3" + noise, "a Matroska or WebM video"),
        "avi.webp": (b"RIFF\0\1\0\0AVI LIST" + noise, "an AVI video"),
        "archive.jpg": (b"PK\x03\x04" + noise, "a zip archive"),
        "jpeg xl.jpg": (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        "photoshop.jpg": (b"8BPS\0\1" + noise, "a Photoshop document"),
        "three floats a pixel.tif": (
            make_tiff(np.ones((1, 1, 3), "<f4").tobytes(), 1, 32, sample_format=3),
            "of a rare kind",
        ),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    phrases = {name: phrase for name, (_, phrase) in contents.items()}
    return phrases | dict(_make_special_files(folder, jpeg))


def make_odd_but_good_files(folder: Path, image: np.ndarray) -> dict[str, float]:
    """Write `image` (H, W, 3 uint8 RGB) in every format and mode that must read well.

    Returns {name: the largest mean absolute difference to `image` that reading may leave}, in grey
    levels: 0 where the format is lossless. Upright, all of them show `image`.
    """
    picture = Image.fromarray(image)
    height, width = image.shape[:2]
    opaque = Image.new("L", picture.size, 255)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    other = Image.new("RGB", picture.size, (255, 0, 255))
    few_colours = 12.0  # what 256 colours may cost a photo

    def write(name: str, picture: Image.Image, format: str, tolerance: float, **options) -> None:
        (folder / name).write_bytes(encoded(picture, format, **options))
        tolerances[name] = tolerance

    tolerances: dict[str, float] = {}
    write("plain.jpg", picture, "JPEG", 3.0, quality=95)
    write("progressive.jpeg", picture, "JPEG", 3.0, quality=95, progressive=True)
    write(
        "several pictures.mpo",
        picture,
        "MPO",
        3.0,
        quality=95,
        save_all=True,
        append_images=[other.copy()],
    )
    write("cmyk.jpg", picture.convert("CMYK"), "JPEG", 4.0, quality=95)
    write("plain.png", picture, "PNG", 0)
    write("opaque alpha.png", Image.merge("RGBA", (*picture.split(), opaque)), "PNG", 0)
    write("palette.png", picture.quantize(256), "PNG", few_colours)
    write("named wrongly.jpg", picture, "PNG", 0)
    write("named wrongly.png", picture, "JPEG", 3.0, quality=95)
    write("UPPER CASE.PNG", picture, "PNG", 0)
    write("animated.png", picture, "PNG", 0, save_all=True, append_images=[other.copy(), picture])
    write(
        "animated.gif",
        picture.quantize(256),
        "GIF",
        few_colours,
        save_all=True,
        append_images=[other.copy()],
    )
    write(
        "animated.webp",
        picture,
        "WEBP",
        0,
        save_all=True,
        append_images=[other.copy()],
        lossless=True,
    )
    write("lossy.webp", picture, "WEBP", 4.0, quality=95)
    write(
        "lossless.webp", Image.merge("RGBA", (*picture.split(), opaque)), "WEBP", 0, lossless=True
    )
    write("plain.bmp", picture, "BMP", 0)
    write("cmyk.tif", picture.convert("CMYK"), "TIFF", 1.0)
    write("lab.tif", as_lab(picture), "TIFF", 3.0)
    write("pages.tiff", picture, "TIFF", 0, save_all=True, append_images=[other.copy()])
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "zstd"):
        write(f"{compression}.tif", picture, "TIFF", 0, compression=compression)
    write("plain.avif", picture, "AVIF", 3.0, quality=95)
    write("plain.heic", picture, "HEIF", 4.0, quality=95)
    write("sideways.jpg", turned, "JPEG", 3.0, quality=95, exif=sideways.tobytes())
    write("sideways.png", turned, "PNG", 0, exif=sideways.tobytes())
    write("sideways.webp", turned, "WEBP", 0, exif=sideways.tobytes(), lossless=True)
    write("sideways.tif", turned, "TIFF", 0, exif=sideways.tobytes())
    write("sideways.avif", turned, "AVIF", 3.0, quality=95, exif=sideways.tobytes())
    write("sideways.heic", turned, "HEIF", 4.0, quality=95, exif=sideways.tobytes())
    write("Zoë 笑顔 \U0001f600.png", picture, "PNG", 0)
    write("new\nline, comma; 'quote' and %s.png", picture, "PNG", 0)
    write("-starts like an option.png", picture, "PNG", 0)
    write("n" * 251 + ".png", picture, "PNG", 0)

    deep = image.astype(">u2") * 257
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), deep.reshape(height, -1).view(np.uint8)], 1
    )
    (folder / "16 bits a channel.png").write_bytes(
        make_png(rows.tobytes(), width, height, bits=16, colour_type=2)
    )
    tolerances["16 bits a channel.png"] = 0
    return tolerances


def encoded(picture: Image.Image, format: str, **options) -> bytes:
    """The bytes of `picture` in a format of Pillow's."""
    file = BytesIO()
    picture.copy().save(file, format, **options)  # Pillow keeps some settings in what it saved
    return file.getvalue()


def as_lab(picture: Image.Image) -> Image.Image:
    """`picture` in CIELAB, for TIFF."""
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")


def make_png(
    rows: bytes, width: int, height: int, bits=8, colour_type=0, extra=b"", checksum_error=0
) -> bytes:
    """A PNG of `rows`, each with its filter byte before it; the header says whatever is asked."""

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header, checksum_error)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(kind: bytes, data: bytes, checksum_error: int = 0) -> bytes:
    """One chunk of a PNG; with `checksum_error` its checksum is wrong."""
    checksum = zlib.crc32(kind + data) ^ checksum_error
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def make_tiff(
    pixels: bytes,
    width: int,
    bits: int,
    sample_format: int = 1,
    photometric: int = 1,
    colours: np.ndarray | None = None,
) -> bytes:
    """A little-endian TIFF with one row of pixels; of floats (`sample_format` 3) three a pixel;
    with the `colours` (3, N) 0…65535 of a palette.

    Tags by their numbers in the TIFF 6.0 specification; for kinds that Pillow cannot write.
    """
    channels = 3 if sample_format == 3 else 1
    entries = [
        (256, 4, width),
        (257, 4, 1),  # height
        (258, 3, bits),
        (259, 3, 1),  # not compressed
        (262, 3, 2 if channels == 3 else photometric),
        (273, 4, 8),  # the pixels stand right after the header
        (277, 3, channels),
        (278, 4, 1),  # rows a strip
        (279, 4, len(pixels)),
        (339, 3, sample_format),
    ]
    entries = [(tag, kind, 1, value) for tag, kind, value in entries]
    if colours is not None:
        pixels = pixels.ljust(len(pixels) + len(pixels) % 2, b"\0")
        entries.insert(-1, (320, 3, colours.size, 8 + len(pixels)))
        pixels += colours.astype("<u2").tobytes()
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)


def _make_special_files(folder: Path, jpeg: bytes) -> Iterator[tuple[str, str]]:
    """What only some systems have: links, pipes, and permissions that bind the user."""
    if sys.platform == "win32":
        return
    (folder / "broken link.jpg").symlink_to(folder / "gone.jpg")
    yield "broken link.jpg", "link is broken"
    (folder / "link to itself.jpg").symlink_to(folder / "link to itself.jpg")
    yield "link to itself.jpg", "leads in a circle"
    os.mkfifo(folder / "pipe.jpg")
    yield "pipe.jpg", "a named pipe"
    (folder / "device.jpg").symlink_to("/dev/zero")
    yield "device.jpg", "a device"
    if os.geteuid() != 0:  # root may read everything
        (folder / "locked.jpg").write_bytes(jpeg)
        (folder / "locked.jpg").chmod(0)
        yield "locked.jpg", "no permission"


def _test_picture() -> Image.Image:
    """A gradient with some grain: 160 × 120, so that no encoder makes it trivially small."""
    y, x = np.mgrid[:120, :160]
    gradient = np.stack([x, y * 2, x + y], axis=-1)
    grain = np.random.default_rng(1).integers(0, 24, gradient.shape)
    return Image.fromarray((gradient * 0.8 + grain).astype(np.uint8))


def _overwritten_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 200 + content[middle + 200 :]


def _ftyp(*brands: bytes) -> bytes:
    box = b"ftyp" + brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return struct.pack(">I", 4 + len(box)) + box + b"\0\0\0\x08mdat"
