"""From a decoded frame to the pixels of a photo: RGB, with square pixels, the right way up."""

import threading
from typing import TYPE_CHECKING

import numpy as np

from pipeline.common.errors import ImageError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

MAX_PIXELS = 36_000_000  # of a frame; 8K video has 33 million
_ROTATIONS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))  # counterclockwise
_of_thread = threading.local()


def check_size(width: int, height: int) -> None:
    """Raise ImageError where a frame has more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"its frames claim to have {width} x {height} pixels, more than the limit of "
            f"{MAX_PIXELS:,} pixels; make a smaller copy of it"
        )


def frame_pixels(frame: "VideoFrame", pixel_shape: float = 1.0) -> np.ndarray:
    """(height, width, 3) uint8 RGB of a frame whose pixels are `pixel_shape` times as wide as high.

    Matrix and range of the colours are those that the video names; where it names none, BT.601 in
    the limited range, which is what FFmpeg writes without naming it. What is made for HDR screens
    (PQ, HLG) is converted to what others show. Raises ImageError where the frame is too large or
    its format cannot be converted.
    """
    import av

    width = frame.width
    if 0.1 < pixel_shape < 10:
        width = max(1, round(width * pixel_shape))
    check_size(width, frame.height)
    try:
        converted = _converter().reformat(
            frame,
            width=width,
            height=frame.height,
            format="rgb24",
            interpolation=_exact(),
            threads=1,  # other frames are converted at the same time
            **_for_screens(frame),
        )
    except (av.FFmpegError, ValueError) as error:
        raise ImageError("its colours cannot be converted; convert the video to H.264") from error
    return upright(converted.to_ndarray(), _display_matrix(frame))


def upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels (height, width, channels) turned and mirrored as a display matrix says.

    `matrix` is (a, b, c, d) of ISO/IEC 14496-12, 6.2.2: the pixel at (x, y) is shown at
    (a·x + c·y, b·x + d·y), y down. Of an oblique one the nearest of the eight orientations counts.
    """
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, to_right, down = pixels.swapaxes(0, 1), c, b
    else:
        to_right, down = a, d
    rows, columns = (slice(None, None, -1 if sign < 0 else 1) for sign in (down, to_right))
    return np.ascontiguousarray(pixels[rows, columns])


def _converter() -> "VideoReformatter":
    """This thread's own, kept for the next frame: its table for HDR takes a second or more."""
    from av.video.reformatter import VideoReformatter

    if not hasattr(_of_thread, "converter"):
        _of_thread.converter = VideoReformatter()
    return _of_thread.converter


def _exact() -> int:
    """Flags of FFmpeg's converter. Its own choice is fast: it rounds coarsely and takes the colour
    of two pixels for one, which moved the fake_probability of a face by up to 0.14."""
    from av.video.reformatter import Interpolation

    return Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def _for_screens(frame: "VideoFrame") -> dict[str, int]:
    from av.video.reformatter import ColorPrimaries, ColorTrc

    if frame.color_trc not in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        return {}
    return {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}


def _display_matrix(frame: "VideoFrame") -> tuple[int, int, int, int]:
    from av.sidedata.sidedata import Type

    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # beside it, PyAV has met a kind of data that it does not know
        return _ROTATIONS[round(frame.rotation / 90) % 4]
    if data is None or data.buffer_size < 20:
        return 1, 0, 0, 1
    matrix = np.frombuffer(data, np.int32)  # a b u c d v x y w
    return tuple(int(matrix[i]) for i in (0, 1, 3, 4))
