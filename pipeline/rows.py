"""The result rows of scoring, one a face: written so that a killed run can go on, read, shown.

CSV, JSON Lines and Parquet hold the same columns in the same order; empty is "" or null. Where
several networks score, each face has a row of each of them and there is one more column, agreement.
Where there are videos, four more follow (VIDEO_FIELDS): all rows of a video have its path, a row of
a frame has its `time`, and the rows that sum up the video and each face in it have `frames`.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from pipeline.errors import UserError
from pipeline.files import atomic_write
from pipeline.inputs import Photo


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
    agreement: bool | None = None  # whether all networks give this face the same verdict
    time: float | None = None  # seconds from the start of the video
    frames: int | None = None  # that show the face; of a video: that were looked at
    median: float | None = None  # of the frames' fake_probability
    fake_share: float | None = None  # 0…1, of the frames whose verdict is fake

    @property
    def is_frame(self) -> bool:
        """Whether this is about one frame of a video."""
        return self.time is not None

    def as_dict(self, fields: Sequence[str]) -> dict[str, str | int | float | bool | None]:
        return {name: getattr(self, name) for name in fields}


VIDEO_FIELDS = ("time", "frames", "median", "fake_share")  # at the end, where there are videos
COMPARED_FIELDS = tuple(field.name for field in dataclasses.fields(Row))[: -len(VIDEO_FIELDS)]
FIELDS = COMPARED_FIELDS[:-1]  # where one network scores

_WHOLE_NUMBERS = ("face", "left", "top", "right", "bottom", "frames")
_FRACTIONS = ("face_score", "fake_probability", "threshold", "time", "median", "fake_share")
_TRUTH_VALUES = ("false", "true")  # in CSV, as in JSON
_LONGEST_RECORD = 1 << 16  # bytes; longer: a quote that others opened and nobody closed
_BATCH = 30_000  # rows that become Parquet together, about 50 MB


class RowWriter:
    """Where rows go; `open_output` makes one. A context manager, to be left in any case.

    `done` holds the paths of the photos that an earlier run has scored, `retried` counts those
    that ended in an error there and are to be tried again.
    """

    def __init__(self):
        self.done: set[str] = set()
        self.retried = 0

    def watch(self, photos: Iterable[Photo]) -> Iterable[Photo]:
        """The photos as they are to be scored, for an output that shows pictures of them."""
        return photos

    def write(self, rows: list[Row]) -> None:
        """Take all rows of one photo or video. When it returns, kill -9 can no longer undo them."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the output; also after Ctrl-C or an error."""

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()


def open_output(
    path: Path | None,
    models: Sequence[str],
    resume: bool = False,
    fields: tuple[str, ...] = FIELDS,
) -> RowWriter:
    """Open `path`, which ends in .csv, .jsonl, .parquet or .html, for the rows of `models`.

    `fields` are the columns: FIELDS, or COMPARED_FIELDS where `models` may be several. With the
    first row of a video, VIDEO_FIELDS are added to them, in the rows before as well.

    A missing folder is made. With `resume`, the photos in the file are in `done`, except those
    that ended in an error and the last one, which may lack rows: their rows are removed, so that
    they are scored again. Without `resume`, an earlier file is kept as `<name>.bak`. Both is said
    on standard error. Parquet and HTML are written at the end; until then the rows are in
    `.<name>.journal.jsonl` beside it, where `resume` finds them after kill -9.
    Without `path` the rows are shown as a table on standard output.

    Raises UserError where the ending is unknown, the file cannot be written, or `resume` finds
    other columns or a photo that other models have scored, or only some of `models`.
    """
    if path is None:
        if resume:
            raise UserError("--continue needs --output with the file that is to be continued.")
        return TableWriter(sys.stdout, models)
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"{path}: the output must end in .csv, .jsonl, .parquet or .html.")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: this is a folder or a device; --output must name a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = _WRITERS[path.suffix.lower()](path, models, resume, fields)
    except OSError as error:
        raise UserError(
            f"{path}: the rows cannot be written here ({error.strerror}); choose another --output."
        ) from error
    if resume:
        again = f"; {writer.retried} that ended in an error will be tried again"
        print(
            f"{path}: {_count(len(writer.done), 'photo')} scored already"
            f"{again if writer.retried else ''}.",
            file=sys.stderr,
        )
    return writer


