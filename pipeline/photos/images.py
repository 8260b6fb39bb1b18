"""Photos from disk or from an upload as upright RGB arrays, and the resizing that networks see.

This is the only decoder of the project: training, validation, scoring and the web page all read
through `read_image` and resize through `resize`, so they can never drift apart. Whatever is wrong
with a file comes out as one `ImageError` with a sentence; nothing else escapes, and no file can
make it hang or fill the memory.
"""

import contextlib
import errno
import functools
import importlib
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.common.errors import ImageError
from pipeline.common.machine import usable_cores
from pipeline.decoding import jpeg_scans, png_chunks, tiff_pictures
from pipeline.decoding.direct import decode_directly
from pipeline.decoding.image_kinds import READ, other_type, picture_format
from pipeline.origin.declared import declared_origin
from pipeline.photos.photo import Picture

log = logging.getLogger(__name__)

RAW_SUFFIXES: frozenset[str] = frozenset(
    {".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf"}
    | {".pef", ".srw", ".3fr", ".x3f", ".mrw", ".rwl", ".iiq", ".erf", ".gpr"}
)
"""The endings of camera raw files: few can be read, and nobody shall think that the others were."""

PHOTO_SUFFIXES: frozenset[str] = RAW_SUFFIXES | frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib"}
    | {".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif"}
)
"""The endings, in lower case, of the files that a search through a folder takes for photos."""

# Other threads, the web service's among them, wait while a library keeps Python's lock. Pillow does
# so while it clears memory and hands over pixels, not while it decodes and converts: for 48
# megapixels at once 0.1 seconds of processor time, on a busy machine much longer. So pixels are
# copied in strips. And memory that Pillow asks for in blocks below 32 MB (16 MB unless told) is
# kept by the C library and cleared before it is used again; larger blocks come cleared.
STRIP_PIXELS = 1 << 18
_MOST_AT_ONCE = 64 << 20  # bytes of a file
Image.core.set_block_size(64 << 20)

# Pillow warns of odd metadata and of more than 89 megapixels. The pictures are read all the same,
# and the limit below is ours; a warning without the file's name would help nobody. Set once here,
# because warnings.catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\b")


def read_image(source: str | os.PathLike | BinaryIO, max_pixels: int = 100_000_000) -> np.ndarray:
    """Decode a photo: (height, width, 3) uint8, RGB, upright, in memory of its own.

    `source` is a path, or a binary file open for reading and seeking (it is read from its start
    and left open). JPEG (and MPO), PNG, WebP, BMP, TIFF, GIF, AVIF and HEIC are told apart by their
    first bytes, whatever the name says; of several pictures or frames the first one counts, of a
    HEIC the primary one, of a TIFF the first that is no preview. The EXIF orientation is applied,
    transparency is composed on black, grey of 16 or 32 bits is scaled to 8, ICC profiles are
    ignored on purpose (the networks learn from pixels as stored). A JPEG that lacks nothing but its
    end marker is read, and the log says so; docs/photos.md has the details.

    Raises `ImageError` for everything that cannot be read: missing, empty, cut short, damaged, of
    another type, a camera's raw file, a folder or device, unreadable, or with more than
    `max_pixels` pixels in its header, which is looked at before anything is decoded. Pillow itself
    refuses more than 178,956,970 pixels, so a larger `max_pixels` has no effect.
    """
    with _opened(source) as file:
        return _decode(file, max_pixels)[0]


def read_picture(source: str | os.PathLike | BinaryIO, max_pixels: int = 100_000_000) -> Picture:
    """The same as `read_image`, with what the file says of its origin. It is opened once."""
    with _opened(source) as file:
        pixels, kind = _decode(file, max_pixels)
        return Picture(pixels, declared_origin(file, kind))


def resize(image: np.ndarray, size: int, filter: str) -> np.ndarray:
    """Resize (height, width, 3) uint8 to (size, size, 3) uint8; the aspect ratio is not kept.

    `filter` is "area" (the average of the pixels covered; bicubic where the picture must grow) or
    "nearest" (the very pixels that Pillow's NEAREST picks, as MesoNet's published weights expect).
    Any other raises `ValueError`.
    """
    if filter == "area":
        height, width = image.shape[:2]
        shrinking = size * size < height * width
        interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
        return cv2.resize(image, (size, size), interpolation=interpolation)
    if filter == "nearest":
        # Plain INTER_NEAREST takes other pixels; this one was compared at 200,000 pairs of sizes.
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    raise ValueError(f'unknown resize filter {filter!r}: it must be "area" or "nearest"')


@contextlib.contextmanager
def _opened(source: str | os.PathLike | BinaryIO) -> Iterator[BinaryIO]:
    """The file, open; what goes wrong with it, also later, is raised as ImageError."""
    try:
        if hasattr(source, "read"):
            yield source
            return
        _check_regular_file(source)
        with open(source, "rb") as file:
            yield _at_once(file)
    except OSError as error:
        raise ImageError(_why_unreadable(error, source)) from error


