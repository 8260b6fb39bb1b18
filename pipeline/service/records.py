"""What outlives a request: records, which are saved by who asked for them, and wrong verdicts."""

import zipfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import numpy as np

from pipeline.common.errors import ImageError, UserError
from pipeline.common.labels import CLASS_NAMES
from pipeline.detectors.detector import load_detector
from pipeline.photos.photo import Picture
from pipeline.requests.uploads import Refusal, Upload
from pipeline.rows.handing_out import ScoredPhoto, hand_out
from pipeline.rows.rows import Row
from pipeline.scoring.provenance import describe_run
from pipeline.scoring.reported import collect, wrong_rows
from pipeline.scoring.scoring import Scorer
from pipeline.service.installed import Installed
from pipeline.videos.frames import Sampling

NAME = "report"  # of both files in the archive, before their endings


def photo_of(
    content: bytes,
    rows: list[Row],
    decode: Callable[[], Picture],
    heat_maps: dict[int, np.ndarray],
) -> ScoredPhoto:
    """A photo whose file's content and rows these are, without its picture where it has none."""
    try:
        return ScoredPhoto(content, rows, decode().pixels, heat_maps)
    except ImageError:  # its row says why
        return ScoredPhoto(content, rows, None)


def archive(
    scorer: Scorer, stability: bool, fields: tuple[str, ...], photos: Iterable[ScoredPhoto]
) -> bytes:
    """A ZIP archive of the report (report.html) and the record (report.json) of photos that this
    scorer has scored, with `stability` or not; `fields` are the columns of their rows."""
    options = {"face_mode": None, "threshold": None, "stability": stability}
    run = describe_run(scorer.described(stability), options, Sampling())
    handed_out = hand_out(run, fields, photos, NAME)
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{NAME}.html", handed_out.html)
        file.writestr(f"{NAME}.json", handed_out.json)
    return out.getvalue()


def keep_wrong(
    rows: list[dict],
    photo: Upload,
    face: int,
    truth: str,
    detectors: Iterable[Installed],
    folder: Path,
) -> Path:
    """Put a face of a photo into the folder of wrong verdicts, with those of its `rows` that say
    something else than the `truth`; where it is now.

    Raises Refusal: 422 where there is nothing to report, 500 where the folder cannot be written.
    """
    if truth not in CLASS_NAMES:
        raise Refusal(422, f"truth must be {' or '.join(CLASS_NAMES)}.")
    folders = {detector.name: detector.folder for detector in detectors}
    try:
        reports = wrong_rows(rows, photo.name, face, truth)
        [picture] = collect(
            reports, photo.content, folder, lambda model: load_detector(folders[model]).margin
        )
        return picture
    except UserError as error:
        raise Refusal(422, str(error)) from None
    except OSError as error:
        raise Refusal(500, f"{folder}: this folder cannot be written ({error.strerror}).") from None
