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
import threading
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import cv2
import numpy as np

from pipeline.files import atomic_write
from pipeline.images import read_image
from pipeline.inputs import Photo
from pipeline.row_table import printable
from pipeline.rows import Row, by_face

THUMBNAIL_SIDE = 200  # pixels of the longer side: about 8 kB a photo in the page
JPEG_QUALITY = 70
# The page for 5,000 photos has about 40 MB, which a browser shows in seconds. What lies behind has
# a line without a picture: it is the least suspicious part.
MOST_PICTURES = 5_000
VERDICTS = ("fake", "uncertain", "real", "no face")


class PictureKeeper:
    """Makes thumbnails of photos while they are scored, and keeps them until their rows come."""

    def __init__(self):
        self._kept: dict[str, list[tuple[Photo, dict]]] = {}
        self._lock = threading.Lock()  # photos are read in threads

    def watch(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        """The same photos; each leaves a thumbnail here when it is read."""
        for photo in photos:
            yield photo if photo.error else photo._replace(read=self._reader(photo))

    def take(self, rows: list[Row]) -> dict | None:
        """The picture for the rows of a photo; of a video, its most suspicious frame.

        `width` and `height` of the upright photo in pixels, `jpeg` in base64, `time` of the frame.
        """
        path = rows[0].path
        with self._lock:
            if all(row.frames is None for row in rows):
                kept = self._kept.get(path, [])
                frames = {None: kept.pop()[1]} if kept else {}
                if not kept:
                    self._kept.pop(path, None)
            else:
                kept = self._kept.pop(path, [])
                frames = {photo.frame.time: picture for photo, picture in kept if photo.frame}
        if not frames:
            return None
        of_frames = [row for row in rows if row.time in frames]
        time = _most_suspicious(of_frames).time if of_frames else next(iter(frames))
        return frames[time] | {"time": time}

    def _reader(self, photo: Photo):
        def read() -> np.ndarray:
            image = photo.read() if photo.read else read_image(photo.path)
            picture = thumbnail(image)
            with self._lock:
                self._kept.setdefault(photo.path, []).append((photo, picture))
            return image

        return read


def thumbnail(image: np.ndarray) -> dict:
    """A small JPEG of a picture (H, W, 3) uint8 RGB: its `width`, `height` and `jpeg` in base64."""
    height, width = image.shape[:2]
    scale = min(1, THUMBNAIL_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    success, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), settings)
    if not success:
        raise RuntimeError(f"OpenCV cannot encode a picture of shape {small.shape}")
    return {"width": width, "height": height, "jpeg": base64.b64encode(data).decode()}


def write_report(page: Path, journal: Path, fields: tuple[str, ...]) -> None:
    """Write the page, whole or not at all, from a journal: JSON Lines of a `picture` and `fields`.

    In memory are three numbers a photo and one photo.
    """
    keys, offsets, counts = array("d"), array("q"), Counter()
    models: dict[str, float] = {}  # → threshold
    with open(journal, "rb") as file:
        for offset, photo in _photos(file):
            rows = photo.rows
            keys.append(_sort_key(rows))
            offsets.append(offset)
            counts.update(photo.verdicts)
            models |= {
                row.model: row.threshold for row in rows if None not in (row.model, row.threshold)
            }
    order = np.argsort(-np.asarray(keys), kind="stable")
    shown = int((np.asarray(keys) > _ERROR).sum())
    with open(journal, "rb") as file, atomic_write(page) as out:
        photos = (_photo_at(file, offsets[number]) for number in order)
        folder = page.absolute().parent
        out.write(_head(fields, shown, len(keys) - shown, counts, models))
        out.write('<main id="photos">\n')
        for photo in itertools.islice(photos, min(shown, MOST_PICTURES)):
            out.write(_card(photo, fields, folder))
        out.write("</main>\n")
        if shown > MOST_PICTURES:
            out.write(
                f"<details><summary>{shown - MOST_PICTURES:,} more, which are less suspicious, "
                "without a picture</summary>\n"
            )
            for photo in itertools.islice(photos, shown - MOST_PICTURES):
                out.write(_line(photo, fields))
            out.write("</details>\n")
        _write_errors(out, photos, fields, len(keys) - shown)
        out.write(_END)


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
                jpeg = re.search('src="data:image/jpeg;base64,([A-Za-z0-9+/=]*)"', line)
                if picture is not None:
                    picture["jpeg"] = jpeg[1] if jpeg else ""
                yield picture, [dict(zip(fields, row, strict=True)) for row in rows]
            ended = line == "</html>\n"
        if not ended:
            raise ValueError("its end is missing")