def _at_once(file: BinaryIO) -> BinaryIO:
    """The file's bytes, read from the disk once, unless there are very many of them."""
    content = file.read(_MOST_AT_ONCE + 1)
    if len(content) > _MOST_AT_ONCE:
        return file
    held = BytesIO(content)
    held.name = file.name
    return held


def _check_regular_file(path: str | os.PathLike) -> None:
    """Refuse what is no plain file before opening it: opening a FIFO would wait for a writer."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL character, or one that the file system cannot encode
        raise ImageError("no file can have such a name; check the path") from error
    if stat.S_ISDIR(mode):
        raise ImageError("this is a folder, not a photo; name the photos in it, or scan the folder")
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_ISFIFO: "a named pipe (FIFO)",
            stat.S_ISSOCK: "a socket",
            stat.S_ISCHR: "a device",
            stat.S_ISBLK: "a device",
        }
        kind = next((name for matches, name in kinds.items() if matches(mode)), "a special file")
        raise ImageError(f"this is {kind}, not a file with a photo in it; leave it out")


def _why_unreadable(error: OSError, path: str | os.PathLike) -> str:
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return "this link is broken: the file it points to does not exist; mend or remove the link"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "there is no such file; check the path"
    if isinstance(error, PermissionError):
        return "there is no permission to read this file; change its permissions or its owner"
    if error.errno == errno.ENAMETOOLONG:
        return "the name or path is too long for this system; shorten it or move the file up"
    if error.errno == errno.ELOOP:
        return "this link leads in a circle; mend or remove the link"
    return f"the file cannot be read ({error.strerror}); check the disk or the network drive"


def _decode(file: BinaryIO, max_pixels: int) -> tuple[np.ndarray, str]:
    """The pixels, and the kind of picture as `picture_format` names it."""
    file.seek(0)
    head = file.read(1024)
    if not head:
        raise ImageError("the file is empty; copy or download it again")
    kind = picture_format(head)
    if kind is None:
        raise ImageError(f"this is {other_type(head)}, not a photo of a type that is read: {READ}")
    _load_plugin(kind)
    try:
        return _READERS.get(kind, _pixels)(file, kind, max_pixels), kind
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"the picture claims to have far more pixels than the limit of {max_pixels:,} pixels; "
            "save a smaller copy of it"
        ) from error
    except MemoryError as error:
        raise ImageError(
            "the picture needs more memory than there is; save a smaller copy of it"
        ) from error
    # Decoders raise nearly anything on hostile bytes: ValueError, SyntaxError, struct.error, …
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's trouble, not the picture's
        raise ImageError(_why_undecodable(error, file, head, kind)) from error


def _read_jpeg(file: BinaryIO, kind: str, max_pixels: int) -> np.ndarray:
    try:
        return _pixels(file, kind, max_pixels)
    except jpeg_scans.MissingEnd:
        whole = jpeg_scans.with_end(file)
        if whole is None:
            raise
    name = getattr(file, "name", "a photo")
    log.warning("%s: the JPEG lacks its end marker, but no pixel; it is read all the same", name)
    return _pixels(whole, kind, max_pixels)


def _read_png(file: BinaryIO, kind: str, max_pixels: int) -> np.ndarray:
    return _pixels(png_chunks.without_ancillary(file), kind, max_pixels)


def _read_tiff(file: BinaryIO, kind: str, max_pixels: int) -> np.ndarray:
    photo, orientation = tiff_pictures.main_picture(file)
    try:
        return _upright(_pixels(photo, kind, max_pixels), orientation)
    except (ImageError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:
        if photo is file:
            raise
        raise ImageError(
            "only a preview in this TIFF or camera raw file can be read, not its full picture; "
            "save that as JPEG or PNG in the program that it comes from"
        ) from error


_READERS = {"JPEG": _read_jpeg, "PNG": _read_png, "TIFF": _read_tiff}


def _pixels(file: BinaryIO, kind: str, max_pixels: int) -> np.ndarray:
    """Decode what Pillow calls `kind`: (height, width, 3) uint8, upright.

    Raises `ImageError` for too many pixels, and whatever decoders raise.
    """
    with Image.open(file, formats=[kind]) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                f"the picture claims to have {width} x {height} pixels, more than the limit of "
                f"{max_pixels:,} pixels; save a smaller copy of it"
            )
        # At full size also where a JPEG could be decoded to half or a quarter of it, in a third
        # of the time: that moves fake_probability. With faces still as large as Meso4 and
        # MesoInception4 look at (256 pixels) by up to 0.03, three times as large by up to 0.02,
        # and in between by up to 0.12 (50 faces at each of 5 sizes).
        position = file.tell()
        if kind == "JPEG":
            jpeg_scans.check_scans(file, width * height)
        pixels = decode_directly(image, kind, file)
        if pixels is None:
            file.seek(position)
            if kind == "TIFF":
                tiff_pictures.check_strips(image)
                tiff_pictures.mend_palette(image)
            image.load()
            pixels = _array(_of_8_bits(image), _opaque if _is_invisible_bmp(image) else _rgb)
        return _upright(pixels, _orientation(image))


def _why_undecodable(error: Exception, file: BinaryIO, head: bytes, kind: str) -> str:
    name = _NAMES.get(kind, kind)
    if _CUT_SHORT.search(str(error)) or file.seek(0, os.SEEK_END) < _promised_length(head, kind):
        return f"the {name} picture is cut short: its end is missing; copy or download it again"
    if isinstance(error, UnidentifiedImageError):
        return (
            f"the file begins like {name}, but its header is damaged or cut short, gives no width "
            "or height, or is of a rare kind; save it as PNG in another program"
        )
    return f"the {name} picture is damaged: its data cannot be decoded; copy or download it again"


def _promised_length(head: bytes, kind: str) -> int:
    """The bytes that a file must have by its own header, where the decoder's error hides it."""
    if kind == "WEBP":
        return 8 + int.from_bytes(head[4:8], "little")
    if kind == "TIFF":  # its directory may stand at the very end
        return 2 + int.from_bytes(head[4:8], "little" if head.startswith(b"II") else "big")
    return 0


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where the metadata is damaged.

    Ask after `load`: a PNG may keep EXIF behind its pixels, and TIFF pictures turn upright then.
    HEIC is turned by its decoder, which leaves 1 here; what AVIF says in its own boxes stands in
    its EXIF by then, and XMP has no say in it.
    """
    try:
        if image.format == "AVIF":
            image.info.pop("xmp", None)
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # as many kinds of error as there are kinds of broken EXIF
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the rotation of (H, W, 3) uint8."""
    undo = {
        2: lambda: cv2.flip(pixels, 1),
        3: lambda: cv2.rotate(pixels, cv2.ROTATE_180),
        4: lambda: cv2.flip(pixels, 0),
        5: lambda: cv2.transpose(pixels),
        6: lambda: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
        7: lambda: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
        8: lambda: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }.get(orientation)
    return pixels if undo is None else undo()


