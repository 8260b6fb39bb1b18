"""Frames out of videos: which ones, decoded in any order, upright, in exact colours.

FFmpeg decodes (PyAV). Only real containers are opened, and no other file or address through them.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ImageError
from pipeline.inputs import Photo, is_video_file

MAX_PIXELS = 36_000_000  # of a frame; 8K video has 33 million
SEEK_FROM = 3.0  # seconds: decoding through less than that is faster than a jump to a key frame
FIRST_STEP_BACK = 5.0  # seconds, then twice as many, where a jump has ended behind the wanted time
# FFmpeg also knows playlists, which name other files and addresses to open. Only real containers.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,h264,hevc,m4v"
)
_HD_HEIGHT = 720  # rows; from here on, untagged video is in the colours of high definition


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at: `frames` spread evenly, each in the middle of an equal
    part; or, where `every` is given, the first and one every so many seconds."""

    frames: int = 32
    every: float | None = None

    def times(self, duration: float, frames: int) -> Iterator[float]:
        """Seconds from the start, of a video of `duration` seconds and so many `frames` (0: who
        knows)."""
        if self.every is not None:
            yield 0.0
            yield from itertools.takewhile(
                lambda time: time < duration, (self.every * n for n in itertools.count(1))
            )
            return
        number = min(self.frames, frames or self.frames)
        yield from ((n + 0.5) * duration / number for n in range(number))


class Frame:
    """A frame to be scored. `time`, in seconds, and `number`, which counts frames from 0 at the
    video's usual rate, are known when it has been read; they stay None where the video turns out
    to have none there."""

    def __init__(self, video: "Video"):
        self.video = video
        self.time: float | None = None
        self.number: int | None = None


def with_frames(photos: Iterable[Photo], sampling: Sampling) -> Iterator[Photo]:
    """The photos, and in the place of each video its frames as photos.

    A video that cannot be opened is one photo with an error sentence. Frames are decoded when they
    are read, so that few are in memory; they may be read in any order and by several threads, but
    something near their own order is fastest.
    """
    for photo in photos:
        if photo.error or photo.read or not is_video_file(photo.path):
            yield photo
        else:
            yield from frames_of(photo.path, sampling)


def frames_of(path: str, sampling: Sampling) -> Iterator[Photo]:
    """The frames of a video as photos; one photo with an error sentence if it cannot be opened.

    The file is closed once the last of them has been read, and at once where no more are asked for.
    """
    video = Video(path)
    try:
        duration, frames = video.open()
    except ImageError as error:
        video.close()
        yield Photo(path, str(error), frame=Frame(video))
        return
    asked_for_all = False
    try:
        for time in sampling.times(duration, frames):
            if video.ended:
                break
            frame = Frame(video)
            yield Photo(path, read=video.reader(frame, time), frame=frame)
        asked_for_all = True
    finally:
        if asked_for_all:
            video.close_when_read()
        else:
            video.close()


