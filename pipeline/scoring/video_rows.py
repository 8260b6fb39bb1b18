"""Rows of videos: faces followed from frame to frame, and what sums them up.

A frame is scored as a photo is. All rows of a video have its path; a frame's rows have its `time`,
and `face` is the same number for the same face in all frames. Behind them stand the rows that sum
up: one for each face, and one with an empty `face` for the video. There fake_probability is the
mean over the frames, beside the median and the share of frames whose verdict is fake.

Faces are followed by overlap alone: a box is the face of the box before that it shares most with
(intersection over union at least MIN_IOU). Nothing compares who it is: after a cut another person
at the same place goes on under the same number, and who jumps across the picture gets a new one.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator

from pipeline.photos.photo import Clip, Photo
from pipeline.rows.rows import Row, by_face
from pipeline.scoring.scoring import Scored

MIN_IOU = 0.2  # low, for seconds may lie between two frames
LONGEST_ABSENCE = 2  # frames in which a face may be missing before it counts as another


def join(scored: Iterable[Scored], verdict: Callable[[str, float], str]) -> Iterator[Scored]:
    """Put what `frames.with_frames` took apart together again: one item a photo, and one a video.

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
    video: Clip, frames: Iterable[Scored], verdict: Callable[[str, float], str]
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