def read_rows(path: str | Path) -> Iterator[dict[str, str | int | float | bool | None]]:
    """Read a .csv, .jsonl, .parquet or .html file of rows, one dict a row, in constant memory.

    Its keys are `FIELDS`, or `COMPARED_FIELDS` where several networks have scored, and
    `VIDEO_FIELDS` where there are videos. HTML has the rows in its own order. Numbers are int
    and float, what is empty is None. A last row that was cut off by kill -9 is left out. Raises
    UserError where the file is missing or not a file of rows.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"{path}: a file of rows ends in .csv, .jsonl, .parquet or .html.")
    try:
        if suffix == ".parquet":
            yield from _read_parquet(path)
        elif suffix == ".html":
            yield from (row for _, row in _read_html(path))
        else:
            form = _FORMATS[suffix](_fields_in(path))
            yield from (row for _, row in _read_records(path, form))
    except OSError as error:
        raise UserError(f"{path}: this file cannot be read ({error.strerror}).") from error


def by_face(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of one photo by what they show: a face, or the whole picture, once for each network.

    In the order in which each is first met; a photo's single row is by itself. In a video each
    frame's faces are others, and what sums up is by itself.
    """
    faces: dict[tuple, list[Row]] = {}
    for row in rows:
        box = (row.left, row.top, row.right, row.bottom)
        faces.setdefault((row.time, row.error, row.face, *box), []).append(row)
    return list(faces.values())


