"""Files of rows: written so that a killed run can go on, and read again.

CSV, JSON Lines, Parquet and HTML hold the same columns in the same order.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write, set_aside
from pipeline.photos.photo import Photo
from pipeline.rows.formats import FORMATS, Csv, JsonLines, fields_in, not_rows, read_records
from pipeline.rows.lock import OutputLock
from pipeline.rows.parquet import import_pyarrow, read_parquet, write_parquet
from pipeline.rows.rows import (
    COMPARED_FIELDS,
    DECLARED_FIELDS,
    FIELDS,
    VIDEO_FIELDS,
    Row,
    without_declared,
)
from pipeline.rows.run_settings import (
    RunSettings,
    move_note,
    note_settings,
    refuse_other_rows,
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
) -> RowWriter:
    """Open `path`, which ends in .csv, .jsonl, .parquet or .html, for the rows of `models`.

    `fields` are the columns: FIELDS, or COMPARED_FIELDS where `models` may be several. With the
    first row of a video, VIDEO_FIELDS are added to them, in the rows before as well. A file that an
    earlier version began without DECLARED_FIELDS goes on without them, and that is said.

    A missing folder is made. With `resume`, the photos in the file are in `done`, except those
    that ended in an error and the last one, which may lack rows: their rows are removed, so that
    they are scored again. Without `resume`, an earlier file is kept as `<name>.bak`, or under the
    next free number. Both is said on standard error. Parquet and HTML are written at the end; until
    then the rows are in `.<name>.journal.jsonl` beside it, where `resume` finds them after kill -9.
    `settings` say how the models score; they are noted beside the file.
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
        raise UserError(f"{path}: the output must end in .csv, .jsonl, .parquet or .html.")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: this is a folder or a device; --output must name a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as if_this_fails:
            run = _Run(path, models, resume, settings, OutputLock(path))
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


