"""What a terminal shows of the rows: a table as they come, and all counts at the end."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from pipeline.origin.source_types import RANKS
from pipeline.rows.rows import Row, by_face
from pipeline.rows.writer import RowWriter

# Red, green, yellow, magenta; and bold where networks do not agree.
_COLOURS = {"fake": 31, "real": 32, "uncertain": 33, "error": 35, "no": 1}
_VERDICT_TITLE = f"{'verdict':<9}  {'fake':>6}"
_DECLARED_TITLE = f"{'declared':<9}"
_TO_BE_SAID = ("generated", "edited")  # before the scores; that a camera made it is the usual case
_LONGEST_MODEL = 20  # signs of a model's name above its column


class TableWriter(RowWriter):
    """Shows faces as lines of a table as they come, in a terminal shortened to its width.

    Several `models` stand side by side, and behind them whether they agree. What a photo says of
    its own origin comes before its scores where it says that it is no plain photo; of one model
    there is room for a column, too.
    """

    def __init__(self, stream: TextIO, models: Sequence[str]):
        super().__init__()
        self._stream = stream
        self._terminal = stream.isatty()
        self._colours = self._terminal and not os.environ.get("NO_COLOR")
        self._compared = len(models) > 1
        titles = [_VERDICT_TITLE]
        if self._compared:
            names = (_shortened(printable(model), _LONGEST_MODEL) for model in models)
            titles = [f"{name:<{len(_VERDICT_TITLE)}}" for name in names]
        self._widths = dict(zip(models, map(len, titles), strict=True))
        titles.append("agree" if self._compared else _DECLARED_TITLE)
        titles.append("face")
        self._header = "  ".join([*titles, "photo"])
        self._before_photo = len(self._header) - len("photo")

    def write(self, rows: list[Row]) -> None:
        if self._header and rows:
            self._print(self._header)
            self._header = ""
        if rows and rows[0].declared in _TO_BE_SAID:
            self._print(f"{printable(rows[0].path)}: {printable(rows[0].declaration)}")
        for of_face in by_face(row for row in rows if not row.is_frame):
            self._print(self._line(of_face))
        self._stream.flush()

    def _line(self, of_face: list[Row]) -> str:
        row = of_face[0]
        by_model = {row.model or next(iter(self._widths)): row for row in of_face}
        columns = [
            self._verdict(by_model.get(model), width) for model, width in self._widths.items()
        ]
        if self._compared:
            agree = {True: "yes", False: "no", None: ""}[row.agreement]
            columns.append(self._coloured(f"{agree:<5}", _COLOURS.get(agree)))
        else:
            columns.append(f"{row.declared or '':<{len(_DECLARED_TITLE)}}")
        columns.append(f"{'' if row.face is None else row.face:>4}")
        path = printable(row.path)
        error = f": {printable(row.error)}" if row.error else _spread(of_face)
        if self._terminal:
            room = shutil.get_terminal_size().columns - self._before_photo - len(error)
            path = _shortened(path, max(24, room))
        return "  ".join([*columns, f"{path}{error}"])

    def _verdict(self, row: Row | None, width: int) -> str:
        if row is None:
            return " " * width
        fake = "" if row.fake_probability is None else f"{row.fake_probability:.1%}"
        verdict = self._coloured(f"{row.verdict:<9}", _COLOURS.get(row.verdict))
        return f"{verdict}  {fake:>6}" + " " * (width - len(_VERDICT_TITLE))

    def _coloured(self, text: str, colour: int | None) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and colour else text

    def _print(self, line: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=self._stream)


class Summary:
    """Counts what was scored by `models`, from the moment it is made.

    A photo and a face count once, however many networks have looked at them; so does a face in a
    video, however many frames show it.
    """

    def __init__(self, models: Sequence[str]):
        self.photos = 0
        self.videos = 0
        self.frames = 0  # of the videos
        self.faces = 0
        self.disagreements = 0  # faces
        self.no_face = 0  # photos and videos
        self.errors = 0  # photos and videos
        self._declared = Counter()  # photos
        self._verdicts = {model: Counter() for model in models}
        self._start = time.perf_counter()

    def add(self, rows: list[Row]) -> None:
        """Count all rows of one photo or video."""
        rows = [row for row in rows if not row.is_frame]
        faces = [row for row in rows if row.face is not None]
        of_video = [row.frames for row in rows if row.face is None and row.frames is not None]
        self.photos += not of_video
        self.videos += bool(of_video)
        self.frames += max(of_video, default=0)
        self.faces += len({row.face for row in faces})
        self.disagreements += sum(of_face[0].agreement is False for of_face in by_face(faces))
        verdicts = {row.verdict for row in rows}
        self.no_face += verdicts == {"no face"}
        self.errors += "error" in verdicts
        self._declared.update({row.declared for row in rows} - {None})
        for row in faces:
            self._verdicts[row.model][row.verdict] += 1

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def line(self, skipped: int = 0) -> str:
        """All counts as one line; `skipped` is the number of files that were no photos."""
        verdicts = [
            ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("fake", "uncertain", "real"))
            for counts in self._verdicts.values()
        ]
        seen = [count(self.photos, "photo")] if self.photos or not self.videos else []
        if self.videos:
            seen.append(f"{count(self.videos, 'video')} of {count(self.frames, 'frame')}")
        seen.append(count(self.faces, "face"))
        if len(verdicts) == 1:
            parts = [f"{', '.join(seen)}: {verdicts[0]}"]
        else:
            parts = [", ".join(seen), *map("{}: {}".format, self._verdicts, verdicts)]
            parts.append(f"{self.disagreements} disagree")
        said = [f"{self._declared[origin]} {origin}" for origin in RANKS if self._declared[origin]]
        if said:
            parts.append(f"declared by their files: {', '.join(said)}")
        if self.no_face:
            parts.append(f"{self.no_face} without a face")
        if self.errors:
            parts.append(count(self.errors, "error"))
        if skipped:
            parts.append(f"{count(skipped, 'other file')} skipped")
        pictures = self.photos + self.frames
        unit = "pictures" if self.videos else "photos"
        parts.append(f"{pictures / self.elapsed:.1f} {unit}/s")
        return "; ".join(parts)


def printable(text: str) -> str:
    """Line ends and other control signs in a name would break the table, or the terminal."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def _shortened(path: str, width: int) -> str:
    """Cut out the middle, so that the folder's beginning and the file's name stay."""
    if len(path) <= width:
        return path
    tail = (width - 1) * 2 // 3
    return f"{path[: width - 1 - tail]}…{path[-tail:]}"


def _spread(of_face: list[Row]) -> str:
    """What a line of the table says after the path: whether a verdict held, or of a video."""
    row = of_face[0]
    held = [f"{row.model}: {row.holding}" for row in of_face if row.holding]
    if held:
        return f" ({printable('; '.join(held) if len(of_face) > 1 else row.holding)})"
    if not row.frames:
        return ""
    if row.median is None or len(of_face) > 1:
        return f" ({count(row.frames, 'frame')})"
    share = f"median {row.median:.1%}, {row.fake_share:.0%} of them fake"
    return f" ({count(row.frames, 'frame')}: {share})"


def count(number: int, noun: str) -> str:
    """How many of what: "1 photo", "2 photos"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
