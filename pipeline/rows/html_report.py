"""The report to look at: one HTML page with a thumbnail of each photo, the most suspicious first.

It needs no server and asks nobody for anything: pictures, style and script are inside. Filters work
without the script, which only adds a search by name. The rows are inside as well, as data, so that
`read_report` gives back what the page was made of.
"""

import base64
import hashlib
import html
import itertools
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline.common.files import atomic_write, sha256_of
from pipeline.common.html_templates import TEMPLATES, environment
from pipeline.photos.pixels import shrunk_size
from pipeline.rows.pictures import THUMBNAIL_SIDE, most_suspicious
from pipeline.rows.record import now
from pipeline.rows.rows import DECLARED_FIELDS, FRACTIONS, WHOLE_NUMBERS, Row, by_face
from pipeline.rows.table import printable

# The page for 5,000 photos has about 40 MB, which a browser shows in seconds. What lies behind has
# a line without a picture: it is the least suspicious part.
MOST_PICTURES = 5_000
# The columns whose values are a word or a number; others hold sentences.
_SHORT = ("verdict", "model", "agreement", *WHOLE_NUMBERS, *FRACTIONS)
VERDICTS = ("fake", "uncertain", "real", "no face")


def write_report(
    page: Path,
    journal: Path,
    fields: tuple[str, ...],
    run: dict | None = None,
    record: Path | None = None,
) -> None:
    """Write the page, whole or not at all, from a journal: JSON Lines of a `picture` and `fields`.

    `run` is what `provenance.describe_run` says of the run, where that is known, and `record` the
    file that holds the same as data. In memory are three numbers a photo and one photo.
    """
    if record:
        run = run | {"record": {"name": record.name, "sha256": sha256_of(record)}}
    with open(journal, "rb") as file, atomic_write(page) as out:
        out.writelines(report_parts(file, fields, run, page.absolute().parent))


def report_parts(
    journal: BinaryIO, fields: tuple[str, ...], run: dict | None, folder: Path | None
) -> Iterator[str]:
    """The page in parts. `folder` is where it will lie, for links to the photos; None: without."""
    keys, offsets, counts = array("d"), array("q"), Counter()
    models: dict[str, float] = {}  # → threshold
    for offset, photo in _photos(journal):
        rows = photo.rows
        keys.append(_sort_key(rows))
        offsets.append(offset)
        counts.update(photo.verdicts)
        models |= {
            row.model: row.threshold for row in rows if None not in (row.model, row.threshold)
        }
    order = np.argsort(-np.asarray(keys), kind="stable")
    shown = int((np.asarray(keys) > _ERROR).sum())
    style, script = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    photos = (_photo_at(journal, offsets[number]) for number in order)
    pictured = min(shown, MOST_PICTURES)
    return _template().stream(
        fields=fields,
        folder=folder,
        run=run,
        what=_noun(shown, "frames" in fields),
        shown=shown,
        pictured=pictured,
        failed=len(keys) - shown,
        # Each takes up the same photos where the one before has stopped.
        with_picture=itertools.islice(photos, pictured),
        without_picture=itertools.islice(photos, shown - pictured),
        not_scored=photos,
        verdicts=VERDICTS,
        counts=counts,
        models=models,
        made=now(),
        policy=_policy(style, script),
        style=style,
        script=script,
    )


