"""What shapes the rows of a run besides the photos, noted beside them for `--continue`."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.detectors.detector import GRAPH, INT8_GRAPH, Detector


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """How one model scores in a run."""

    face: str  # auto or none
    threshold: float  # 0…1
    version: str  # changes with the network and what is made of its output
    stability: bool = False  # whether verdicts had to hold, see scoring/stability.py


RunSettings = Mapping[str, ModelSettings]  # by the model's name


def version_of(detector: Detector) -> str:
    """The SHA-256 over what a detector's rows depend on, 64 hexadecimal digits.

    That is its graph, its input and calibration, or those of its members; not its figures, plots
    and model card.
    """
    description = detector.description
    files = description["files"]
    graphs = {name: files[name] for name in (GRAPH, *INT8_GRAPH) if name in files}
    parts = [graphs, *(description[section] for section in ("input", "face", "calibration"))]
    parts += map(version_of, detector.members)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def note_settings(output: Path, settings: RunSettings) -> None:
    """Write down how the rows of an output are scored, in `.<name>.run.json` beside it."""
    models = {name: dataclasses.asdict(each) for name, each in settings.items()}
    with atomic_write(_note_of(output)) as file:
        json.dump({"models": models}, file, indent=1)


def move_note(output: Path, backup: Path) -> None:
    """Let the note of an output, if there is one, follow it to its new name."""
    if os.path.exists(_note_of(output)):
        os.replace(_note_of(output), _note_of(backup))


def refuse_other_settings(output: Path, settings: RunSettings) -> None:
    """Raise UserError where the note beside an output says that its rows were scored otherwise.

    Where there is no note, the rows still tell most of it: see `refuse_other_rows`.
    """
    note = _note_of(output)
    try:
        models = json.loads(note.read_text(encoding="utf-8"))["models"]
        noted = {name: ModelSettings(**values) for name, values in models.items()}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{note}: this note on how the rows were scored cannot be read ({error}); delete it to "
            "continue without, or choose another --output."
        ) from error
    for name, now in settings.items():
        then = noted.get(name, now)
        for field in _IN_WORDS:
            if getattr(then, field) != getattr(now, field):
                raise _refusal(output, field, getattr(then, field), getattr(now, field))


def refuse_other_rows(output: Path, rows: Iterable[dict], settings: RunSettings) -> None:
    """Raise UserError where rows of an output tell of another threshold or face mode, or of
    verdicts that had to hold."""
    for row in rows:
        models = [row["model"]] if row["model"] else settings  # a photo without a face has none
        for now in (settings[model] for model in models if model in settings):
            if row["threshold"] not in (None, now.threshold):
                raise _refusal(output, "threshold", row["threshold"], now.threshold)
            for face in _face_mode_in(row):
                if face != now.face:
                    raise _refusal(output, "face", face, now.face)
            if row.get("stability") is not None and not now.stability:
                raise _refusal(output, "stability", True, False)


_IN_WORDS = {
    "threshold": "a threshold of {}".format,
    "face": "--face {}".format,
    "version": "a detector whose checksum is {:.12}…".format,
    "stability": lambda on: "--stability" if on else "--no-stability",
}


def _note_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.run.json")


def _face_mode_in(row: dict) -> Iterator[str]:
    """The face mode that a row tells of, if it does; what sums up a video's face does not."""
    if row["verdict"] == "no face":
        yield "auto"
    elif row["face"] is not None and row["left"] is not None:
        yield "none" if row["face_score"] is None else "auto"


def _refusal(output: Path, field: str, then: float | str, now: float | str) -> UserError:
    what = _IN_WORDS[field]
    return UserError(
        f"{output}: the rows in it were scored with {what(then)} and this run has "
        f"{what(now)}; choose another --output, or leave out --continue (the file is then "
        "kept as .bak)."
    )