class TableWriter(RowWriter):
    """Shows faces as lines of a table as they come, in a terminal shortened to its width.

    Several `models` stand side by side, and behind them whether they agree.
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
        titles += ["agree", "face"] if self._compared else ["face"]
        self._header = "  ".join([*titles, "photo"])
        self._before_photo = len(self._header) - len("photo")

    def write(self, rows: list[Row]) -> None:
        if self._header and rows:
            self._print(self._header)
            self._header = ""
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
        seen = [_count(self.photos, "photo")] if self.photos or not self.videos else []
        if self.videos:
            seen.append(f"{_count(self.videos, 'video')} of {_count(self.frames, 'frame')}")
        seen.append(_count(self.faces, "face"))
        if len(verdicts) == 1:
            parts = [f"{', '.join(seen)}: {verdicts[0]}"]
        else:
            parts = [", ".join(seen), *map("{}: {}".format, self._verdicts, verdicts)]
            parts.append(f"{self.disagreements} disagree")
        if self.no_face:
            parts.append(f"{self.no_face} without a face")
        if self.errors:
            parts.append(_count(self.errors, "error"))
        if skipped:
            parts.append(f"{_count(skipped, 'other file')} skipped")
        pictures = self.photos + self.frames
        unit = "pictures" if self.videos else "photos"
        parts.append(f"{pictures / self.elapsed:.1f} {unit}/s")
        return "; ".join(parts)


class _Csv:
    opening = b""

    def __init__(self, fields: tuple[str, ...]):
        self.fields = fields
        self.header = (",".join(fields) + "\n").encode()

    @staticmethod
    def encode(row: dict) -> bytes:
        line = io.StringIO(newline="")
        if row.get("agreement") is not None:
            row = row | {"agreement": _TRUTH_VALUES[row["agreement"]]}
        csv.writer(line).writerow(row.values())  # its \r\n makes it quote both signs within fields
        return (line.getvalue().removesuffix("\r\n") + "\n").encode("utf-8", "surrogateescape")

    @staticmethod
    def is_whole(record: bytes) -> bool:
        return record.endswith(b"\n") and record.count(b'"') % 2 == 0  # not within a quoted field

    def decode(self, record: bytes) -> dict:
        text = io.StringIO(record.decode("utf-8", "surrogateescape"), newline="")
        row = dict(zip(self.fields, next(csv.reader(text, strict=True)), strict=True))
        for name, value in row.items():
            if value == "":
                row[name] = None
            elif name in _WHOLE_NUMBERS:
                row[name] = int(value)
            elif name in _FRACTIONS:
                row[name] = float(value)
            elif name == "agreement":
                row[name] = bool(_TRUTH_VALUES.index(value))
        return row


class _JsonLines:
    header = b""
    opening = b"{"

    def __init__(self, fields: tuple[str, ...]):
        self.fields = fields

    @staticmethod
    def encode(row: dict) -> bytes:
        # A byte of a path that is not UTF-8 is a lone surrogate in Python; backslashreplace writes
        # it as \udcXX, which is just JSON's way to write it.
        return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")

    @staticmethod
    def is_whole(record: bytes) -> bool:
        return record.endswith(b"\n")

    def decode(self, record: bytes) -> dict:
        row = json.loads(record)
        if not isinstance(row, dict) or tuple(row) != self.fields:
            raise ValueError("other columns")
        return row


_FORMATS = {".csv": _Csv, ".jsonl": _JsonLines}


class _TextWriter(RowWriter):
    """Appends rows to a file that is readable at any moment."""

    def __init__(self, path: Path, models: Sequence[str], resume: bool, fields: tuple[str, ...]):
        super().__init__()
        self._path = path
        if resume and path.exists() and _fields_in(path)[-len(VIDEO_FIELDS) :] == VIDEO_FIELDS:
            fields += VIDEO_FIELDS
        self._format = _FORMATS[path.suffix.lower()](fields)
        if resume and path.exists():
            self.done, self.retried = _cut_back(path, self._format, models)
        else:
            if path.exists() and not _is_empty(path, self._format):
                _set_aside(path)
            with atomic_write(path, "wb") as file:
                file.write(self._format.header)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def write(self, rows: list[Row]) -> None:
        if any(row.frames is not None for row in rows) and "frames" not in self._format.fields:
            self._add_video_columns()
        rest = b"".join(map(self._format.encode, self._records(rows)))
        end = self._file.tell()
        try:
            while rest:  # one turn, except on a disk that is nearly full
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise UserError(
                f"{self._path}: the rows cannot be written ({error.strerror}); make room and "
                "run the same command with --continue."
            ) from error

    def close(self) -> None:
        self._file.close()

    def _records(self, rows: list[Row]) -> Iterable[dict]:
        return [row.as_dict(self._format.fields) for row in rows]

    def _add_video_columns(self) -> None:
        """Write the file anew, once, so that a run without videos has the columns it always had."""
        wider = type(self._format)(self._format.fields + VIDEO_FIELDS)
        nothing = dict.fromkeys(VIDEO_FIELDS)
        self._file.close()
        with atomic_write(self._path, "wb") as file:
            file.write(wider.header)
            for _, row in _read_records(self._path, self._format):
                file.write(wider.encode(row | nothing))
        self._format = wider
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by close)


class _JournalWriter(_TextWriter):
    """Appends rows to a journal and turns it, at the end, into a file that cannot be appended to.

    While there is a journal, it holds every row of that file beside it too, or that file is of an
    older run; so resuming looks at the journal first.
    """

    def __init__(self, path: Path, models: Sequence[str], resume: bool, fields: tuple[str, ...]):
        journal = path.with_name(f".{path.name}.journal.jsonl")
        reopened = resume and path.exists() and not journal.exists()
        if reopened:
            with atomic_write(journal, "wb") as file:
                file.writelines(map(_JsonLines.encode, self._read_back(path, fields)))
        elif not resume and path.exists() and _holds(self._read_back(path)):
            _set_aside(path)
        self._finished = path
        try:
            super().__init__(journal, models, resume, fields)
        except BaseException:
            if reopened:
                journal.unlink(missing_ok=True)  # all its rows are in the finished file
            raise

    def close(self) -> None:
        super().close()
        try:
            self._finish()
            self._path.unlink()
        except OSError as error:
            raise UserError(
                f"{self._finished}: this file cannot be written ({error.strerror}); the rows are "
                f"kept in {self._path.name}: make room and run the same command with --continue."
            ) from error

    def _read_back(self, path: Path, fields: tuple[str, ...] | None = None) -> Iterator[dict]:
        """What the journal of a finished file was, if its columns begin with the `fields`."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Turn the journal into the finished file."""
        raise NotImplementedError


class _ParquetWriter(_JournalWriter):
    def __init__(self, path: Path, models: Sequence[str], resume: bool, fields: tuple[str, ...]):
        _pyarrow()  # missing: better said now than after the scoring
        super().__init__(path, models, resume, fields)

    def _read_back(self, path: Path, fields: tuple[str, ...] | None = None) -> Iterator[dict]:
        return _read_parquet(path, _variants(fields) if fields else _ALL_VARIANTS)

    def _finish(self) -> None:
        rows = (row for _, row in _read_records(self._path, self._format))
        _write_parquet(self._finished, rows, self._format.fields)


