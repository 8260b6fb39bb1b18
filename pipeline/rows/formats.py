"""Rows as text, one record a row: CSV and JSON Lines, written and read byte for byte.

Empty is "" in CSV and null in JSON. A byte of a path that is not UTF-8 stands in CSV as it is, and
in JSON as \\udcXX. Text that a spreadsheet would take for a formula has an apostrophe before it in
CSV, which is removed when it is read here.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.rows.rows import (
    COMPARED_FIELDS,
    FIELDS,
    FRACTIONS,
    LATER_FIELDS,
    VIDEO_FIELDS,
    WHOLE_NUMBERS,
    without,
)

_TRUTH_VALUES = ("false", "true")  # in CSV, as in JSON
_QUOTED = "\r\n\t;"  # signs for whose sake a field of CSV is quoted, besides , and "
# What begins a formula, after white space too (https://owasp.org/www-community/attacks/CSV_Injection;
# the wide signs begin one in East Asian versions); and the apostrophes that stand before it.
_FORMULA = re.compile(r"('*)(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")
_BEGINNINGS = (b"path,face,", b'{"path":', b'{"picture":')  # of the first line of a file of rows
_LONGEST_RECORD = 1 << 16  # bytes; longer: a quote that others opened and nobody closed


class Csv:
    """Rows of `fields` as CSV, and the line with their names before them.

    `encode` makes a row a record, bytes with a line end; `is_whole` tells whether lines that were
    read make a record; `decode` makes it a row again and raises ValueError or csv.Error where it
    is none.
    """

    opening = b""

    def __init__(self, fields: tuple[str, ...]):
        self.fields = fields
        self.header = (",".join(fields) + "\n").encode()

    @staticmethod
    def encode(row: dict) -> bytes:
        line = io.StringIO(newline="")
        if row.get("agreement") is not None:
            row = row | {"agreement": _TRUTH_VALUES[row["agreement"]]}
        # It quotes fields that hold a sign of its line end: also those that programs which take
        # another sign than the comma between fields would cut in two.
        csv.writer(line, lineterminator=_QUOTED).writerow(map(defused, row.values()))
        return (line.getvalue().removesuffix(_QUOTED) + "\n").encode("utf-8", "surrogateescape")

    @staticmethod
    def is_whole(record: bytes) -> bool:
        return record.endswith(b"\n") and record.count(b'"') % 2 == 0  # not within a quoted field

    def decode(self, record: bytes) -> dict:
        text = io.StringIO(record.decode("utf-8", "surrogateescape"), newline="")
        row = dict(zip(self.fields, next(csv.reader(text, strict=True)), strict=True))
        for name, value in row.items():
            if value == "":
                row[name] = None
            elif name in WHOLE_NUMBERS:
                row[name] = int(value)
            elif name in FRACTIONS:
                row[name] = float(value)
            elif name == "agreement":
                row[name] = bool(_TRUTH_VALUES.index(value))
            else:
                row[name] = _as_it_was(value)
        return row


class JsonLines:
    """Rows of `fields` as JSON, one object a line; the same methods as `Csv`."""

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


def defused(value: str | int | float | None) -> str | int | float | None:
    """A value as a cell of CSV that no spreadsheet takes for a formula; only text is changed.

    An apostrophe comes before text that begins like a formula, or with apostrophes and then so,
    so that no two texts become the same.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _as_it_was(cell: str) -> str:
    """The text that `defused` made this of."""
    begins = _FORMULA.match(cell)
    return cell[1:] if begins and begins[1] else cell


FORMATS = {".csv": Csv, ".jsonl": JsonLines}


def fields_in(path: Path) -> tuple[str, ...]:
    """The columns of a .csv or .jsonl file of rows, by its first line."""
    with open(path, "rb") as file:
        line = file.readline(_LONGEST_RECORD)
    first = line.rstrip()
    column = b",%s" if first.startswith(b"path,") else b'"%s":'

    def has(name: str) -> bool:
        return column % name.encode() in first

    fields = COMPARED_FIELDS if has("agreement") else FIELDS
    fields += VIDEO_FIELDS if has("fake_share") else ()
    if line.endswith(b"\n") and first.startswith(_BEGINNINGS):  # not cut off by kill -9
        for later in LATER_FIELDS:
            fields = fields if has(later[-1]) else without(fields, later)
    return fields


def read_records(path: Path, form: Csv | JsonLines) -> Iterator[tuple[bytes, dict]]:
    """Each whole record as it stands in the file, and the row in it; raises UserError (`not_rows`)
    where something else stands there."""
    with open(path, "rb") as file:
        if not form.header.startswith(file.read(len(form.header))):
            raise not_rows(path, form.fields, "its first line")
        record, number = b"", 1
        for line in file:
            record += line
            if not form.is_whole(record):
                if len(record) > _LONGEST_RECORD:
                    raise not_rows(path, form.fields, f"row {number}")
                continue
            try:
                yield record, form.decode(record)
            except (ValueError, csv.Error) as error:
                raise not_rows(path, form.fields, f"row {number}") from error
            record, number = b"", number + 1
        if not record.startswith(form.opening[: len(record)]):
            raise not_rows(path, form.fields, "its end")


def not_rows(path: Path, fields: Sequence[str], where: str) -> UserError:
    """What is raised where a file is something else than rows of `fields`."""
    return UserError(
        f"{path}: {where} is not as this program writes it (columns {', '.join(fields)}); "
        "choose another file, or leave out --continue."
    )