class _PhotoRows:
    """All that the journal holds of one photo or video."""

    def __init__(self, records: list[dict]):
        self.picture = records[0].pop("picture")
        self.records = [{k: v for k, v in record.items() if k != "picture"} for record in records]
        self.rows = [Row(**record) for record in self.records]

    @property
    def verdicts(self) -> list[str]:
        """Those that the filters know it by: each of a face, or the only one."""
        found = {row.verdict for row in self.rows if not row.is_frame}
        return [verdict for verdict in (*VERDICTS, "error") if verdict in found]


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


def _most_suspicious(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: -1 if row.fake_probability is None else row.fake_probability)


def _card(photo: _PhotoRows, fields: tuple[str, ...], folder: Path) -> str:
    """One line of the page: a photo, its boxes, and what was said of each face."""
    rows, picture = photo.rows, photo.picture
    path = rows[0].path
    parts = [f"<article{_marks(photo, fields)}>"]
    if picture and picture["jpeg"]:
        parts.append(f'<a class="picture" href="{_link(path, folder, picture["time"])}">')
        parts.append(_image(picture, [row for row in rows if row.time == picture["time"]]))
        parts.append("</a>")
    parts.append(_name(path))
    parts.append("<ul>")
    said = [row for row in rows if not row.is_frame]
    for of_face in by_face(sorted(said, key=lambda row: row.face is not None)):  # the video first
        parts += [_verdict(row, named=len(of_face) > 1) for row in of_face]
        if of_face[0].agreement is False:
            parts.append("<li>The networks disagree.</li>")
    parts.append("</ul>")
    frames = [row for row in rows if row.is_frame and row.fake_probability is not None]
    if frames:
        parts.append(_curve(frames))
    return "".join(parts) + "</article>\n"


def _line(photo: _PhotoRows, fields: tuple[str, ...]) -> str:
    """A photo without a picture: its highest fake_probability and its name."""
    row = _most_suspicious([row for row in photo.rows if not row.is_frame])
    share = "" if row.fake_probability is None else f" {row.fake_probability:.1%}"
    return f"<p{_marks(photo, fields)}>{row.verdict}{share} {_name(row.path, 'span')}</p>\n"


def _write_errors(out: TextIO, photos: Iterable[_PhotoRows], fields: tuple, number: int) -> None:
    if not number:
        return
    out.write(f'<section id="errors"><h2>{number:,} could not be scored</h2>\n')
    for photo in photos:
        [sentence, *_] = [row.error for row in photo.rows if row.error] or [""]
        out.write(
            f"<p{_marks(photo, fields)}>{_name(photo.rows[0].path, 'b')}: {_text(sentence)}</p>\n"
        )
    out.write("</section>\n")


def _marks(photo: _PhotoRows, fields: tuple[str, ...]) -> str:
    """The attributes that filters and `read_report` need."""
    picture = photo.picture and {k: v for k, v in photo.picture.items() if k != "jpeg"}
    data = [picture, [[record[name] for name in fields] for record in photo.records]]
    text = html.escape(json.dumps(data, separators=(",", ":")), quote=False).replace("'", "&#39;")
    classes = " ".join(_class(verdict) for verdict in photo.verdicts)
    return f" class=\"{classes}\" data-rows='{text}'"


