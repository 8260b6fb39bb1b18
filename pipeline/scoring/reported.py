"""Wrong verdicts that were reported: their pictures and rows, laid out as a set of labelled faces.

    dataset/reported/real/   real faces whose verdict was something else
    dataset/reported/fake/   fakes whose verdict was something else
    dataset/reported/reports.csv

What is collected is what was scored: the photo as it is where it was scored whole, otherwise the
face as a PNG. So compare_models.py takes the folder as a test set, and incremental_train_vit.py as
new data. reports.csv has a line for each report: the picture's `path` in the folder, the `label`
(the truth), the `group` (all faces of a photo have one; these three make it a dataset on its own),
the `date`, and the row that was wrong, its path being `photo`.
"""

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import cv2
import numpy as np

from pipeline.common.errors import ImageError, UserError
from pipeline.common.files import atomic_write
from pipeline.detectors.detector import WEIGHTS, Detector, load_detector
from pipeline.photos.faces import FaceFinder, FaceRegion, crop_region, face_regions
from pipeline.photos.images import PHOTO_SUFFIXES, read_image
from pipeline.rows.formats import defused
from pipeline.rows.lock import OutputLock
from pipeline.rows.rows import FIELDS

REPORTS = "reports.csv"
_ABOUT = ("path", "label", "group", "date", "photo")
COLUMNS = (*_ABOUT, *FIELDS[1:])
_NAME_DIGITS = 16  # of the SHA-256 of a photo's file, which names its pictures


@dataclass(frozen=True)
class Report:
    """A verdict that was wrong: the `row` that says so, and what is true of its face."""

    row: dict
    truth: str  # real or fake


def wrong_rows(rows: Iterable[dict], path: str, face: int | None, truth: str) -> list[Report]:
    """The reports for a face of a photo, one for each network that was wrong about it.

    `rows` are those of a file of rows, `path` as it stands there, and `face` its number, which may
    be None where the photo has one face. Raises UserError where there is no such row, or no verdict
    that `truth` contradicts.
    """
    of_photo = [row for row in rows if row["path"] == path]
    if not of_photo:
        raise UserError(
            f"{path}: this path is not in the rows; write it as it stands in their column path."
        )
    if any(row.get("frames") is not None for row in of_photo):
        raise UserError(
            f"{path}: this is a video; save the frame in question as a picture and score that."
        )
    faces = sorted({row["face"] for row in of_photo} - {None})
    if not faces:
        why = of_photo[0]["error"] or "no face was found in it"
        raise UserError(f"{path}: there is no verdict to report ({why}).")
    if face is None and len(faces) > 1:
        raise UserError(
            f"{path}: it shows {len(faces)} faces; say with --face which ({faces[0]} to "
            f"{faces[-1]}; 0 is the largest)."
        )
    face = faces[0] if face is None else face
    of_face = [row for row in of_photo if row["face"] == face]
    if not of_face:
        raise UserError(f"{path}: there is no face {face} in the rows; choose of {faces}.")
    wrong = [row for row in of_face if row["verdict"] != truth]
    if not wrong:
        raise UserError(
            f"{path}: its verdict is {truth} already, so there is nothing to report; look at "
            "the truth that you gave, and at the face if the photo shows several."
        )
    return [Report(row, truth) for row in wrong]


def read_photo(path: str) -> bytes:
    """A photo's file. Raises UserError where it is none or cannot be read."""
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: there is no such file; run this from the folder in which it was scored."
        )
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: this photo cannot be read ({error.strerror}).") from None


