"""Decoding straight into an array of pixels, where that is quicker than through Pillow.

The pixels are the same to the last bit. Pillow holds a picture with a fourth byte a pixel and hands
it over by copying, which takes a JPEG of 12 megapixels twice as long, and half as long again a
WebP. Whatever is not plain and whole is left to Pillow, which says what is wrong with it.
"""

from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image
from simplejpeg import decode_jpeg, decode_jpeg_header

# Of a JPEG's own: others are left to Pillow, CMYK among them.
_COLOURS = ("YCbCr", "RGB", "Gray")


def decode_directly(image: Image.Image, kind: str, file: BinaryIO) -> np.ndarray | None:
    """The (H, W, 3) uint8 RGB, as stored, of a picture that Pillow has opened but not decoded.

    `kind` is "JPEG", "WEBP", … None where Pillow shall decode. Memory for the pixels must be
    allowed, and the scans of a JPEG checked, before.
    """
    decode = {"JPEG": _jpeg, "WEBP": _webp}.get(kind)
    return decode(image, file) if decode else None


def _jpeg(image: Image.Image, file: BinaryIO) -> np.ndarray | None:
    file.seek(0)
    content = file.read()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    try:
        height, width, colours, _ = decode_jpeg_header(content)
        if (height, width) != pixels.shape[:2] or colours not in _COLOURS:
            return None
        # It is strict: whatever the decoder would warn of is an error.
        decode_jpeg(content, "RGB", buffer=pixels)
    except ValueError:
        return None
    return pixels


def _webp(image: Image.Image, file: BinaryIO) -> np.ndarray | None:
    """None for what moves or is not opaque."""
    if image.mode != "RGB" or image.is_animated:
        return None
    file.seek(0)
    content = np.frombuffer(file.read(), np.uint8)
    try:
        return cv2.imdecode(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