def _image(picture: dict, rows: list[Row]) -> str:
    scale = min(1, THUMBNAIL_SIDE / max(picture["width"], picture["height"]))
    width = max(1, round(picture["width"] * scale))
    height = max(1, round(picture["height"] * scale))
    boxes = []
    for of_face in by_face(row for row in rows if row.left is not None):
        row = _most_suspicious(of_face)
        left, top, right, bottom = (
            round(side * scale, 1) for side in (row.left, row.top, row.right, row.bottom)
        )
        boxes.append(
            f'<g class="{_class(row.verdict)}"><rect x="{left}" y="{top}" '
            f'width="{max(0, right - left):.1f}" height="{max(0, bottom - top):.1f}"/>'
            f'<text x="{left + 3:.1f}" y="{top + 13:.1f}">{row.face}</text></g>'
        )
    return (
        f'<img loading="lazy" decoding="async" alt="" width="{width}" height="{height}" '
        f'src="data:image/jpeg;base64,{picture["jpeg"]}">'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(boxes)}</svg>'
    )


def _verdict(row: Row, named: bool) -> str:
    what = "" if row.face is None else f"face {row.face}"
    if row.frames is not None:
        what = f"{what or 'video'}, {row.frames:,} frame{'' if row.frames == 1 else 's'}"
    share = "" if row.fake_probability is None else f" {row.fake_probability:.1%}"
    if row.median is not None:
        what += f": median {row.median:.1%}, {row.fake_share:.0%} of them fake"
    sentence = f" <small>{_text(row.error)}</small>" if row.error else ""
    model = f" <small>{_text(row.model or '')}</small>" if named else ""
    return (
        f'<li><span class="verdict {_class(row.verdict)}">{row.verdict}{share}</span> '
        f"<small>{what}</small>{model}{sentence}</li>"
    )


def _curve(frames: list[Row]) -> str:
    """fake_probability over the time of a video, a line a face and network."""
    start, end = frames[0].time, frames[-1].time
    lines = {}
    for row in frames:
        x = 100 * (row.time - start) / (end - start) if end > start else 50
        lines.setdefault((row.face, row.model), []).append(
            f"{x:.1f},{40 * (1 - row.fake_probability):.1f}"
        )
    drawn = "".join(f'<polyline points="{" ".join(points)}"/>' for points in lines.values())
    limit = 40 * (1 - frames[0].threshold)
    return (
        '<svg class="curve" viewBox="0 -1 100 42" preserveAspectRatio="none" role="img" '
        'aria-label="fake_probability over time">'
        f'<line x1="0" x2="100" y1="{limit:.1f}" y2="{limit:.1f}"/>{drawn}</svg>'
        f"<small>{start:.1f} s to {end:.1f} s; dashed: threshold</small>"
    )


def _name(path: str, tag: str = "h3") -> str:
    return f'<{tag} class="name">{_text(path)}</{tag}>'


def _text(text: str) -> str:
    """Text of anyone's making, for the page: escaped, and without control signs."""
    return html.escape(printable(text).encode("utf-8", "backslashreplace").decode())


def _link(path: str, folder: Path, time: float | None) -> str:
    """The photo as seen from the page's folder; a colon in a name must not become a scheme."""
    try:
        target = quote(os.fsencode(os.path.relpath(path, folder)))
    except ValueError:  # on another drive of Windows
        target = Path(path).absolute().as_uri()
    return target if time is None else f"{target}#t={time:.2f}"


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _head(
    fields: tuple[str, ...], shown: int, errors: int, counts: Counter, models: dict[str, float]
) -> str:
    filters = "".join(
        f'<label class="{_class(verdict)}"><input type="checkbox" id="show-{_class(verdict)}" '
        f"checked> {verdict} <b>{counts[verdict]:,}</b></label>"
        for verdict in VERDICTS
    )
    thresholds = "; ".join(
        f"{_text(model)}: threshold {threshold:.3f}" for model, threshold in models.items()
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(_STYLE)}'; "
        f"script-src '{_hash(_SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )
    what = "photo" if shown == 1 else "photos"
    if "frames" in fields:
        what = "photo or video" if shown == 1 else "photos and videos"
    failed = f", {errors:,} that could not be scored" if errors else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="columns" content="{",".join(fields)}">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Real or fake: {shown:,} {what}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Real or fake: {shown:,} {what}{failed}</h1>
