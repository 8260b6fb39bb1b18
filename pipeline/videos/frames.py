"""Which frames of a video are looked at, and how they come to be read like photos.

A frame is read as a photo is, by any thread and at any time. What they have in common (the open
file, the state of its decoder) is in their video, which decodes them one after the other.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.common.errors import ImageError
from pipeline.photos.photo import VIDEO_SUFFIXES, Frame, Photo, Picture
from pipeline.videos.frame_pixels import frame_pixels
from pipeline.videos.frame_reader import FrameReader
from pipeline.videos.video_file import FrameIndex, index_frames

_SAME_TIME = 0.002  # seconds; Matroska rounds to a thousandth
_LONG_GAP = 10  # times the usual one (and at least a second)


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at: `frames` spread evenly, each in the middle of an equal
    part; or, where `every` is given, the first and one every so many seconds."""

    frames: int = 32
    every: float | None = None

    def choose(self, index: FrameIndex) -> np.ndarray:
        """The numbers of the frames that are shown at these times: (n,) int, rising, at least one.

        Of one that is shown for long there may be several of these times. With `every` it comes
        once; otherwise its neighbours take its place, so that there are `frames` of them, or all
        that the video has. Of a video that has been cut short those are chosen that the whole one
        would have been looked at, as far as they are there.
        """
        if self.every is not None:
            ends = np.append(index.times[1:], index.length)
            due = np.ceil((index.times - _SAME_TIME) / self.every) * self.every
            chosen = np.flatnonzero(due < ends - _SAME_TIME)
            return chosen if len(chosen) else np.zeros(1, int)  # all is over in no time
        starts, length = _without_long_gaps(index)
        there = len(index)
        number = min(self.frames, round(there * index.promised / index.length))
        wanted = (np.arange(number) + 0.5) * (length + index.promised - index.length) / number
        wanted = wanted[wanted < max(length, wanted[0] + _SAME_TIME)][:there]
        order = np.arange(len(wanted))
        chosen = np.searchsorted(starts, wanted + _SAME_TIME, "right") - 1
        chosen = np.maximum.accumulate(chosen - order) + order  # each once
        return np.minimum(chosen, there - len(order) + order)


def with_frames(photos: Iterable[Photo], sampling: Sampling) -> Iterator[Photo]:
    """The photos, and in the place of each video its frames as photos.

    A video that cannot be opened is one photo with an error sentence. Frames are decoded when they
    are read, so that few are in memory; they may be read in any order and by several threads, but
    something near their own order is fastest. The file is closed when the last of them has been
    read, or when nobody holds any of them.
    """
    for photo in photos:
        is_video = os.path.splitext(photo.path)[1].lower() in VIDEO_SUFFIXES
        if photo.error or photo.read or not is_video:
            yield photo
        else:
            yield from _frames_of(photo.path, sampling)


def _frames_of(path: str, sampling: Sampling) -> Iterator[Photo]:
    video = Video(path)
    try:
        number = video.open(sampling)
    except ImageError as error:
        yield Photo(path, str(error), frame=Frame(video))
        return
    for place in range(number):
        frame = Frame(video)
        yield Photo(path, read=video.reader(frame, place), frame=frame)


class Video:
    """A video whose chosen frames are decoded one after the other, by whichever thread comes first.

    `problem` is a sentence where something is wrong with it.
    """

    def __init__(self, path: str):
        self.path = path
        self.problem = ""
        self._lock = threading.Lock()
        self._next = 0  # place of the first frame that is not decoded, among those chosen
        self._decoded: dict[int, tuple | None] = {}  # by their place, for threads that come later
        self._last = -1  # number of the last frame decoded
        self._reader: FrameReader | None = None

    def open(self, sampling: Sampling) -> int:
        """Choose the frames; their number. Raises ImageError."""
        self._index = index_frames(self.path)
        self._chosen = sampling.choose(self._index)
        self.problem = self._index.problem
        return len(self._chosen)

    def reader(self, frame: Frame, place: int) -> Callable[[], Picture]:
        """What reads the frame at this place among those chosen; it raises ImageError."""

        def read() -> Picture:
            with self._lock:
                while self._next <= place:
                    self._decode_next()
                found = self._decoded.pop(place)
            if found is None:
                raise ImageError(self.problem or "the video has no further frame")
            frame.number, image, pixel_shape = found
            frame.time = round(float(self._index.times[frame.number]), 3)
            return Picture(frame_pixels(image, pixel_shape))

        return read

    def _decode_next(self) -> None:
        """Decode the next chosen frame, and close the file behind the last."""
        place = self._next
        self._next += 1
        self._decoded[place] = None
        if place == 0:
            try:
                self._reader = FrameReader(self.path, self._index)
            except ImageError as error:  # gone or changed since its frames were listed
                self.problem = str(error)
        if self._reader is None:
            return
        # The next one of a damaged frame has taken its place; it is not to be taken twice.
        found = self._reader.frame(max(int(self._chosen[place]), self._last + 1))
        if found:
            self._last = found[0]
            self._decoded[place] = (*found, self._reader.pixel_shape)
        else:
            self._say_what_is_missing()
        if not found or self._next == len(self._chosen):
            self._reader.close()
            self._reader = None

    def _say_what_is_missing(self) -> None:
        index = self._index
        seen = float(index.times[self._last]) if self._last >= 0 else 0.0
        if not self.problem and index.length - seen > max(1.0, 0.05 * index.length):
            self.problem = (
                f"the video is damaged: after {seen:.1f} of {index.length:.1f} s nothing can be "
                "decoded; copy or download it again"
            )


def _without_long_gaps(index: FrameIndex) -> tuple[np.ndarray, float]:
    """When each frame starts and the last ends, in seconds, where no frame is shown for very long.

    While a recording pauses, nothing is to be seen; what is spread over its time would bunch at
    the end of the pause.
    """
    shown = np.diff(index.times, append=index.length)
    shown = np.minimum(shown, max(1.0, _LONG_GAP * float(np.median(shown))))
    ends = np.cumsum(shown)
    return ends - shown, float(ends[-1])
