"""Files of rows: written so that a killed run can go on, and read again.

CSV, JSON Lines, Parquet, HTML and JSON hold the same columns in the same order.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write, set_aside
from pipeline.photos.photo import Photo
from pipeline.rows.continuing import Run, cut_back
from pipeline.rows.formats import FORMATS, Csv, JsonLines, fields_in, not_rows, read_records
from pipeline.rows.lock import OutputLock
from pipeline.rows.parquet import import_pyarrow, read_parquet, write_parquet
from pipeline.rows.record import is_record, photos_of, read_record, rows_of, write_record
from pipeline.rows.rows import (
    COMPARED_FIELDS,
    FIELDS,
    VIDEO_FIELDS,
    Row,
    as_earlier,
    lacking,
    without,
)
from pipeline.rows.run_settings import (
    RunSettings,
    move_note,
    note_settings,
    refuse_other_settings,
)
from pipeline.rows.table import TableWriter, count
from pipeline.rows.writer import RowWriter


def open_output(
    path: Path | None,
    models: Sequence[str],
    resume: bool = False,
    fields: tuple[str, ...] = FIELDS,
    settings: RunSettings | None = None,
    record: dict | None = None,
) -> RowWriter:
    """Open `path`, which ends in one of `SUFFIXES`, for the rows of `models`.

    `fields` are the columns: FIELDS, or COMPARED_FIELDS where `models` may be several. With the
    first row of a video, VIDEO_FIELDS are added to them, in the rows before as well. A file that an
    earlier version began without some of the LATER_FIELDS goes on without them, and that is said.

    A missing folder is made. With `resume`, the photos in the file are in `done`, except those
    that ended in an error and the last one, which may lack rows: their rows are removed, so that
    they are scored again. Without `resume`, an earlier file is kept as `<name>.bak`, or under the
    next free number. Both is said on standard error. Parquet, HTML and JSON are written at the end;
    until then the rows are in `.<name>.journal.jsonl` beside it, where `resume` finds them after
    kill -9.
    `settings` say how the models score; they are noted beside the file. `record` is what a record
    says of the run (provenance.describe_run); .json needs it, and .html writes a record beside it.
    Without `path` the rows are shown as a table on standard output.

    Raises UserError where the ending is unknown, the file cannot be written, another run is writing
    it, or `resume` finds other columns, other `settings`, or a photo that other models have scored,
    or only some of `models`.
    """
    if path is None:
        if resume:
            raise UserError("--continue needs --output with the file that is to be continued.")
        return TableWriter(sys.stdout, models)
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"{path}: the output must end in {SUFFIXES}.")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: this is a folder or a device; --output must name a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as if_this_fails:
            run = Run(path, models, resume, settings, OutputLock(path), record)
            if_this_fails.callback(run.lock.release)
            writer = _WRITERS[path.suffix.lower()](run, fields)
            if settings:
                note_settings(path, settings)
            if_this_fails.pop_all()
    except OSError as error:
        raise UserError(
            f"{path}: the rows cannot be written here ({error.strerror}); choose another --output."
        ) from error
    if resume:
        again = f"; {writer.retried} that ended in an error will be tried again"
        print(
            f"{path}: {count(len(writer.done), 'photo')} scored already"
            f"{again if writer.retried else ''}.",
            file=sys.stderr,
        )
    return writer


def has_record(path: Path | None) -> bool:
    """Whether `open_output` writes a record to this path, or beside it."""
    return path is not None and Path(path).suffix.lower() in (".html", ".json")


def read_rows(path: str | Path) -> Iterator[dict[str, str | int | float | bool | None]]:
    """Read a file of rows, which ends in one of `SUFFIXES`, one dict a row, in constant memory
    but for .json.

    Its keys are `FIELDS`, or `COMPARED_FIELDS` where several networks have scored, and
    `VIDEO_FIELDS` where there are videos; without some of the `LATER_FIELDS` where an earlier
    version wrote the file. HTML has the rows in its own order. Numbers are int and float, what is
    empty is None. A last row that was cut off by kill -9 is left out. Raises
    UserError where the file is missing or not a file of rows.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"{path}: a file of rows ends in {SUFFIXES}.")
    try:
        if suffix == ".parquet":
            yield from read_parquet(path, _ALL_VARIANTS)
        elif suffix == ".html":
            yield from (row for _, row in _read_html(path))
        elif suffix == ".json":
            yield from (row for _, row in _read_json(path))
        else:
            form = FORMATS[suffix](fields_in(path))
            yield from (row for _, row in read_records(path, form))
    except OSError as error:
        raise UserError(f"{path}: this file cannot be read ({error.strerror}).") from error