<p>The highest fake_probability comes first. {thresholds}{". " if thresholds else ""}Made on \
{date.today().isoformat()}. A verdict is a reason to look closer, not evidence.</p>
<form>{filters}<input type="search" id="search" placeholder="part of a name" \
aria-label="Show only photos with this in their name" hidden></form>
</header>
"""


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --soft: #5c5c5c; --edge: #d8d8d8;
  --fake: #b3261e; --uncertain: #8a5a00; --real: #00639b; --no-face: #5c5c5c; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #ececec; --soft: #a9a9a9;
  --edge: #3a3c40; --fake: #ff8a80; --uncertain: #ffc04d; --real: #7cc4ff; --no-face: #a9a9a9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.4 system-ui, sans-serif; }
header { padding: 1rem; border-bottom: 1px solid var(--edge); }
h1 { margin: 0; font-size: 1.3rem; }
h2 { font-size: 1.1rem; }
header p { margin: .3rem 0 .8rem; color: var(--soft); }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; }
label { white-space: nowrap; }
input[type=search] { font: inherit; padding: .2rem .5rem; min-width: 12rem; }
main { display: grid; gap: .8rem; padding: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); align-items: start; }
article { border: 1px solid var(--edge); border-radius: .4rem; padding: .5rem; overflow: hidden;
  content-visibility: auto; contain-intrinsic-size: auto 17rem; }
.picture { display: block; position: relative; margin: 0 auto; width: fit-content; }
.picture img { display: block; max-width: 100%; height: auto; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
rect { fill: none; stroke: #fff; stroke-width: 2; }
text { font: bold 13px system-ui, sans-serif; fill: #fff; paint-order: stroke; stroke: #000;
  stroke-width: 3px; }
g.fake rect { stroke: #ff5a4d; }
g.uncertain rect { stroke: #ffc04d; }
g.real rect { stroke: #4db1ff; }
.name { margin: .4rem 0 .2rem; font-size: .8rem; font-weight: normal; overflow-wrap: anywhere;
  color: var(--soft); }
span.name { margin: 0; }
ul { list-style: none; margin: 0; padding: 0; }
small { color: var(--soft); }
.verdict { font-weight: bold; }
.verdict.fake, label.fake { color: var(--fake); }
.verdict.uncertain, label.uncertain { color: var(--uncertain); }
.verdict.real, label.real { color: var(--real); }
.verdict.no-face, label.no-face { color: var(--no-face); }
.curve { display: block; width: 100%; height: 2.5rem; margin-top: .4rem; background: none; }
polyline { fill: none; stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
line { stroke: var(--fake); stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
details, section { padding: 0 1rem 1rem; }
section p, details p { margin: .3rem 0; overflow-wrap: anywhere; }
[hidden] { display: none !important; }
@supports selector(:has(*)) {
  article, details p { display: none; }
  body:has(#show-fake:checked) .fake, body:has(#show-uncertain:checked) .uncertain,
  body:has(#show-real:checked) .real, body:has(#show-no-face:checked) .no-face { display: revert; }
}
"""
_SCRIPT = """
const search = document.getElementById("search");
search.hidden = false;
search.form.addEventListener("submit", event => event.preventDefault());
search.addEventListener("input", () => {
  const wanted = search.value.toLowerCase();
  for (const name of document.querySelectorAll(".name"))
    name.parentElement.hidden = !name.textContent.toLowerCase().includes(wanted);
});
"""
_END = f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
