"""Videos: frames taken out of them, faces followed from frame to frame, and what sums both up.

A frame is scored as a photo is. All rows of a video have its path; a frame's rows have its `time`,
and `face` is the same number for the same face in all frames. Behind them stand the rows that sum
up: one for each face, and one with an empty `face` for the video. There fake_probability is the
mean over the frames, beside the median and the share of frames whose verdict is fake.

Faces are followed by overlap alone: a box is the face of the box before that it shares most with
(intersection over union at least MIN_IOU). Nothing compares who it is: after a cut another person
at the same place goes on under the same number, and who jumps across the picture gets a new one.
"""

import itertools
import os
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ImageError
from pipeline.inputs import VIDEO_SUFFIXES, Photo
from pipeline.rows import Row, by_face
from pipeline.scoring import Scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_IOU = 0.2  # low, for seconds may lie between two frames
LONGEST_ABSENCE = 2  # frames in which a face may be missing before it counts as another
MAX_PIXELS = 36_000_000  # of a frame; 8K video has 33 million
SEEK_FROM = 3.0  # seconds: decoding through less than that is faster than a jump to a key frame
# FFmpeg also knows playlists, which name other files and addresses to open. Only real containers.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,h264,hevc,m4v"
)


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
    """A frame to be scored. `time`, in seconds, is known when it has been read; it stays None where
    the video turns out to have none there."""

    def __init__(self, video: "_Video"):
        self.video = video
        self.time: float | None = None


def with_frames(photos: Iterable[Photo], sampling: Sampling) -> Iterator[Photo]:
    """The photos, and in the place of each video its frames as photos.

    A video that cannot be opened is one photo with an error sentence. Frames are decoded when they
    are read, so that few are in memory; they may be read in any order and by several threads, but
    something near their own order is fastest.
    """
    for photo in photos:
        is_video = os.path.splitext(photo.path)[1].lower() in VIDEO_SUFFIXES
        if photo.error or photo.read or not is_video:
            yield photo
        else:
            yield from _frames_of(photo, sampling)


def join(scored: Iterable[Scored], verdict: Callable[[str, float], str]) -> Iterator[Scored]:
    """Put what `with_frames` took apart together again: one item a photo, and one a video.

    `verdict` tells a model's verdict from the model's name and a fake_probability. Of a video the
    pixels are not kept.
    """
    for video, group in itertools.groupby(
        scored, key=lambda item: item.photo.frame and item.photo.frame.video
    ):
        if video is None:
            yield from group
        else:
            rows = _rows_of_video(video, group, verdict)
            yield Scored(Photo(video.path), rows, [None] * len(rows))


def draw_timeline(rows: list[Row]) -> "Figure | None":
    """Draw fake_probability over the time of a video, a line a face and model.

    `rows` are all rows of one photo or video. None where there is no frame that shows a face.
    """
    frames = [row for row in rows if row.is_frame and row.fake_probability is not None]
    if not frames:
        return None
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model for row in frames))
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple, list[Row]] = {}
    for row in frames:
        lines.setdefault((row.face, row.model), []).append(row)
    for (face, model), of_line in lines.items():
        named = f"face {face}" + (f", {model}" if len(models) > 1 else "")
        times = [row.time for row in of_line]
        axes.plot(times, [row.fake_probability for row in of_line], ".-", linewidth=1, label=named)
    for threshold in dict.fromkeys(row.threshold for row in frames):
        axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="seconds", ylabel="fake_probability", ylim=(0, 1))
    if len(lines) <= 12:  # more would cover the figure
        figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _frames_of(photo: Photo, sampling: Sampling) -> Iterator[Photo]:
    video = _Video(photo.path)
    try:
        duration, frames = video.open()
    except ImageError as error:
        yield Photo(photo.path, str(error), frame=Frame(video))
        return
    for time in sampling.times(duration, frames):
        if video.ended:
            break
        frame = Frame(video)
        yield Photo(photo.path, read=video.reader(frame, time), frame=frame)