class _TextWriter(RowWriter):
    """Appends rows to a file that is readable at any moment: the output, or a `journal` of it."""

    def __init__(self, run: Run, fields: tuple[str, ...], journal: Path | None = None):
        super().__init__()
        self._run = run
        self._path = path = journal or run.output
        if run.resume and path.exists():
            fields = _continued(path, fields, run)
        self._format = FORMATS[path.suffix.lower()](fields)
        if run.resume and path.exists():
            if run.settings:
                refuse_other_settings(run.output, run.settings)
            self.done, self.retried = cut_back(path, self._format, run)
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
        try:
            self._finish()
        finally:
            self._run.lock.release()

    def _finish(self) -> None:
        """Make of the file what was asked for; here it is that already."""

    def _records(self, rows: list[Row]) -> Iterable[dict]:
        return [row.as_dict(self._format.fields) for row in rows]

    def _add_video_columns(self) -> None:
        """Write the file anew, once, so that a run without videos has the columns it always had."""
        wider = type(self._format)(self._format.fields + VIDEO_FIELDS)
        nothing = dict.fromkeys(VIDEO_FIELDS)
        self._file.close()
        with atomic_write(self._path, "wb") as file:
            file.write(wider.header)
            for _, row in read_records(self._path, self._format):
                file.write(wider.encode(row | nothing))
        self._format = wider
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by close)


class _JournalWriter(_TextWriter):
    """Appends rows to a journal and turns it, at the end, into a file that cannot be appended to.

    While there is a journal, it holds every row of that file beside it too, or that file is of an
    older run; so resuming looks at the journal first.
    """

    def __init__(self, run: Run, fields: tuple[str, ...]):
        path = run.output
        journal = path.with_name(f".{path.name}.journal.jsonl")
        reopened = run.resume and path.exists() and not journal.exists()
        if reopened:
            with atomic_write(journal, "wb") as file:
                file.writelines(map(JsonLines.encode, self._read_back(path, fields)))
        elif not run.resume and path.exists() and _holds(self._read_back(path)):
            _set_aside(path)
        try:
            super().__init__(run, fields, journal)
        except BaseException:
            if reopened:
                journal.unlink(missing_ok=True)  # all its rows are in the finished file
            raise

    def _finish(self) -> None:
        try:
            self._write_finished(self._run.output)
            self._path.unlink()
        except OSError as error:
            raise UserError(
                f"{self._run.output}: this file cannot be written ({error.strerror}); the rows are "
                f"kept in {self._path.name}: make room and run the same command with --continue."
            ) from error

    def _read_back(self, path: Path, fields: tuple[str, ...] | None = None) -> Iterator[dict]:
        """What the journal of a finished file was, if its columns begin with the `fields`."""
        raise NotImplementedError

    def _write_finished(self, path: Path) -> None:
        """Turn the journal into the finished file."""
        raise NotImplementedError


class _ParquetWriter(_JournalWriter):
    def __init__(self, run: Run, fields: tuple[str, ...]):
        import_pyarrow()  # missing: better said now than after the scoring
        super().__init__(run, fields)

    def _read_back(self, path: Path, fields: tuple[str, ...] | None = None) -> Iterator[dict]:
        return read_parquet(path, _variants(fields) if fields else _ALL_VARIANTS)

    def _write_finished(self, path: Path) -> None:
        rows = (row for _, row in read_records(self._path, self._format))
        write_parquet(path, rows, self._format.fields)


class _RecordWriter(_JournalWriter):
    """The journal has one column more, first: what is noted of a photo, in its first row."""

    def __init__(self, run: Run, fields: tuple[str, ...]):
        from pipeline.rows.pictures import PictureKeeper

        if run.record is None and run.output.suffix.lower() == ".json":
            raise ValueError("a record must say how its rows came to be")
        self._pictures = PictureKeeper(with_facts=run.record is not None)
        super().__init__(run, (_PICTURE, *fields))

    def watch(self, photos: Iterable[Photo]) -> Iterable[Photo]:
        return self._pictures.watch(photos)

    def note_heat_maps(self, files: dict[int, Path]) -> None:
        self._pictures.note_heat_maps(files)

    def _records(self, rows: list[Row]) -> Iterable[dict]:
        pictures = itertools.chain([self._pictures.take(rows)], itertools.repeat(None))
        for row, picture in zip(rows, pictures, strict=False):
            yield {_PICTURE: picture} | row.as_dict(self._format.fields[1:])

    def _read_back(self, path: Path, fields: tuple[str, ...] | None = None) -> Iterator[dict]:
        allowed = _variants(fields[1:]) if fields else _ALL_VARIANTS
        read = _read_json if path.suffix.lower() == ".json" else _read_html
        return ({_PICTURE: picture} | row for picture, row in read(path, allowed))

    def _write_finished(self, path: Path) -> None:
        rows = (row for _, row in read_records(self._path, self._format))
        with atomic_write(path, "wb") as file:
            write_record(file, self._run.record, self._format.fields[1:], photos_of(rows))


