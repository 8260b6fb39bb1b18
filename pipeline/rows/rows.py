"""The result rows of scoring, one a face.

A file of rows has the same columns in the same order, whatever its format (rows/files.py); files of
earlier versions lack some of LATER_FIELDS and are read and continued as they are. Where several
networks score, each face has a row of each of them and there is one more column, agreement.
Where there are videos, four more follow (VIDEO_FIELDS): all rows of a video have its path, a row of
a frame has its `time`, and the rows that sum up the video and each face in it have `frames`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any


@dataclasses.dataclass(slots=True, kw_only=True)
class Row:
    """One face as one network sees it, or one photo without a face or with an error.

    Of a video: the same of one frame, which `time` tells; or, with `frames`, what sums up one face
    through the video or, with `face` empty, the whole video. Numbers are plain Python numbers.
    """

    path: str
    face: int | None = None  # 0, 1, … within the photo; in a video the same from frame to frame
    left: int | None = None  # pixels of the upright photo; right and bottom are exclusive
    top: int | None = None
    right: int | None = None
    bottom: int | None = None
    face_score: float | None = None  # 0…1, of the face finder
    fake_probability: float | None = None  # 0…1, calibrated; the mean where a row sums up
    verdict: str  # real, fake, uncertain, no face or error
    threshold: float | None = None  # the fake_probability from which on a face is called fake
    model: str | None = None
    error: str | None = None  # a sentence
    declared: str | None = None  # by the file itself: generated, edited or camera
    declared_by: str | None = None  # the field that says so, and whether a signature was verified
    stability: float | None = None  # 0…1, of its changed copies that get the same verdict
    fake_probability_low: float | None = None  # the lowest of the face and these copies
    fake_probability_high: float | None = None  # the highest
    reason: str | None = None  # a sentence, where the verdict is uncertain because it did not hold
    agreement: bool | None = None  # whether all networks give this face the same verdict
    time: float | None = None  # seconds from the start of the video
    frames: int | None = None  # that show the face; of a video: that were looked at
    median: float | None = None  # of the frames' fake_probability
    fake_share: float | None = None  # 0…1, of the frames whose verdict is fake

    @property
    def is_frame(self) -> bool:
        """Whether this is about one frame of a video."""
        return self.time is not None

    @property
    def declaration(self) -> str:
        """What the photo's file says of its own origin, as a sentence; "" where it says nothing."""
        return f"{_DECLARATIONS[self.declared]} ({self.declared_by})." if self.declared_by else ""

    @property
    def holding(self) -> str:
        """Whether the verdict held, as a phrase; "" where the face was not looked at again."""
        low, high = self.fake_probability_low, self.fake_probability_high
        if None in (self.stability, low, high):
            return ""
        share = f"{self.stability:.0%} of its changed copies get the same verdict"
        return f"{self.reason or share}; {low:.1%} to {high:.1%}"

    def as_dict(self, fields: Sequence[str]) -> dict[str, str | int | float | bool | None]:
        return {name: getattr(self, name) for name in fields}


_DECLARATIONS = {
    "generated": "The file says that it was made by a generator",
    "edited": "The file says that it was edited",
    "camera": "The file says that it comes from a camera",
    None: "The file has a note of its origin, which does not say how it was made",
}

VIDEO_FIELDS = ("time", "frames", "median", "fake_share")  # at the end, where there are videos
COMPARED_FIELDS = tuple(field.name for field in dataclasses.fields(Row))[: -len(VIDEO_FIELDS)]
FIELDS = COMPARED_FIELDS[:-1]  # where one network scores
DECLARED_FIELDS = ("declared", "declared_by")
STABILITY_FIELDS = ("stability", "fake_probability_low", "fake_probability_high", "reason")
# Files of earlier versions lack the last of these, or all.
LATER_FIELDS = (DECLARED_FIELDS, STABILITY_FIELDS)

# The fields that are numbers; agreement is a truth value, all others are text.
WHOLE_NUMBERS = ("face", "left", "top", "right", "bottom", "frames")
FRACTIONS = ("face_score", "fake_probability", "threshold", "time", "median", "fake_share")
FRACTIONS += STABILITY_FIELDS[:-1]


def without(fields: Sequence[str], missing: Collection[str]) -> tuple[str, ...]:
    """The columns but for the `missing`."""
    return tuple(name for name in fields if name not in missing)


def as_earlier(fields: Sequence[str]) -> list[tuple[str, ...]]:
    """The columns as each earlier version wrote them, the latest first."""
    later = [itertools.chain(*LATER_FIELDS[number:]) for number in range(len(LATER_FIELDS))]
    return [without(fields, set(missing)) for missing in reversed(later)]


def lacking(there: Collection[str]) -> tuple[str, ...]:
    """The columns that a file, which has those `there`, lacks because an earlier version wrote it:
    some of the LATER_FIELDS, each as a whole."""
    return tuple(name for later in LATER_FIELDS if not set(later) <= set(there) for name in later)


def by_face(rows: Iterable[Any], key: Callable[[Any], Row] = lambda row: row) -> list[list[Any]]:
    """The rows of one photo by what they show: a face, or the whole picture, once for each network.

    In the order in which each is first met; a photo's single row is by itself. In a video each
    frame's faces are others, and what sums up is by itself. `key` gives the row of what is no row.
    """
    faces: dict[tuple, list] = {}
    for item in rows:
        row = key(item)
        box = (row.left, row.top, row.right, row.bottom)
        faces.setdefault((row.time, row.error, row.face, *box), []).append(item)
    return list(faces.values())
