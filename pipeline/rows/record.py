"""The record of a run: what its report says, as JSON, for `verify_report.py` and other programs.

An object with `format`, `made` (when it was written), what `provenance.describe_run` says of the
run, `columns` (of the rows) and `photos`. Each photo has its `path`, the `sha256` and number of
`bytes` of its file (null where that is not known), when it was `scored`, its `rows`, and its
`heat_maps` (`row`, counted from 0, and the name of the `file`). Times are ISO 8601 with the time
zone. Each photo is a line.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.rows.formats import JsonLines
from pipeline.rows.rows import FRACTIONS, WHOLE_NUMBERS

FORMAT = 1
_OF_THE_RUN = ("program", "options", "sampling", "detectors")
_NUMBERS = {**dict.fromkeys(FRACTIONS, (int, float)), **dict.fromkeys(WHOLE_NUMBERS, int)}


class RecordedPhoto(NamedTuple):
    """A photo or video of a record. `size` is that of its file in bytes."""

    path: str
    sha256: str | None
    size: int | None
    scored: str | None
    rows: list[dict]
    heat_maps: list[dict]


class Record(NamedTuple):
    """A record that has been read. `run` is what `provenance.describe_run` said."""

    run: dict
    made: str
    columns: tuple[str, ...]
    photos: list[RecordedPhoto]


def file_facts(path: str) -> dict:
    """What a record notes of a photo's file when it is scored: `sha256`, `bytes` and `scored`."""
    facts = {"sha256": None, "bytes": None, "scored": now()}
    try:
        if os.path.isfile(path):  # to open a FIFO would wait for a writer
            facts |= {"sha256": sha256_of(path), "bytes": os.path.getsize(path)}
    except (OSError, ValueError):  # its row says why
        pass
    return facts


def content_facts(content: bytes) -> dict:
    """The same for a photo that is no file here."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"sha256": sha256, "bytes": len(content), "scored": now()}


def now() -> str:
    """The time of day, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def write_record(
    out: BinaryIO, run: dict, columns: Sequence[str], photos: Iterable[tuple[dict | None, list]]
) -> None:
    """Write a record of photos, each what was noted of it and its rows as dicts with `columns`."""
    head = {"format": FORMAT, "made": now(), **run, "columns": list(columns)}
    out.write(JsonLines.encode(head).rstrip().removesuffix(b"}") + b', "photos": [')
    for number, (noted, rows) in enumerate(photos):
        out.write((b",\n" if number else b"\n") + JsonLines.encode(_entry(noted, rows)).rstrip())
    out.write(b"\n]}\n")


def photos_of(records: Iterable[dict]) -> Iterator[tuple[dict | None, list[dict]]]:
    """The photos of a journal's records: what is noted of each in the column `picture` of its first
    record, and its rows."""
    for _, group in itertools.groupby(records, key=lambda record: record["path"]):
        of_photo = list(group)
        noted = [record.pop("picture") for record in of_photo]
        yield noted[0], of_photo


def read_record(path: Path) -> Record:
    """Read a record. Raises UserError where it cannot be read or is malformed, and OSError."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"it is no JSON ({error})") from None
    if not isinstance(content, dict) or "format" not in content or "photos" not in content:
        raise _malformed(path, "it lacks `format` or `photos`")
    if content["format"] != FORMAT:
        raise UserError(
            f"{path}: the format of this record is {content['format']!r} and this program knows "
            f"{FORMAT}: use the version of the program that the record names."
        )
    try:
        columns = tuple(content["columns"])
        if not all(isinstance(name, str) for name in columns):
            raise TypeError("`columns` must be names")
        run = {name: content[name] for name in _OF_THE_RUN}
        _check_run(run)
        photos = [_photo(entry, columns) for entry in content["photos"]]
        return Record(run, str(content["made"]), columns, photos)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise _malformed(path, what) from None


def is_record(path: Path) -> bool:
    """Whether a file begins like a record."""
    with open(path, "rb") as file:
        return re.match(rb'\{"format": \d+, "made": "', file.read(64)) is not None


def _entry(noted: dict | None, rows: list[dict]) -> dict:
    noted = noted or {}
    drawn = [{name: each[name] for name in ("row", "file")} for each in noted.get("heat_maps", [])]
    facts = {name: noted.get(name) for name in ("sha256", "bytes", "scored")}
    return {"path": rows[0]["path"], **facts, "rows": rows, "heat_maps": drawn}


def _photo(entry: dict, columns: tuple[str, ...]) -> RecordedPhoto:
    photo = RecordedPhoto(
        *(entry[name] for name in ("path", "sha256", "bytes", "scored", "rows", "heat_maps"))
    )
    _require(photo.path, str)
    _require(photo.heat_maps, list)
    if photo.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", photo.sha256):
        raise ValueError(f"{photo.path}: its `sha256` is none")
    if not isinstance(photo.rows, list) or not photo.rows:
        raise ValueError(f"{photo.path}: it has no rows")
    for row, name in itertools.product(photo.rows, columns):
        if tuple(row) != columns or row["path"] != photo.path:
            raise ValueError(f"{photo.path}: a row has other columns or another path")
        kind = _NUMBERS.get(name, bool if name == "agreement" else str)
        if row[name] is not None and (
            not isinstance(row[name], kind) or (name in _NUMBERS and isinstance(row[name], bool))
        ):
            raise TypeError(f"{photo.path}: {name} is {row[name]!r}")
    return photo


def _check_run(run: dict) -> None:
    """Raise TypeError, ValueError or KeyError where what is said of the run is malformed."""
    program = run["program"]
    detectors, members = run["detectors"], []
    for detector in detectors:
        _require(detector["name"], str)
        _require(detector["settings"], dict)
        _require(detector["members"], list)
        members += detector["members"]
        if len(detector["members"]) not in (1, 2):
            raise ValueError("a detector must have one or two `members`")
    for member in members:
        _require(member["name"], str)
        _require(member["graphs"], dict)
    for value in (program, run["options"], run["sampling"], program["libraries"]):
        _require(value, dict)
    if not detectors:
        raise ValueError("`detectors` is empty")


def _require(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} stands in the wrong place")


def rows_of(record: Record) -> Iterator[tuple[dict, dict]]:
    """Each row of a record, after what was noted of its photo; that is None after the first."""
    for photo in record.photos:
        noted = {"sha256": photo.sha256, "bytes": photo.size, "scored": photo.scored}
        noted["heat_maps"] = photo.heat_maps
        for row in photo.rows:
            yield noted, row
            noted = None


def _malformed(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: this is not a record of this program ({what}); name the .json file that was "
        "written beside a report, or with --output FILE.json."
    )
