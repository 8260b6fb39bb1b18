"""A video file: opened without opening anything else, and its frames listed.

To list them, the whole file is read once, without decoding. Headers cannot be relied on: those of
streams and of files written to a pipe have no length, those of damaged files a wrong one, and time
stamps may start anywhere. With the list, frames are chosen among those that are there, and a jump
to a key frame can be told from one that went astray.
"""

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.common.errors import ImageError
from pipeline.videos.frame_pixels import check_size

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.container import InputContainer

# FFmpeg also knows playlists, which name other files and addresses to open. Only real containers.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,h264,hevc,m4v"
)
_AVI = "avi"
# Those whose headers tell a length. That of the others is guessed from what there is of them.
_WITH_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", _AVI, "asf", "flv", "mxf"}
_NO_STAMP = np.iinfo(np.int64).min
_FALLBACK_RATE = 25.0  # frames a second


@dataclass(frozen=True)
class FrameIndex:
    """The N frames of a video in the order in which they are shown; a frame's number is its place.

    times: (N,) float, seconds from the first frame. length: seconds until the last is over.
    promised: seconds that the header tells, if the file ends before; otherwise `length`.
    stamps: (N,) int64, rising, in units of the stream; empty where they lead to no frame.
    keys: (K,) int, numbers of the frames that decoding may start from, rising.
    counted: whether decoded frames are to be counted, for their own time stamps are of no use.
    """

    stream: int  # its number in the file
    times: np.ndarray
    length: float
    promised: float
    stamps: np.ndarray
    keys: np.ndarray
    counted: bool
    problem: str  # a sentence where the file does not go on as it should

    def __len__(self) -> int:
        return len(self.times)

    def number(self, stamp: int) -> int:
        """The number of the frame that is shown at this time stamp; -1 before the first."""
        return int(np.searchsorted(self.stamps, stamp, "right")) - 1


def index_frames(path: str) -> FrameIndex:
    """List the frames of a video file.

    Raises ImageError where it cannot be opened, or has no moving picture that can be decoded, or a
    larger one than pipeline.videos.frame_pixels.MAX_PIXELS.
    """
    with opened(path) as container:
        import av

        listed = {stream.index: _Listed(stream) for stream in _picture_streams(container)}
        end = 0.0  # seconds, of what comes last in the file, sound included
        broken = False
        try:
            for packet in container.demux():
                stamp = packet.dts if packet.pts is None else packet.pts
                if not packet.size:
                    continue  # says that a stream is over, or that a picture stays
                if stamp is not None:
                    end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index in listed:
                    listed[packet.stream_index].add(packet)
        except (av.FFmpegError, OSError):
            broken = True
        # Not every picture of the cover is marked as one, but it is a single frame.
        of_video = max(listed.values(), key=lambda each: (len(each) > 1, each.width * each.height))
        check_size(of_video.width, of_video.height)
        if not len(of_video):
            raise ImageError(
                "none of its frames is there: it is damaged or cut short; copy or download it again"
            )
        return of_video.index(_missing(container, end), broken)