def read_report(page: Path) -> tuple[tuple[str, ...], Iterator[tuple[dict | None, list[dict]]]]:
    """The columns of a report's rows; and of each photo its picture and rows, in their order there.

    Raises ValueError where the page is no report, before or while its rows are read.
    """
    with open(page, "rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
    columns = re.search(r'<meta name="columns" content="([a-z_,]*)">', head)
    if columns is None:
        raise ValueError("not a report of this program")
    fields = tuple(columns[1].split(","))
    return fields, _read_photos(page, fields)


def _read_photos(page: Path, fields: tuple[str, ...]) -> Iterator[tuple[dict | None, list[dict]]]:
    with open(page, encoding="utf-8") as file:
        ended = False
        for line in file:
            data = re.match(r"<(?:article|p)[^>]* data-rows='([^']*)'", line)
            if data:
                picture, rows = json.loads(html.unescape(data[1]))
                if picture is not None:
                    _give_back_pixels(picture, line)
                yield picture, [dict(zip(fields, row, strict=True)) for row in rows]
            ended = line == "</html>\n"
        if not ended:
            raise ValueError("its end is missing")


def _give_back_pixels(picture: dict, line: str) -> None:
    """Put the JPEGs that stand in a photo's line of a page where the journal had them."""

    def jpegs(kind: str) -> list[str]:
        return re.findall(f'<img {kind}[^>]* src="data:image/jpeg;base64,([^"]*)"', line)

    if "width" in picture:
        # (Without a class in the pages of earlier versions.)
        picture["jpeg"] = next(iter(jpegs('(?:class="thumbnail" )?loading="lazy"')), "")
    drawn = picture.get("heat_maps", [])
    for each, jpeg in itertools.zip_longest(drawn, jpegs('class="heat-map"')[: len(drawn)]):
        each["jpeg"] = jpeg or ""


class _PhotoRows:
    """All that the journal holds of one photo or video, as the templates ask for it."""

    def __init__(self, records: list[dict]):
        self.noted = records[0].pop("picture") or {}
        self.picture = self.noted if "width" in self.noted else None
        self.records = [{k: v for k, v in record.items() if k != "picture"} for record in records]
        self.rows = [Row(**record) for record in self.records]
        self.path = self.rows[0].path
        self._of_frames = [row for row in self.rows if row.is_frame]
        self._said = [row for row in self.rows if not row.is_frame]

    @property
    def verdicts(self) -> list[str]:
        """Those that the filters know it by: each of a face, or the only one."""
        found = {row.verdict for row in self._said}
        return [verdict for verdict in (*VERDICTS, "error") if verdict in found]

    @property
    def worst(self) -> Row:
        return most_suspicious(self._said)

    @property
    def error(self) -> str:
        """The first sentence that says what was wrong."""
        return next((row.error for row in self.rows if row.error), "")

    def data(self, fields: tuple[str, ...]) -> list:
        """What `read_report` gives back: the picture without its pixels, and the rows."""
        noted = {name: value for name, value in self.noted.items() if name != "jpeg"}
        if "heat_maps" in noted:
            noted["heat_maps"] = [
                {name: value for name, value in each.items() if name != "jpeg"}
                for each in noted["heat_maps"]
            ]
        return [noted or None, [[record[name] for name in fields] for record in self.records]]

    def faces(self) -> list[list[Row]]:
        """The rows of each face, a row a network; of a video, what sums it up comes first."""
        return by_face(sorted(self._said, key=lambda row: row.face is not None))

    def columns(self, fields: tuple[str, ...]) -> list[str]:
        """Of the columns, those that say something of it in a word or a number."""
        return [
            name
            for name in fields
            if name in _SHORT and any(record[name] is not None for record in self.records)
        ]

    @staticmethod
    def sentences(record: dict) -> dict[str, str]:
        """What a row says in sentences, by the names of its columns; what is said above is not."""
        said = (*_SHORT, "path", *DECLARED_FIELDS)
        return {name: text for name, text in record.items() if text and name not in said}

    @property
    def thumbnail_size(self) -> tuple[int, int]:
        """Width and height of its thumbnail in pixels."""
        return shrunk_size(self.picture["width"], self.picture["height"], THUMBNAIL_SIDE)

    def boxes(self) -> Iterator[dict]:
        """The boxes of the faces in its picture, in pixels of the thumbnail."""
        scale = min(1, THUMBNAIL_SIDE / max(self.picture["width"], self.picture["height"]))
        shown = [row for row in self.rows if row.time == self.picture["time"]]
        for of_face in by_face(row for row in shown if row.left is not None):
            row = most_suspicious(of_face)
            left, top, right, bottom = (
                round(side * scale, 1) for side in (row.left, row.top, row.right, row.bottom)
            )
            yield {
                "verdict": row.verdict,
                "face": row.face,
                "left": left,
                "top": top,
                "width": max(0, right - left),
                "height": max(0, bottom - top),
            }

    def curve(self) -> dict | None:
        """fake_probability over the time of a video, in a picture of 100 × 40 pixels."""
        frames = [row for row in self._of_frames if row.fake_probability is not None]
        if not frames:
            return None
        start, end = frames[0].time, frames[-1].time
        lines = {}
        for row in frames:
            x = 100 * (row.time - start) / (end - start) if end > start else 50
            points = lines.setdefault((row.face, row.model), [])
            points.append((x, 40 * (1 - row.fake_probability)))
        threshold = 40 * (1 - frames[0].threshold)
        return {"start": start, "end": end, "threshold": threshold, "lines": list(lines.values())}

    def link(self, folder: Path) -> str:
        """The photo, at the time of its picture, as seen from the page's folder; a colon in a name
        must not become a scheme."""
        try:
            target = quote(os.fsencode(os.path.relpath(self.path, folder)))
        except ValueError:  # on another drive of Windows
            target = Path(self.path).absolute().as_uri()
        time = self.picture["time"]
        return target if time is None else f"{target}#t={time:.2f}"


def _photos(file) -> Iterator[tuple[int, _PhotoRows]]:
    """Each photo of an open journal, and where it begins there."""

    def lines():
        offset = 0
        for line in file:
            yield offset, json.loads(line)
            offset += len(line)

    for _, group in itertools.groupby(lines(), key=lambda item: item[1]["path"]):
        group = list(group)
        yield group[0][0], _PhotoRows([record for _, record in group])


def _photo_at(file, offset: int) -> _PhotoRows:
    file.seek(offset)
    return next(_photos(file))[1]


_NO_FACE, _ERROR = -1.0, -2.0


def _sort_key(rows: list[Row]) -> float:
    """The highest fake_probability of a face; of a video the one that sums it up."""
    rows = [row for row in rows if not row.is_frame]
    rows = [row for row in rows if row.frames is not None and row.face is None] or rows
    probabilities = [row.fake_probability for row in rows if row.fake_probability is not None]
    if probabilities:
        return min(max(max(probabilities), 0.0), 1.0)
    return _NO_FACE if any(row.verdict == "no face" for row in rows) else _ERROR


def _template() -> jinja2.Template:
    """templates/report.html, with what it needs to write numbers and names of anyone's making."""

    def as_json(data: list) -> str:
        # Within apostrophes; to escape the many quotation marks as well would double the page.
        text = html.escape(json.dumps(data, separators=(",", ":")), quote=False)
        return Markup(text.replace("'", "&#39;"))

    templates = environment()
    templates.filters |= {
        "class": lambda verdict: verdict.replace(" ", "-"),
        "cell": _cell,
        "json": as_json,
        "own": Markup,  # text of this repository, which is not escaped
        "share": lambda share, digits: f"{share:.{digits}%}",
        "text": lambda text: printable(text).encode("utf-8", "backslashreplace").decode(),
        "thousands": "{:,}".format,
    }
    return templates.get_template("report.html")


def _cell(value: str | int | float | bool | None) -> str:
    """A value of a row, as short as one can read it."""
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _noun(photos: int, has_videos: bool) -> str:
    if has_videos:
        return "photo or video" if photos == 1 else "photos and videos"
    return "photo" if photos == 1 else "photos"


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that lets in this style, this script and nothing else."""
    hashes = (
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    return (
        "default-src 'none'; img-src data:; style-src '{}'; script-src '{}'; base-uri 'none'; "
        "form-action 'none'"
    ).format(*hashes)
