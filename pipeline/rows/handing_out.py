"""A report and its record as bytes, of photos that are no files here: for the web page."""

import itertools
from collections.abc import Iterable
from hashlib import sha256
from io import BytesIO
from typing import NamedTuple

import numpy as np

from pipeline.rows.formats import JsonLines
from pipeline.rows.html_report import report_parts
from pipeline.rows.pictures import heat_map, thumbnail
from pipeline.rows.record import content_facts, photos_of, write_record
from pipeline.rows.rows import Row


class HandedOut(NamedTuple):
    """A report (HTML) and its record (JSON), both as UTF-8."""

    html: bytes
    json: bytes


class ScoredPhoto(NamedTuple):
    """A photo as it came, its rows, and what is shown of it.

    `content` is its file; `pixels` the upright picture (H, W, 3) uint8 RGB, None where it could not
    be read; `heat_maps` pictures of the same kind by the numbers of the rows that they explain.
    """

    content: bytes
    rows: list[Row]
    pixels: np.ndarray | None
    heat_maps: dict[int, np.ndarray] = {}  # noqa: RUF012 (never changed)


def hand_out(
    run: dict, fields: tuple[str, ...], photos: Iterable[ScoredPhoto], name: str = "report"
) -> HandedOut:
    """The report and the record of photos, `run` being what `provenance.describe_run` says.

    `fields` are the columns of the rows, and `name` is what both files will be called, but for
    their endings. Nothing is written to the disk.
    """
    journal = [record for photo in photos for record in _records(photo, fields)]
    record = BytesIO()
    write_record(record, run, fields, photos_of(dict(each) for each in journal))
    beside = {"name": f"{name}.json", "sha256": sha256(record.getvalue()).hexdigest()}
    lines = BytesIO(b"".join(map(JsonLines.encode, journal)))
    page = "".join(report_parts(lines, fields, run | {"record": beside}, folder=None))
    return HandedOut(page.encode(), record.getvalue())


def _records(photo: ScoredPhoto, fields: tuple[str, ...]) -> Iterable[dict]:
    noted = content_facts(photo.content)
    if photo.pixels is not None:
        noted |= thumbnail(photo.pixels) | {"time": None}
    noted["heat_maps"] = [
        heat_map(row, f"row {row}", picture) for row, picture in photo.heat_maps.items()
    ]
    for row, first in zip(
        photo.rows, itertools.chain([noted], itertools.repeat(None)), strict=False
    ):
        yield {"picture": first} | row.as_dict(fields)