class Video:
    """A video file whose frames are decoded one after the other, by whichever thread comes first.

    `problem` is a sentence where something is wrong with it, `ended` whether all is decoded.
    """

    def __init__(self, path: str):
        self.path = path
        self.problem = ""
        self.ended = False
        self._lock = threading.Lock()
        self._wanted: list[float] = []  # times, of all frames so far
        self._next = 0  # of them the first that is not decoded
        self._decoded: dict[int, tuple | None] = {}  # for threads that come later
        self._no_more_wanted = False
        self._position = self._duration = 0.0
        self._file = self._container = None

    def open(self) -> tuple[float, int]:
        """Its duration in seconds and its number of frames (0: not said). Raises ImageError."""
        av = _av()
        if not os.path.isfile(self.path):
            raise ImageError("there is no such file, or it is a special one; check the path")
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 (read until the last frame)
        except OSError as error:
            raise ImageError(
                f"the file cannot be read ({error.strerror}); check its permissions"
            ) from error
        if not os.fstat(self._file.fileno()).st_size:
            raise ImageError("the file is empty; copy or download it again")
        try:
            self._container = av.open(
                self._file,
                options={"format_whitelist": _FORMATS},
                metadata_errors="replace",
                io_open=_open_nothing_else,
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ImageError(
                "this is not a video, or it is damaged or cut short so that it cannot be opened; "
                "copy or download it again"
            ) from error
        self._stream = self._picture_stream()
        self._stream.thread_type = "AUTO"
        self._frame_seconds = 1 / float(self._stream.guessed_rate or 25)
        start = self._stream.start_time
        self._start = 0.0 if start is None else float(start * self._stream.time_base)
        self._duration = self._length()
        self._images = self._decode()
        return self._duration, self._stream.frames

    def reader(self, frame: Frame, time: float) -> Callable[[], np.ndarray]:
        """What reads the next frame, which is shown at this time or later than those before."""
        number = len(self._wanted)
        self._wanted.append(time)

        def read() -> np.ndarray:
            with self._lock:
                while self._next <= number:
                    self._decoded[self._next] = self._image_at(self._wanted[self._next])
                    self._next += 1
                found = self._decoded.pop(number, None)
                self._close_if_read()
            if found is None:
                raise ImageError(self.problem or "the video has no further frame")
            image, found_time = found
            frame.time = round(found_time, 3)
            frame.number = round(found_time / self._frame_seconds)
            return self._upright(image)

        return read

    def close_when_read(self) -> None:
        """No further `reader` will be asked for: close the file once all have read."""
        with self._lock:
            self._no_more_wanted = True
            self._close_if_read()

    def close(self) -> None:
        """Close the file; what has not been decoded by now is lost."""
        with self._lock:
            self._close()

    def _close_if_read(self) -> None:
        if self.ended or (self._no_more_wanted and self._next == len(self._wanted)):
            self._close()

    def _close(self) -> None:
        # Decoder and container hold much memory, and with their generator they form circles, which
        # Python would clear away some time later.
        self.ended = True
        self._images = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _picture_stream(self):
        import av

        cover = av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & cover]
        if not streams:
            raise ImageError("there is sound in this file at most, but no moving picture")
        stream = streams[0]
        if stream.codec_context is None:
            raise ImageError("it is coded in a way that is not known here; convert it to H.264")
        self._pixel_shape = stream.sample_aspect_ratio
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        return stream

    @staticmethod
    def _check_size(width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"its frames claim to have {width} x {height} pixels, more than the limit of "
                f"{MAX_PIXELS:,} pixels; make a smaller copy of it"
            )

    def _length(self) -> float:
        """Seconds; where the header does not tell, found by going through the packets."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        # A container's own duration may count from zero or from the first picture: only where that
        # is the same does it tell.
        if self._container.duration and abs(self._start) < 1:
            return self._container.duration / 1_000_000
        import av

        last = 0.0
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    last = max(last, float(packet.pts * packet.time_base) - self._start)
            self._seek(0)
        except av.FFmpegError as error:
            raise ImageError("it is damaged: its length cannot be told; convert it") from error
        return last + self._frame_seconds

    def _decode(self) -> Iterator:
        """The images from where the file stands, without damaged ones, and their times."""
        import av

        number = 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    images = packet.decode()
                except av.FFmpegError:
                    continue
                for image in images:
                    time = (
                        number * self._frame_seconds
                        if image.time is None
                        else image.time - self._start
                    )
                    number += 1
                    if not image.is_corrupt:
                        yield image, max(0.0, time)
        except (av.FFmpegError, OSError):
            self.problem = f"the video cannot be read on after {self._position:.1f} s"

    def _image_at(self, wanted: float) -> tuple | None:
        """The first image that is shown at the wanted time, or after it; None at the end."""
        if self.ended:
            return None
        last = None
        if wanted - self._position > SEEK_FROM:
            last = self._jump(wanted)
        early_enough = wanted - 0.51 * self._frame_seconds  # half a frame, rounded up
        if last and last[1] >= early_enough:
            return last
        for image, time in self._images:
            self._position = time
            last = image, time
            if time >= early_enough:
                return last
        self.ended = True
        missing = self._duration - self._position
        if not self.problem and missing > max(1.0, 0.05 * self._duration):
            self.problem = (
                f"the video is cut short: it ends after {self._position:.1f} of "
                f"{self._duration:.1f} s; copy or download it again"
            )
        return last  # shown from before the wanted time until the end

    def _jump(self, wanted: float) -> tuple | None:
        """Go on at a key frame before the wanted time, and give its image and time.

        Files without an index (transport streams) let one land anywhere, and what follows can be
        decoded from the next key frame on only, or not at all: then further back. None where there
        is no such place but the start of the video.
        """
        back = 0.0
        while wanted - back > self._position:
            if not self._seek(wanted - back):
                break
            self._images = self._decode()
            first = next(self._images, None)
            if first and first[1] <= wanted:
                self._position = first[1]
                return first
            back = max(FIRST_STEP_BACK, 2 * back)
        self.problem = ""
        self._seek(0)
        self._images = self._decode()
        return None

    def _seek(self, time: float) -> bool:
        import av

        try:
            if time > 0:
                target = int((time + self._start) / self._stream.time_base)
                self._container.seek(target, stream=self._stream)
            else:  # the very beginning, be its time stamps what they may
                self._container.seek(-(2**62), any_frame=False, backward=True)
        except (av.FFmpegError, OSError):
            return False
        return True

    def _upright(self, image) -> np.ndarray:
        """(height, width, 3) uint8 RGB, with square pixels, upright as the file says."""
        width, height = image.width, image.height
        self._check_size(width, height)
        shape = self._pixel_shape
        if shape and 0.1 < shape < 10:
            width = round(width * shape)
        return _orient(_rgb(image, width, height), image)


def _rgb(image, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB of an FFmpeg frame.

    By the frame's own colour matrix and range. FFmpeg's fast conversion, which it uses unless asked
    for more, takes one colour for two pixels and rounds coarsely.
    """
    from av.video.reformatter import Colorspace, Interpolation

    exact = (
        Interpolation.BICUBIC
        | Interpolation.ACCURATE_RND
        | Interpolation.FULL_CHR_H_INT
        | Interpolation.FULL_CHR_H_INP
    )
    untagged = image.colorspace not in set(Colorspace)
    matrix = Colorspace.ITU709 if image.height >= _HD_HEIGHT else Colorspace.ITU601
    converted = image.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=matrix if untagged else None,
        interpolation=exact,
    )
    return converted.to_ndarray()


def _orient(pixels: np.ndarray, image) -> np.ndarray:
    """Turn and mirror (H, W, 3) as the frame's display matrix says, by the nearest right angle."""
    from av.sidedata.sidedata import Type

    matrix = image.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return pixels
    # x' = a·x + c·y, y' = b·x + d·y
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, mirror_x, mirror_y = pixels.transpose(1, 0, 2), c < 0, b < 0
    else:
        mirror_x, mirror_y = a < 0, d < 0
    return np.ascontiguousarray(pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])


def _av():
    try:
        import av
    except ImportError as error:
        raise ImageError("videos need the package av: run `pip install av`") from error
    return av


def _open_nothing_else(*_arguments: object) -> None:
    raise PermissionError("a video may not make this program open other files")
