"""Makes short videos whose frames tell which they are."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from io import RawIOBase
from pathlib import Path

import numpy as np
import pytest

from pipeline.photos.photo import Photo
from pipeline.videos.frames import Sampling, with_frames

av = pytest.importorskip("av")


def make_clip(
    path: Path,
    images: Iterable[np.ndarray],
    rate: int = 10,
    codec: str = "libx264",
    rotation: int = 0,
    gop: int = 20,
    pts: Callable[[int], int] | None = None,
    pixel_format: str = "",
    options: dict[str, str] | None = None,
    header: dict[str, str] | None = None,
    sound_first: float = 0.0,
) -> str:
    """Write images (H, W, 3 uint8 RGB) as a video; its path.

    `pts` gives the time stamp of each frame, in units of 1/rate seconds. `options` are those of the
    encoder, `header` those of the container. A `sound_first` of so many seconds is the first
    stream.
    """
    images = iter(images)
    first = next(images)
    with av.open(str(path), "w", options=header or {}) as container:
        if sound_first:
            sound = container.add_stream("aac", rate=44100)
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pixel_format or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.gop_size = gop
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation:
            stream.set_display_rotation(rotation)
        if sound_first:
            for number in range(int(sound_first * 44100 / 1024)):
                container.mux(sound.encode(_silence(number)))
            container.mux(sound.encode(None))
        for number, image in enumerate(itertools.chain([first], images)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts(number) if pts else number
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def piped(source: str, path: Path, container: str, header: dict[str, str] | None = None) -> str:
    """A clip's packets, written to where nothing can be gone back to; the new file's path."""
    with (
        _Pipe(path) as pipe,
        av.open(source) as clip,
        av.open(pipe, "w", format=container, options=header or {}) as other,
    ):
        copy = other.add_stream_from_template(clip.streams.video[0])
        for packet in clip.demux(video=0):
            if packet.size:
                packet.stream = copy
                other.mux(packet)
    return str(path)


def numbered(number: int) -> Iterator[np.ndarray]:
    """Pictures that tell their number, up to 9999, by the grey levels of four columns."""
    for n in range(number):
        image = np.empty((48, 64, 3), np.uint8)
        for column, digit in enumerate(f"{n:04}"):
            image[:, 16 * column : 16 * column + 16] = 20 + 20 * int(digit)
        yield image


def number_of(image: np.ndarray) -> int:
    digits = (round((image[:, left : left + 8].mean() - 20) / 20) for left in (4, 20, 36, 52))
    return int("".join(map(str, digits)))


def seen(path: str, sampling: Sampling) -> list[tuple[int, float]]:
    """Number and time of each frame that is looked at."""
    photos = list(with_frames([Photo(path)], sampling))
    images = [photo.read().pixels for photo in photos]
    return [(number_of(i), p.frame.time) for i, p in zip(images, photos, strict=True)]


def _silence(number: int) -> av.AudioFrame:
    frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
    frame.sample_rate, frame.pts = 44100, number * 1024
    frame.planes[0].update(bytes(4096))
    return frame


class _Pipe(RawIOBase):
    """A file that cannot be gone back in."""

    def __init__(self, path: Path):
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed with the pipe)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data) -> int:
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()