def read_rows(path: str | Path) -> Iterator[dict[str, str | int | float | bool | None]]:
    """Read a .csv, .jsonl, .parquet or .html file of rows, one dict a row, in constant memory.

    Its keys are `FIELDS`, or `COMPARED_FIELDS` where several networks have scored, and
    `VIDEO_FIELDS` where there are videos; without `DECLARED_FIELDS` where an earlier version wrote
    the file. HTML has the rows in its own order. Numbers are int
    and float, what is empty is None. A last row that was cut off by kill -9 is left out. Raises
    UserError where the file is missing or not a file of rows.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"{path}: a file of rows ends in .csv, .jsonl, .parquet or .html.")
    try:
        if suffix == ".parquet":
            yield from read_parquet(path, _ALL_VARIANTS)
        elif suffix == ".html":
            yield from (row for _, row in _read_html(path))
        else:
            form = FORMATS[suffix](fields_in(path))
            yield from (row for _, row in read_records(path, form))
    except OSError as error:
        raise UserError(f"{path}: this file cannot be read ({error.strerror}).") from error


@dataclasses.dataclass(frozen=True)
class _Run:
    """What `open_output` was asked for, and the lock on its file."""

    output: Path
    models: Sequence[str]
    resume: bool
    settings: RunSettings | None
    lock: OutputLock


class _TextWriter(RowWriter):
    """Appends rows to a file that is readable at any moment: the output, or a `journal` of it."""

    def __init__(self, run: _Run, fields: tuple[str, ...], journal: Path | None = None):
        super().__init__()
        self._run = run
        self._path = path = journal or run.output
        if run.resume and path.exists():
            fields = _continued(path, fields, run)
        self._format = FORMATS[path.suffix.lower()](fields)
        if run.resume and path.exists():
            if run.settings:
                refuse_other_settings(run.output, run.settings)
            self.done, self.retried = _cut_back(path, self._format, run)
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

    def __init__(self, run: _Run, fields: tuple[str, ...]):
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
    def __init__(self, run: _Run, fields: tuple[str, ...]):
        import_pyarrow()  # missing: better said now than after the scoring
        super().__init__(run, fields)

    def _read_back(self, path: Path, fields: tuple[str, ...] | None = None) -> Iterator[dict]:
        return read_parquet(path, _variants(fields) if fields else _ALL_VARIANTS)

    def _write_finished(self, path: Path) -> None:
        rows = (row for _, row in read_records(self._path, self._format))
        write_parquet(path, rows, self._format.fields)


class _HtmlWriter(_JournalWriter):
    """The journal has one column more, first: what the page shows of a photo, in its first row."""

    def __init__(self, run: _Run, fields: tuple[str, ...]):
        from pipeline.rows.html_report import PictureKeeper

        self._pictures = PictureKeeper()
        super().__init__(run, (_PICTURE, *fields))

    def watch(self, photos: Iterable[Photo]) -> Iterable[Photo]:
        return self._pictures.watch(photos)

    def _records(self, rows: list[Row]) -> Iterable[dict]:
        pictures = itertools.chain([self._pictures.take(rows)], itertools.repeat(None))
        for row, picture in zip(rows, pictures, strict=False):
            yield {_PICTURE: picture} | row.as_dict(self._format.fields[1:])

    def _read_back(self, path: Path, fields: tuple[str, ...] | None = None) -> Iterator[dict]:
        allowed = _variants(fields[1:]) if fields else _ALL_VARIANTS
        return ({_PICTURE: picture} | row for picture, row in _read_html(path, allowed))

    def _write_finished(self, path: Path) -> None:
        from pipeline.rows.html_report import write_report

        write_report(path, self._path, self._format.fields[1:])


_WRITERS = {
    ".csv": _TextWriter,
    ".jsonl": _TextWriter,
    ".parquet": _ParquetWriter,
    ".html": _HtmlWriter,
}
_PICTURE = "picture"


def _variants(fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    now = [fields, fields + VIDEO_FIELDS]
    return now + list(map(without_declared, now))


_ALL_VARIANTS = _variants(FIELDS) + _variants(COMPARED_FIELDS)


def _continued(path: Path, fields: tuple[str, ...], run: _Run) -> tuple[str, ...]:
    """The `fields` as they stand in a file that is to be continued: with those of videos if they
    are there, and without those that an earlier version had not. To fill these with nothing would
    say of its photos that they declare nothing."""
    there = fields_in(path)
    if there[-len(VIDEO_FIELDS) :] == VIDEO_FIELDS:
        fields += VIDEO_FIELDS
    if not set(DECLARED_FIELDS) <= set(there):
        fields = without_declared(fields)
        print(
            f"{run.output} was begun by an earlier version of this program and goes on without the "
            f"columns {' and '.join(DECLARED_FIELDS)}; to have them, leave out --continue.",
            file=sys.stderr,
        )
    return fields


def _cut_back(path: Path, form: Csv | JsonLines, run: _Run) -> tuple[set[str], int]:
    """Leave in a file only the rows of photos that need no second look.

    Returns the paths of these, and how many others ended in an error.
    """
    done = set()
    errors = 0
    with atomic_write(path, "wb") as kept:
        kept.write(form.header)
        for photo, records in _all_but_last(_photos(path, form, run)):
            if any(row["verdict"] == "error" for _, row in records):
                errors += 1
            elif _models_in(records) not in (set(), set(run.models)):
                raise _of_other_models(records, run)
            else:
                done.add(photo)
                kept.writelines(text for text, _ in records)
    return done, errors


def _photos(
    path: Path, form: Csv | JsonLines, run: _Run
) -> Iterator[tuple[str, list[tuple[bytes, dict]]]]:
    """Each photo with its records, which stand together; the last one may lack some."""
    by_photo = itertools.groupby(read_records(path, form), key=lambda record: record[1]["path"])
    for photo, group in by_photo:
        records = list(group)
        if not _models_in(records) <= set(run.models):
            raise _of_other_models(records, run)
        refuse_other_rows(run.output, (row for _, row in records), run.settings or {})
        yield photo, records


def _models_in(records: list[tuple[bytes, dict]]) -> set[str]:
    return {row["model"] for _, row in records} - {None}


def _of_other_models(records: list[tuple[bytes, dict]], run: _Run) -> UserError:
    return UserError(
        f"{run.output}: the rows in it are of the model "
        f"{' and '.join(sorted(_models_in(records)))}, not {' and '.join(run.models)}; choose "
        "another --output, or leave out --continue (the file is then kept as .bak)."
    )


def _all_but_last(items: Iterable) -> Iterator:
    return (item for item, _next in itertools.pairwise(items))


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


def _holds(rows: Iterator[dict]) -> bool:
    try:
        return next(rows, None) is not None
    except UserError:  # something else, which is not to be lost either
        return True