class _Video:
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
        self._position = self._duration = 0.0

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
        self._images = self._decode()
        start = self._stream.start_time
        self._start = 0.0 if start is None else float(start * self._stream.time_base)
        self._duration = self._length()
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
                found = self._decoded.pop(number)
            if found is None:
                raise ImageError(self.problem or "the video has no further frame")
            image, found_time = found
            frame.time = round(found_time, 3)
            return self._upright(image)

        return read

    def _picture_stream(self):
        import av

        cover = av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & cover]
        if not streams:
            raise ImageError("there is sound in this file at most, but no moving picture")
        stream = streams[0]
        if stream.codec_context is None:
            raise ImageError("it is coded in a way that is not known here; convert it to H.264")
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
        import av

        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration:
            return self._container.duration / 1_000_000
        last = 0.0
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    last = max(last, float(packet.pts * packet.time_base) - self._start)
            self._container.seek(0)
        except av.FFmpegError as error:
            raise ImageError("it is damaged: its length cannot be told; convert it") from error
        self._images = self._decode()
        return last + 1 / float(self._stream.guessed_rate or 25)

    def _decode(self) -> Iterator:
        """The images from where the file stands, without damaged ones, and their times."""
        import av

        rate = float(self._stream.guessed_rate or 25)
        number = 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    images = packet.decode()
                except av.FFmpegError:
                    continue
                for image in images:
                    time = number / rate if image.time is None else image.time - self._start
                    number += 1
                    if not image.is_corrupt:
                        yield image, max(0.0, time)
        except (av.FFmpegError, OSError):
            self.problem = f"the video cannot be read on after {self._position:.1f} s"

    def _image_at(self, wanted: float) -> tuple | None:
        """The first image that is shown at the wanted time, or after it; None at the end."""
        if self.ended:
            return None
        if wanted - self._position > SEEK_FROM:
            self._seek(wanted)
        tolerance = 0.51 / float(self._stream.guessed_rate or 25)  # half a frame, rounded up
        last = None
        for image, time in self._images:
            self._position = time
            last = image, time
            if time >= wanted - tolerance:
                return last
        self.ended = True
        self._file.close()
        missing = self._duration - self._position
        if not self.problem and missing > max(1.0, 0.05 * self._duration):
            self.problem = (
                f"the video is cut short: it ends after {self._position:.1f} of "
                f"{self._duration:.1f} s; copy or download it again"
            )
        return last  # shown from before the wanted time until the end

    def _seek(self, wanted: float) -> None:
        import av

        target = int((wanted + self._start) / self._stream.time_base)
        try:
            self._container.seek(target, stream=self._stream)
        except (av.FFmpegError, OSError):
            return  # not to be had in this file: decode on until there
        self._images = self._decode()

    def _upright(self, image) -> np.ndarray:
        """(height, width, 3) uint8 RGB, with square pixels and turned as the file says."""
        width, height = image.width, image.height
        self._check_size(width, height)
        shape = self._stream.sample_aspect_ratio
        if shape and 0.1 < shape < 10:
            width = round(width * shape)
        pixels = image.reformat(width=width, height=height, format="rgb24").to_ndarray()
        # The matrix turns counterclockwise, as numpy does.
        return np.ascontiguousarray(np.rot90(pixels, round(image.rotation / 90)))


def _av():
    try:
        import av
    except ImportError as error:
        raise ImageError("videos need the package av: run `pip install av`") from error
    return av


def _open_nothing_else(*_arguments: object) -> None:
    raise PermissionError("a video may not make this program open other files")


