"""Where rows go: what every output of them offers."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.photos.photo import Photo
from pipeline.rows.rows import Row


class RowWriter:
    """Where rows go; files.open_output makes one. A context manager, to be left in any case.

    `done` holds the paths of the photos that an earlier run has scored, `retried` counts those
    that ended in an error there and are to be tried again.
    """

    def __init__(self):
        self.done: set[str] = set()
        self.retried = 0

    def watch(self, photos: Iterable[Photo]) -> Iterable[Photo]:
        """The photos as they are to be scored, for an output that shows pictures of them."""
        return photos

    def note_heat_maps(self, files: dict[int, Path]) -> None:
        """The pictures that explain the rows that are written next, by the numbers of these, for an
        output that shows them."""

    def write(self, rows: list[Row]) -> None:
        """Take all rows of one photo or video. When it returns, kill -9 can no longer undo them."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the output; also after Ctrl-C or an error."""

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()
