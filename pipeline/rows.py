"""The result rows of scoring, one a face: written so that a killed run can go on, read, shown.

CSV, JSON Lines and Parquet hold the same columns in the same order; empty is "" or null. Where
several networks score, each face has a row of each of them and there is one more column, agreement.
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


@dataclasses.dataclass(slots=True, kw_only=True)
class Row:
    """One face as one network sees it, or one photo without a face or with an error.

    Numbers are plain Python numbers.
    """

    path: str
    face: int | None = None  # 0, 1, … within the photo
    left: int | None = None  # pixels of the upright photo; right and bottom are exclusive
    top: int | None = None
    right: int | None = None
    bottom: int | None = None
    face_score: float | None = None  # 0…1, of the face finder
    fake_probability: float | None = None  # 0…1, calibrated
    verdict: str  # real, fake, uncertain, no face or error
    threshold: float | None = None  # the fake_probability from which on a face is called fake
    model: str | None = None
    error: str | None = None  # a sentence
    agreement: bool | None = None  # whether all networks give this face the same verdict

    def as_dict(self, fields: Sequence[str]) -> dict[str, str | int | float | bool | None]:
        return {name: getattr(self, name) for name in fields}


COMPARED_FIELDS = tuple(field.name for field in dataclasses.fields(Row))
FIELDS = COMPARED_FIELDS[:-1]  # where one network scores

_WHOLE_NUMBERS = ("face", "left", "top", "right", "bottom")
_FRACTIONS = ("face_score", "fake_probability", "threshold")
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

    def write(self, rows: list[Row]) -> None:
        """Take all rows of one photo. When it returns, kill -9 can no longer undo them."""
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
    """Open `path`, which ends in .csv, .jsonl or .parquet, for the rows of `models`.

    `fields` are the columns: FIELDS, or COMPARED_FIELDS where `models` may be several.

    A missing folder is made. With `resume`, the photos in the file are in `done`, except those
    that ended in an error and the last one, which may lack rows: their rows are removed, so that
    they are scored again. Without `resume`, an earlier file is kept as `<name>.bak`. Both is said
    on standard error. Parquet is written at the end; until then the rows are in
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
        raise UserError(f"{path}: the output must end in .csv, .jsonl or .parquet.")
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
    """Read a .csv, .jsonl or .parquet file of rows, one dict a row, in constant memory.

    Its keys are `FIELDS`, or `COMPARED_FIELDS` where several networks have scored. Numbers are int
    and float, what is empty is None. A last row that was cut off by kill -9 is left out. Raises
    UserError where the file is missing or not a file of rows.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"{path}: a file of rows ends in .csv, .jsonl or .parquet.")
    try:
        if suffix == ".parquet":
            yield from _read_parquet(path)
        else:
            form = _FORMATS[suffix](_fields_in(path))
            yield from (row for _, row in _read_records(path, form))
    except OSError as error:
        raise UserError(f"{path}: this file cannot be read ({error.strerror}).") from error


def by_face(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of one photo by what they show: a face, or the whole picture, once for each network.

    In the order in which each is first met; a photo's single row is by itself.
    """
    faces: dict[tuple, list[Row]] = {}
    for row in rows:
        box = (row.left, row.top, row.right, row.bottom)
        faces.setdefault((row.face, *box), []).append(row)
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
            names = (_shortened(_printable(model), _LONGEST_MODEL) for model in models)
            titles = [f"{name:<{len(_VERDICT_TITLE)}}" for name in names]
        self._widths = dict(zip(models, map(len, titles), strict=True))
        titles += ["agree", "face"] if self._compared else ["face"]
        self._header = "  ".join([*titles, "photo"])
        self._before_photo = len(self._header) - len("photo")

    def write(self, rows: list[Row]) -> None:
        if self._header and rows:
            self._print(self._header)
            self._header = ""
        for of_face in by_face(rows):
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
        path = _printable(row.path)
        error = f": {_printable(row.error)}" if row.error else ""
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

    A photo and a face count once, however many networks have looked at them.
    """

    def __init__(self, models: Sequence[str]):
        self.photos = 0
        self.faces = 0
        self.disagreements = 0  # faces
        self.no_face = 0  # photos
        self.errors = 0  # photos
        self._verdicts = {model: Counter() for model in models}
        self._start = time.perf_counter()

    def add(self, rows: list[Row]) -> None:
        """Count all rows of one photo."""
        self.photos += 1
        self.faces += len({row.face for row in rows} - {None})
        self.disagreements += sum(of_face[0].agreement is False for of_face in by_face(rows))
        verdicts = {row.verdict for row in rows}
        self.no_face += verdicts == {"no face"}
        self.errors += verdicts == {"error"}
        for row in rows:
            if row.model is not None:
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
        photos_and_faces = f"{_count(self.photos, 'photo')}, {_count(self.faces, 'face')}"
        if len(verdicts) == 1:
            parts = [f"{photos_and_faces}: {verdicts[0]}"]
        else:
            parts = [photos_and_faces, *map("{}: {}".format, self._verdicts, verdicts)]
            parts.append(f"{self.disagreements} disagree")
        if self.no_face:
            parts.append(f"{self.no_face} without a face")
        if self.errors:
            parts.append(_count(self.errors, "error"))
        if skipped:
            parts.append(f"{_count(skipped, 'other file')} skipped")
        parts.append(f"{self.photos / self.elapsed:.1f} photos/s")
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
        rest = b"".join(self._format.encode(row.as_dict(self._format.fields)) for row in rows)
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


class _ParquetWriter(_TextWriter):
    """Appends rows to a journal and turns it into Parquet, which cannot be appended to, at the end.

    While there is a journal, it holds every row of the Parquet file beside it too, or that file is
    of an older run; so resuming looks at the journal first.
    """

    def __init__(self, path: Path, models: Sequence[str], resume: bool, fields: tuple[str, ...]):
        _pyarrow()  # missing: better said now than after the scoring
        journal = path.with_name(f".{path.name}.journal.jsonl")
        reopened = resume and path.exists() and not journal.exists()
        if reopened:
            with atomic_write(journal, "wb") as file:
                file.writelines(map(_JsonLines.encode, _read_parquet(path, (fields,))))
        elif not resume and path.exists() and _holds_rows(path):
            _set_aside(path)
        self._parquet = path
        try:
            super().__init__(journal, models, resume, fields)
        except BaseException:
            if reopened:
                journal.unlink(missing_ok=True)  # all its rows are in the Parquet file
            raise

    def close(self) -> None:
        super().close()
        try:
            rows = (row for _, row in _read_records(self._path, self._format))
            _write_parquet(self._parquet, rows, self._format.fields)
            self._path.unlink()
        except OSError as error:
            raise UserError(
                f"{self._parquet}: this file cannot be written ({error.strerror}); the rows are "
                f"kept in {self._path.name}: make room and run the same command with --continue."
            ) from error


_WRITERS = {".csv": _TextWriter, ".jsonl": _TextWriter, ".parquet": _ParquetWriter}


def _fields_in(path: Path) -> tuple[str, ...]:
    """The columns of a .csv or .jsonl file of rows, by its first line."""
    with open(path, "rb") as file:
        first = file.readline(_LONGEST_RECORD).rstrip()
    compared = first.endswith(b",agreement") or b'"agreement":' in first
    return COMPARED_FIELDS if compared else FIELDS


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


def _write_parquet(path: Path, rows: Iterable[dict], fields: Sequence[str]) -> None:
    pyarrow = _pyarrow()
    types = (
        dict.fromkeys(COMPARED_FIELDS, pyarrow.string())
        | dict.fromkeys(_WHOLE_NUMBERS, pyarrow.int32())
        | dict.fromkeys(_FRACTIONS, pyarrow.float64())
        | {"agreement": pyarrow.bool_()}
    )
    schema = pyarrow.schema([(name, types[name]) for name in fields])
    rows = iter(rows)
    with (
        atomic_write(path, "wb") as file,
        pyarrow.parquet.ParquetWriter(file, schema) as parquet,
    ):
        while batch := list(itertools.islice(rows, _BATCH)):
            valid = [{name: _utf8(value) for name, value in row.items()} for row in batch]
            parquet.write_table(pyarrow.Table.from_pylist(valid, schema))


def _read_parquet(
    path: Path, allowed: Sequence[tuple[str, ...]] = (FIELDS, COMPARED_FIELDS)
) -> Iterator[dict]:
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


def _holds_rows(parquet: Path) -> bool:
    try:
        return next(_read_parquet(parquet), None) is not None
    except UserError:  # something else, which is not to be lost either
        return True


def _utf8(value: str | int | float | None) -> str | int | float | None:
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


def _printable(text: str) -> str:
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
