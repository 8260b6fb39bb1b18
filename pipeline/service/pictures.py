"""Pictures for a web page: small copies, heat maps and generated faces as data URIs."""

import base64

import cv2
import numpy as np

from pipeline.photos.pixels import shrink

PREVIEW_SIDE = 1024  # pixels of the longer side


def preview(image: np.ndarray, longest_side: int = PREVIEW_SIDE) -> str:
    """A JPEG of an RGB image (H, W, 3) uint8, reduced to `longest_side`, as a data URI."""
    return _data_uri("jpeg", jpeg(image, longest_side))


def jpeg(image: np.ndarray, longest_side: int) -> bytes:
    """A JPEG of an RGB image (H, W, 3) uint8, reduced to `longest_side`."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 88]
    return cv2.imencode(".jpg", shrink(image, longest_side)[..., ::-1], quality)[1].tobytes()


def heat_map_picture(heat: np.ndarray) -> str:
    """A PNG of a heat map (S, S) float 0…1 as a data URI: red where it is hot, else transparent."""
    level = np.clip(np.asarray(heat, np.float32), 0, 1)
    colours = cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    with_alpha = np.dstack([colours, (level * 255).astype(np.uint8)])
    return _data_uri("png", cv2.imencode(".png", with_alpha)[1].tobytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