def collect(
    reports: Sequence[Report], photo: bytes, folder: Path, margin: Callable[[str], float]
) -> set[Path]:
    """Put the face of reports of one photo, whose file's content is `photo`, and their rows into
    `folder`; where the face is now. A picture that is there already is left alone.

    `margin` gives the margin that a model, by its name, cuts faces out with. Each face of a photo
    is collected once, each report of a model once. Raises UserError where the photo cannot be read,
    is not the one that was scored, or was reported as the contrary before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = OutputLock(folder / REPORTS)
    try:
        known = _read(folder / REPORTS)
        group = hashlib.sha256(photo).hexdigest()
        new, written = [], set()
        for report in reports:
            picture, content = _picture(report.row, photo, margin)
            name = f"{report.truth}/{group[:_NAME_DIGITS]}-face{report.row['face']}{picture}"
            line = _line(report, name, group)
            _refuse_contrary(known, line, folder)
            target = folder / name
            if not target.exists():
                with atomic_write(target, "wb") as file:
                    file.write(content)
            written.add(target)
            if not any(_same_report(line, other) for other in known + new):
                new.append(line)
        if new:
            _write(folder / REPORTS, known + new)
        return written
    finally:
        lock.release()


def margin_of(weights: Path | None) -> Callable[[str], float]:
    """What tells the margin of a model: the detector in `weights`, or of that name in weights/."""

    def margin(model: str) -> float:
        return _detector(model, weights).margin

    return margin


def _detector(model: str, weights: Path | None) -> Detector:
    first = model.partition("+")[0]  # two that score as one see the crop of the first
    folder = weights or WEIGHTS / first
    try:
        return load_detector(folder)
    except UserError as error:
        raise UserError(
            f"How {model} cuts faces out is not known ({error}) Name its folder with --weights DIR."
        ) from None


def _picture(row: dict, photo: bytes, margin: Callable[[str], float]) -> tuple[str, bytes]:
    """The ending and the content of the file that is collected for a row."""
    try:
        image = read_image(io.BytesIO(photo))
    except ImageError as error:
        raise UserError(f"{row['path']}: this photo cannot be read: {error}.") from None
    height, width = image.shape[:2]
    region = FaceRegion(None, 0, 0, width, height)
    if row["face_score"] is not None:
        region = _region(row, image, margin(row["model"]))
    if (region.left, region.top, region.right, region.bottom) == (0, 0, width, height):
        suffix = Path(row["path"]).suffix.lower()
        if suffix in PHOTO_SUFFIXES:
            return suffix, photo
    crop = cv2.cvtColor(np.ascontiguousarray(crop_region(image, region)), cv2.COLOR_RGB2BGR)
    return ".png", cv2.imencode(".png", crop)[1].tobytes()


def _region(row: dict, image: np.ndarray, margin: float) -> FaceRegion:
    """The region that was scored, found again: a row has its face's box in whole pixels only."""
    regions = face_regions(image, FaceFinder(), "auto", margin)
    box = tuple(row[name] for name in ("left", "top", "right", "bottom"))
    for region in regions:
        face = region.face
        there = (face.left, face.top, face.right, face.bottom)
        if all(abs(a - b) <= 1 for a, b in zip(box, there, strict=True)):
            return region
    raise UserError(
        f"{row['path']}: the face is not where the row says, so this is not the photo that was "
        "scored; score it again."
    )


def _line(report: Report, name: str, group: str) -> dict:
    row = {column: report.row.get(column) for column in FIELDS[1:]}
    about = (name, report.truth, group, date.today().isoformat(), report.row["path"])
    line = dict(zip(_ABOUT, about, strict=True)) | row
    return {name: defused(value) for name, value in line.items()}


def _same_report(line: dict, other: dict) -> bool:
    return all(str(line[name]) == str(other[name]) for name in ("group", "face", "model"))


def _refuse_contrary(known: list[dict], line: dict, folder: Path) -> None:
    for other in known:
        same_face = other["group"] == line["group"] and str(other["face"]) == str(line["face"])
        if same_face and other["label"] != line["label"]:
            raise UserError(
                f"{line['photo']}: this face was reported as {other['label']} on {other['date']}; "
                f"if that was wrong, delete {folder / other['path']} and its lines in "
                f"{folder / REPORTS}."
            )


def _read(path: Path) -> list[dict]:
    """The lines of reports.csv; none where there is no such file yet."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: the reports cannot be read ({error}); repair the file.") from None
    if any(None in line or not {*_ABOUT, "face", "model"} <= set(line) for line in lines):
        raise UserError(f"{path}: this is not a list of reports; move it away.")
    return lines


def _write(path: Path, lines: list[dict]) -> None:
    columns = dict.fromkeys([*COLUMNS, *(name for line in lines for name in line)])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with atomic_write(path, "wb") as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))