class _HtmlWriter(_RecordWriter):
    """Writes a record as well, beside the page, where it is known how the rows came to be."""

    def __init__(self, run: Run, fields: tuple[str, ...]):
        self._beside = run.output.with_suffix(".json") if run.record else None
        self._lock_beside = OutputLock(self._beside) if self._beside else None
        try:
            if self._beside and self._beside.exists() and not run.resume:
                _set_aside(self._beside)
            super().__init__(run, fields)
        except BaseException:
            self._let_go_beside()
            raise

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._let_go_beside()

    def _write_finished(self, path: Path) -> None:
        from pipeline.rows.html_report import write_report

        if self._beside:
            if self._beside.exists() and not is_record(self._beside):
                _set_aside(self._beside)
            super()._write_finished(self._beside)
        write_report(path, self._path, self._format.fields[1:], self._run.record, self._beside)

    def _let_go_beside(self) -> None:
        if self._lock_beside:
            self._lock_beside.release()


_WRITERS = {
    ".csv": _TextWriter,
    ".jsonl": _TextWriter,
    ".parquet": _ParquetWriter,
    ".html": _HtmlWriter,
    ".json": _RecordWriter,
}
SUFFIXES = ".csv, .jsonl, .parquet, .html or .json"
_PICTURE = "picture"


def _variants(fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    now = [fields, fields + VIDEO_FIELDS]
    return now + [older for fields in now for older in as_earlier(fields)]


_ALL_VARIANTS = _variants(FIELDS) + _variants(COMPARED_FIELDS)


def _continued(path: Path, fields: tuple[str, ...], run: Run) -> tuple[str, ...]:
    """The `fields` as they stand in a file that is to be continued: with those of videos if they
    are there, and without those that an earlier version had not. To fill these with nothing would
    say of its photos that they declare nothing."""
    there = fields_in(path)
    if there[-len(VIDEO_FIELDS) :] == VIDEO_FIELDS:
        fields += VIDEO_FIELDS
    if missing := lacking(there):
        fields = without(fields, missing)
        print(
            f"{run.output} was begun by an earlier version of this program and goes on without the "
            f"columns {', '.join(missing)}; to have them, leave out --continue.",
            file=sys.stderr,
        )
    return fields


def _is_empty(path: Path, form: Csv | JsonLines) -> bool:
    """Whether nothing is lost with this file: it holds no more than the header, if that."""
    with open(path, "rb") as file:
        return form.header.startswith(file.read(len(form.header) + 1))


def _set_aside(path: Path) -> None:
    backup = set_aside(path)
    move_note(path, backup)
    print(f"{path} was there already; it is kept as {backup.name}.", file=sys.stderr)


def _read_html(
    path: Path, allowed: Sequence[tuple[str, ...]] = _ALL_VARIANTS
) -> Iterator[tuple[dict | None, dict]]:
    """The rows of a report with the picture before each, if its columns are among the `allowed`."""
    from pipeline.rows.html_report import read_report

    try:
        fields, photos = read_report(path)
        if fields not in allowed:
            raise not_rows(path, allowed[0], "its list of columns")
        for picture, rows in photos:
            for row in rows:
                yield picture, row
                picture = None
    except ValueError as error:
        raise not_rows(path, allowed[0], "its content") from error


def _read_json(
    path: Path, allowed: Sequence[tuple[str, ...]] = _ALL_VARIANTS
) -> Iterator[tuple[dict | None, dict]]:
    """The rows of a record with what is noted of each photo before it, as `_read_html`."""
    record = read_record(path)
    if record.columns not in allowed:
        raise not_rows(path, allowed[0], "its list of columns")
    yield from rows_of(record)


def _holds(rows: Iterator[dict]) -> bool:
    try:
        return next(rows, None) is not None
    except UserError:  # something else, which is not to be lost either
        return True