def _array(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image] = lambda strip: strip
) -> np.ndarray:
    """What `convert` makes of an image, strip by strip: (H, W) or (H, W, channels)."""
    height, width = image.height, image.width
    rows = max(1, STRIP_PIXELS // width)
    array = None
    for top in range(0, height, rows):
        for left in range(0, width, STRIP_PIXELS):  # once, in all but extremely wide pictures
            right, bottom = min(left + STRIP_PIXELS, width), min(top + rows, height)
            strip = np.asarray(convert(image.crop((left, top, right, bottom))))
            if array is None:
                array = np.empty((height, width, *strip.shape[2:]), strip.dtype)
            array[top:bottom, left:right] = strip
    return array


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        black = Image.new("RGB", image.size)
        black.paste(with_alpha, mask=with_alpha)
        return black
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def _is_invisible_bmp(image: Image.Image) -> bool:
    """Whether all of a BMP would be transparent: then programs that know of no transparency have
    left its alpha at 0, and others show it as if it had none."""
    return (
        image.format == "BMP"
        and image.mode == "RGBA"
        and not _array(image, lambda strip: strip.getchannel("A")).any()
    )


def _opaque(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """The image, but deep grey scaled to 8 bits: Pillow would clip all above 255 to white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    from PIL import TiffImagePlugin

    grey = _array(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if image.mode == "I" and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1:
        grey = grey.view(np.uint32)  # which Pillow has no mode for
    if image.mode in ("I", "F"):
        # Nothing says what is white. Take the usual range (0…1 only for fractions) that holds all.
        grey = np.nan_to_num(grey.astype(np.float32))
        usual = (255, 65535) if image.mode == "I" else (1, 255, 65535)
        white = next((white for white in usual if grey.max() <= white), grey.max())
        return Image.fromarray(np.rint(grey.clip(0, white) * (255 / white)).astype(np.uint8))
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]  # 12 is read as it is, up to 4095
    scaled = np.rint(np.linspace(0, 255, 2**bits)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        scaled = scaled[::-1]
    if "transparency" in image.info:  # one shade that stands for nothing
        scaled[image.info["transparency"]] = 0
    return Image.fromarray(scaled[grey])


_CUT_SHORT = re.compile("truncated|end of file|outside of file", re.IGNORECASE)
_NAMES = {"WEBP": "WebP", "HEIF": "HEIC"}

_PLUGINS = {
    "AVIF": "PIL.AvifImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
}


@functools.cache
def _load_plugin(kind: str) -> None:
    """Load what Pillow needs for a kind of picture only once there is one: start-up is shorter.

    Unless asked for by name, Pillow loads all of its 45 plugins for a TIFF, WebP or AVIF picture.
    """
    if kind in _PLUGINS:
        plugin = importlib.import_module(_PLUGINS[kind])
        if kind == "AVIF":  # or it would start a thread for each core of the machine
            plugin.DEFAULT_MAX_THREADS = usable_cores()
    elif kind == "HEIF":
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = usable_cores()  # it would start four anywhere
        pillow_heif.register_heif_opener()