class _HtmlWriter(_JournalWriter):
    """The journal has one column more, first: what the page shows of a photo, in its first row."""

    def __init__(self, path: Path, models: Sequence[str], resume: bool, fields: tuple[str, ...]):
        from pipeline.html_report import PictureKeeper

        self._pictures = PictureKeeper()
        super().__init__(path, models, resume, (_PICTURE, *fields))

    def watch(self, photos: Iterable[Photo]) -> Iterable[Photo]:
        return self._pictures.watch(photos)

    def _records(self, rows: list[Row]) -> Iterable[dict]:
        pictures = itertools.chain([self._pictures.take(rows)], itertools.repeat(None))
        for row, picture in zip(rows, pictures, strict=False):
            yield {_PICTURE: picture} | row.as_dict(self._format.fields[1:])

    def _read_back(self, path: Path, fields: tuple[str, ...] | None = None) -> Iterator[dict]:
        allowed = _variants(fields[1:]) if fields else _ALL_VARIANTS
        return ({_PICTURE: picture} | row for picture, row in _read_html(path, allowed))

    def _finish(self) -> None:
        from pipeline.html_report import write_report

        write_report(self._finished, self._path, self._format.fields[1:])


_WRITERS = {
    ".csv": _TextWriter,
    ".jsonl": _TextWriter,
    ".parquet": _ParquetWriter,
    ".html": _HtmlWriter,
}
_PICTURE = "picture"


def _variants(fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [fields, fields + VIDEO_FIELDS]


_ALL_VARIANTS = _variants(FIELDS) + _variants(COMPARED_FIELDS)


def _fields_in(path: Path) -> tuple[str, ...]:
    """The columns of a .csv or .jsonl file of rows, by its first line."""
    with open(path, "rb") as file:
        first = file.readline(_LONGEST_RECORD).rstrip()
    of_videos = first.endswith(b",fake_share") or b'"fake_share":' in first
    compared = b",agreement" in first if first.startswith(b"path,") else b'"agreement":' in first
    return (COMPARED_FIELDS if compared else FIELDS) + (VIDEO_FIELDS if of_videos else ())


def _read_records(path: Path, form: _Csv | _JsonLines) -> Iterator[tuple[bytes, dict]]:
    """Each whole record as it stands in the file, and the row in it."""
    with open(path, "rb") as file:
        if not form.header.startswith(file.read(len(form.header))):
            raise _not_rows(path, form.fields, "its first line")
        record, number = b"", 1
        for line in file:
            record += line
            if not form.is_whole(record):
                if len(record) > _LONGEST_RECORD:
                    raise _not_rows(path, form.fields, f"row {number}")
                continue
            try:
                yield record, form.decode(record)
            except (ValueError, csv.Error) as error:
                raise _not_rows(path, form.fields, f"row {number}") from error
            record, number = b"", number + 1
        if not record.startswith(form.opening[: len(record)]):
            raise _not_rows(path, form.fields, "its end")


def _not_rows(path: Path, fields: Sequence[str], where: str) -> UserError:
    return UserError(
        f"{path}: {where} is not as this program writes it (columns {', '.join(fields)}); "
        "choose another file, or leave out --continue."
    )


def _cut_back(path: Path, form: _Csv | _JsonLines, models: Sequence[str]) -> tuple[set[str], int]:
    """Leave in a file only the rows of photos that need no second look.

    Returns the paths of these, and how many others ended in an error.
    """
    done = set()
    errors = 0
    with atomic_write(path, "wb") as kept:
        kept.write(form.header)
        for photo, records in _all_but_last(_photos(path, form, models)):
            if any(row["verdict"] == "error" for _, row in records):
                errors += 1
            elif _models_in(records) not in (set(), set(models)):
                raise _of_other_models(path, records, models)
            else:
                done.add(photo)
                kept.writelines(text for text, _ in records)
    return done, errors


def _photos(
    path: Path, form: _Csv | _JsonLines, models: Sequence[str]
) -> Iterator[tuple[str, list[tuple[bytes, dict]]]]:
    """Each photo with its records, which stand together; the last one may lack some."""
    by_photo = itertools.groupby(_read_records(path, form), key=lambda record: record[1]["path"])
    for photo, group in by_photo:
        records = list(group)
        if not _models_in(records) <= set(models):
            raise _of_other_models(path, records, models)
        yield photo, records


def _models_in(records: list[tuple[bytes, dict]]) -> set[str]:
    return {row["model"] for _, row in records} - {None}


def _of_other_models(
    path: Path, records: list[tuple[bytes, dict]], models: Sequence[str]
) -> UserError:
    return UserError(
        f"{path}: the rows in it are of the model {' and '.join(sorted(_models_in(records)))}, not "
        f"{' and '.join(models)}; choose another --output, or leave out --continue (the file is "
        "then kept as .bak)."
    )


def _all_but_last(items: Iterable) -> Iterator:
    return (item for item, _next in itertools.pairwise(items))


def _is_empty(path: Path, form: _Csv | _JsonLines) -> bool:
    """Whether nothing is lost with this file: it holds no more than the header, if that."""
    with open(path, "rb") as file:
        return form.header.startswith(file.read(len(form.header) + 1))


def _set_aside(path: Path) -> None:
    backup = path.with_name(path.name + ".bak")
    os.replace(path, backup)
    print(f"{path} was there already; it is kept as {backup.name}.", file=sys.stderr)


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "Parquet files need pyarrow: run `pip install pyarrow`, or use .csv or .jsonl."
        ) from error
    return pyarrow