class _Tracks:
    """Numbers faces so that the same face keeps its number; see the top of this file."""

    def __init__(self):
        self._last: dict[int, tuple[tuple, int]] = {}  # number → box, frame
        self._new = itertools.count()
        self._frame = 0

    def numbers(self, boxes: list[tuple]) -> list[int]:
        """The number of each face of the next frame, by its box (left, top, right, bottom)."""
        self._frame += 1
        self._last = {
            number: (box, frame)
            for number, (box, frame) in self._last.items()
            if self._frame - frame <= LONGEST_ABSENCE + 1
        }
        overlaps = [
            (_iou(box, old), index, number)
            for index, box in enumerate(boxes)
            for number, (old, _) in self._last.items()
        ]
        found: dict[int, int] = {}  # index → number
        for iou, index, number in sorted(overlaps, key=lambda overlap: -overlap[0]):
            if iou >= MIN_IOU and index not in found and number not in found.values():
                found[index] = number
        numbers = [found[i] if i in found else next(self._new) for i in range(len(boxes))]
        self._last |= {
            number: (box, self._frame) for number, box in zip(numbers, boxes, strict=True)
        }
        return numbers


def _iou(box: tuple, other: tuple) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return width * height / (areas - width * height)


def _rows_of_video(
    video: _Video, frames: Iterable[Scored], verdict: Callable[[str, float], str]
) -> list[Row]:
    """The rows of all frames, then of each face, then of the video."""
    rows: list[Row] = []
    tracks = _Tracks()
    looked_at = 0
    problem = ""
    for scored in frames:
        frame = scored.photo.frame
        errors = [row.error for row in scored.rows if row.error]
        if errors:
            problem = problem or (errors[0] if frame.time is not None or scored.photo.error else "")
            continue
        looked_at += 1
        rows += _rows_of_frame(scored.rows, frame.time, tracks)
    problem = video.problem or problem
    if not looked_at and not problem:
        problem = "none of its frames can be decoded; copy or download it again"
    summaries = _summaries(video.path, rows, looked_at, verdict) if looked_at else []
    if problem:
        summaries.append(Row(path=video.path, verdict="error", error=problem, frames=looked_at))
    return rows + summaries


def _rows_of_frame(rows: list[Row], time: float, tracks: _Tracks) -> list[Row]:
    faces = [of_face for of_face in by_face(rows) if of_face[0].face is not None]
    boxes = [(row.left, row.top, row.right, row.bottom) for row, *_ in faces]
    for number, of_face in zip(tracks.numbers(boxes), faces, strict=True):
        for row in of_face:
            row.face = number
    for row in rows:
        row.time = time
    return rows


def _summaries(
    path: str, rows: list[Row], looked_at: int, verdict: Callable[[str, float], str]
) -> list[Row]:
    models = list(dict.fromkeys(row.model for row in rows))
    scored = [row for row in rows if row.fake_probability is not None]
    summaries: list[Row] = []
    for face in sorted({row.face for row in scored}):
        of_face = [row for row in scored if row.face == face]
        summaries += _summed_up(path, face, of_face, models, verdict)
    if not scored:
        return [
            Row(path=path, verdict="no face", model=model, frames=looked_at) for model in models
        ]
    # A frame counts with its most suspicious face: one swapped face in a crowd is a fake video.
    worst: dict[tuple, Row] = {}
    for row in scored:
        key = row.model, row.time
        if key not in worst or row.fake_probability > worst[key].fake_probability:
            worst[key] = row
    for row in _summed_up(path, None, list(worst.values()), models, verdict):
        row.frames = looked_at
        summaries.append(row)
    return summaries


def _summed_up(
    path: str,
    face: int | None,
    rows: list[Row],
    models: list[str | None],
    verdict: Callable[[str, float], str],
) -> list[Row]:
    """A row of each model for these frames' rows."""
    summaries = []
    for model in models:
        its_rows = [row for row in rows if row.model == model]
        if not its_rows:
            continue
        probabilities = [row.fake_probability for row in its_rows]
        mean = statistics.fmean(probabilities)
        summaries.append(
            Row(
                path=path,
                face=face,
                fake_probability=mean,
                verdict=verdict(model, mean),
                threshold=its_rows[0].threshold,
                model=model,
                frames=len(its_rows),
                median=statistics.median(probabilities),
                fake_share=statistics.fmean(row.verdict == "fake" for row in its_rows),
            )
        )
    if len(summaries) > 1:
        for row in summaries:
            row.agreement = len({other.verdict for other in summaries}) == 1
    return summaries
