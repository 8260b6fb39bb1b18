"""A photo to score: a file, an upload, or a frame of a video."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.origin.declared import NOTHING, Declaration

VIDEO_SUFFIXES: frozenset[str] = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv"}
    | {".3gp", ".3g2", ".ogv", ".ts", ".mts", ".m2ts"}
)
"""The endings, in lower case, of the files that are taken for videos."""


class Clip(Protocol):
    """The video that a frame is of. `problem` is a sentence where something is wrong with it."""

    path: str
    problem: str


class Frame:
    """A frame to be scored. `time`, in seconds from the first frame, and `number`, its place among
    all frames, are known when it has been read; they stay None where nothing can be decoded."""

    def __init__(self, video: Clip):
        self.video = video
        self.time: float | None = None
        self.number: int | None = None


class Picture(NamedTuple):
    """What a photo holds: its pixels (height, width, 3) uint8 RGB, upright, and what its file says
    of its origin, which is nothing for what has no file of its own."""

    pixels: np.ndarray
    declared: Declaration = NOTHING


class Photo(NamedTuple):
    """A photo to score or, where `error` holds a sentence, a path that leads to none.

    `read` gives the picture, or raises ImageError, where it is no file at `path`: an upload, a
    frame of a video. Then `frame` says which; a path to a video as a whole is
    a `Photo`, too, until frames.with_frames has put its frames in its place.
    """

    path: str
    error: str = ""
    read: Callable[[], Picture] | None = None
    frame: Frame | None = None