def parquet_table(rows: Iterable[dict], fields: Sequence[str]):
    """The rows, dicts of `fields`, as a pyarrow.Table whose types are those of every file of rows.

    A byte of a path that is not UTF-8 becomes the text `\\udcXX`, see `valid_utf8`.
    """
    pyarrow = _pyarrow()
    types = (
        dict.fromkeys(fields, pyarrow.string())
        | dict.fromkeys(_WHOLE_NUMBERS, pyarrow.int32())
        | dict.fromkeys(_FRACTIONS, pyarrow.float64())
        | {"agreement": pyarrow.bool_()}
    )
    schema = pyarrow.schema([(name, types[name]) for name in fields])
    valid = [{name: valid_utf8(value) for name, value in row.items()} for row in rows]
    return pyarrow.Table.from_pylist(valid, schema)


def _write_parquet(path: Path, rows: Iterable[dict], fields: Sequence[str]) -> None:
    pyarrow = _pyarrow()
    rows = iter(rows)
    with (
        atomic_write(path, "wb") as file,
        pyarrow.parquet.ParquetWriter(file, parquet_table([], fields).schema) as parquet,
    ):
        while batch := list(itertools.islice(rows, _BATCH)):
            parquet.write_table(parquet_table(batch, fields))


def _read_parquet(path: Path, allowed: Sequence[tuple[str, ...]] = _ALL_VARIANTS) -> Iterator[dict]:
    """The rows of a Parquet file whose columns are one of the `allowed` lists."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as parquet:
            if tuple(parquet.schema_arrow.names) not in allowed:
                raise _not_rows(path, allowed[0], "its list of columns")
            for batch in parquet.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    yield {name: _from_utf8(value) for name, value in row.items()}
    except pyarrow.ArrowInvalid as error:
        raise _not_rows(path, allowed[0], "its content") from error


def _read_html(
    path: Path, allowed: Sequence[tuple[str, ...]] = _ALL_VARIANTS
) -> Iterator[tuple[dict | None, dict]]:
    """The rows of a report with the picture before each, if its columns are among the `allowed`."""
    from pipeline.html_report import read_report

    try:
        fields, photos = read_report(path)
        if fields not in allowed:
            raise _not_rows(path, allowed[0], "its list of columns")
        for picture, rows in photos:
            for row in rows:
                yield picture, row
                picture = None
    except ValueError as error:
        raise _not_rows(path, allowed[0], "its content") from error


def _holds(rows: Iterator[dict]) -> bool:
    try:
        return next(rows, None) is not None
    except UserError:  # something else, which is not to be lost either
        return True


def valid_utf8(value: str | int | float | None) -> str | int | float | None:
    """Parquet's strings must be UTF-8: a byte of a path that is not becomes the text `\\udcXX`."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _from_utf8(value: str | int | float | None) -> str | int | float | None:
    if isinstance(value, str) and r"\udc" in value:
        return re.sub(r"\\udc([89a-f][0-9a-f])", lambda code: chr(0xDC00 + int(code[1], 16)), value)
    return value


# Red, green, yellow, magenta; and bold where networks do not agree.
_COLOURS = {"fake": 31, "real": 32, "uncertain": 33, "error": 35, "no": 1}
_VERDICT_TITLE = f"{'verdict':<9}  {'fake':>6}"
_LONGEST_MODEL = 20  # signs of a model's name above its column


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
    """What a line of the table says of a video after its path."""
    row = of_face[0]
    if not row.frames:
        return ""
    if row.median is None or len(of_face) > 1:
        return f" ({_count(row.frames, 'frame')})"
    share = f"median {row.median:.1%}, {row.fake_share:.0%} of them fake"
    return f" ({_count(row.frames, 'frame')}: {share})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