@contextmanager
def opened(path: str) -> "Iterator[InputContainer]":
    """Open a video file, and nothing that it refers to, until the end of the `with`.

    Raises ImageError with a sentence that says why it cannot be.
    """
    av = _av()
    if not os.path.isfile(path):
        raise ImageError("there is no such file, or it is a special one; check the path")
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ImageError(
            f"the file cannot be read ({error.strerror}); check its permissions"
        ) from error
    with file:
        if not os.fstat(file.fileno()).st_size:
            raise ImageError("the file is empty; copy or download it again")
        try:
            container = av.open(
                file,
                options={"format_whitelist": _CONTAINERS},
                metadata_errors="replace",
                io_open=_open_nothing_else,
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ImageError(
                "this is not a video, or it is damaged or cut short so that it cannot be opened; "
                "copy or download it again"
            ) from error
        with container:
            yield container


class _Listed:
    """The packets of one video stream, in the order of the file."""

    def __init__(self, stream: "VideoStream"):
        self.width, self.height = stream.codec_context.width, stream.codec_context.height
        self._stream = stream
        self._shown, self._decoded, self._keys = array("q"), array("q"), array("b")
        self._starts_before = False

    def __len__(self) -> int:
        return len(self._shown)

    def add(self, packet: "Packet") -> None:
        if packet.is_discard:  # only decoded, to start in the middle as an edit list says
            self._starts_before = self._starts_before or not len(self)
            return
        self._shown.append(_NO_STAMP if packet.pts is None else packet.pts)
        self._decoded.append(_NO_STAMP if packet.dts is None else packet.dts)
        self._keys.append(packet.is_keyframe)

    def index(self, missing: float, broken: bool) -> FrameIndex:
        """The list of frames; `missing` seconds are not in the file, or it is broken at the end."""
        stamps, keys, counted = self._in_order()
        if len(stamps):
            times = (stamps - stamps[0]) * float(self._stream.time_base)
        else:
            times = np.arange(len(self)) * self._usual_gap()
        last = np.median(np.diff(times)[-9:]) if len(times) > 1 else self._usual_gap()
        length = float(times[-1] + last)
        promised, problem = length + missing, ""
        if missing:
            problem = (
                f"the video is cut short: it ends after {length:.1f} of {promised:.1f} s; "
                "copy or download it again"
            )
        elif broken:
            problem = f"the video cannot be read on after {length:.1f} s; copy or download it again"
        return FrameIndex(
            self._stream.index, times, length, promised, stamps, keys, counted, problem
        )

    def _in_order(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """`stamps`, `keys` and `counted` of FrameIndex."""
        shown, decoded, is_key = (
            np.frombuffer(each, each.typecode) for each in (self._shown, self._decoded, self._keys)
        )
        back = np.diff(decoded[decoded != _NO_STAMP]) * float(self._stream.time_base)
        if _NO_STAMP in shown or (back < -1).any():  # recordings one after the other start anew
            return np.empty(0, np.int64), np.zeros(1, int), True
        # Recordings of a broadcast start anywhere: what comes before the first key frame cannot be
        # decoded, nor can what comes after it and is shown before it.
        first = 0 if self._starts_before else int(np.argmax(is_key))
        shown, is_key = shown[first:], is_key[first:] != 0
        stamps = np.unique(shown if self._starts_before else shown[shown >= shown[0]])
        keys = np.searchsorted(stamps, shown[is_key & (shown >= stamps[0])])
        keys = np.unique(np.append(keys, 0))
        # AVI knows only the order in which frames are decoded, which is not that of showing them.
        is_avi = self._stream.container.format.name == _AVI
        return stamps, keys, is_avi and self._stream.codec_context.has_b_frames

    def _usual_gap(self) -> float:
        """Seconds from frame to frame, where the time stamps of some are missing or start anew."""
        decoded = np.frombuffer(self._decoded, np.int64)
        places = np.flatnonzero(decoded != _NO_STAMP)
        gaps = np.diff(decoded[places]) / np.diff(places)
        if (gaps > 0).any():
            return float(np.median(gaps[gaps > 0]) * self._stream.time_base)
        return 1 / float(self._stream.guessed_rate or _FALLBACK_RATE)


def _picture_streams(container: "InputContainer") -> list["VideoStream"]:
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise ImageError("there is sound in this file at most, but no moving picture")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise ImageError("it is coded in a way that is not known here; convert it to H.264")
    return known


def _missing(container: "InputContainer", end: float) -> float:
    """Seconds that the header promises and the file, which is over at `end`, does not have."""
    if container.format.name not in _WITH_LENGTH:
        return 0.0
    start, duration = (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6
    if container.format.name == _AVI:  # of one without its end FFmpeg guesses the duration
        duration = max(
            s.frames / (s.average_rate or _FALLBACK_RATE) for s in container.streams.video
        )
    # Some writers mean the time at the end, others the time from the start until the end.
    promised = duration if 0 < start < duration else start + duration
    missing = float(promised - end)
    return missing if missing > max(1.0, 0.05 * (promised - start)) else 0.0


def _av():
    try:
        import av
    except ImportError as error:
        raise ImageError("videos need the package av: run `pip install av`") from error
    return av


def _open_nothing_else(*_arguments: object) -> None:
    raise PermissionError("a video may not make this program open other files")
