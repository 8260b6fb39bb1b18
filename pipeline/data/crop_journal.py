"""What has been cropped so far, so that a run that was stopped goes on where it was."""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write, portable_name
from pipeline.common.labels import CLASS_NAMES
from pipeline.data.cropping import CroppedFace, CropSettings
from pipeline.data.known_sets import SourceFile

SPLITS = ("train", "validate", "test")
_SIDES = ("left", "top", "right", "bottom")
_TEMPORARY = re.compile(r"\.(.*\.png|manifest\.csv|skipped\.csv|\.journal\.jsonl)\.\w{8}")


@dataclass(frozen=True)
class PlannedFile:
    """A source's photo or video, and the split that its crops go to."""

    file: SourceFile
    key: str  # <name of the source's folder>/<path in it>: the same on every machine
    split: str


@dataclass(frozen=True)
class Crop:
    """A row of the manifest: the file's path in the dataset, and where its pixels come from."""

    planned: PlannedFile
    path: str  # <split>/<class>/<generator>/<name>.png
    frame: int | None  # number of the video's frame
    left: int  # of the crop, in pixels of the upright photo or of the frame
    top: int
    right: int
    bottom: int
    face_score: float | None  # None: the whole picture was taken without looking for a face


class CropJournal:
    """What has been done so far, one JSON line a file, in the output's hidden `.journal.jsonl`.

    A crop is on disk before the journal says so. The journal, not the folder, knows which files
    are ours: pictures that somebody adds to the dataset are never removed.
    """

    def __init__(self, output: Path, settings: CropSettings):
        self.output = output
        self._path = output / ".journal.jsonl"
        self._settings = asdict(settings)
        self._done: dict[str, dict] = {}  # key → its last line
        self._ever: set[str] = set()  # names of all crops that were ever stored

    def __enter__(self):
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"{self.output}: this is a file; --output must name a folder.")
        self.output.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._read()
        elif any(not _TEMPORARY.fullmatch(path.name) for path in self.output.iterdir()):
            raise UserError(
                f"{self.output}: this folder is not empty, and no earlier run of this command made "
                "it; choose a new one with --output."
            )
        self._remove_temporary_files()
        if not self._path.exists():
            with atomic_write(self._path) as file:
                file.write(json.dumps(self._settings) + "\n")
        self._file = open(self._path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self._file.close()

    def check_sources(self, planned: Sequence[PlannedFile]) -> None:
        """Refuse to remove the crops of a whole source that was merely not named this time."""
        forgotten = {_source_name(key) for key in self._done} - {
            _source_name(item.key) for item in planned
        }
        if forgotten:
            raise UserError(
                f"{self.output}: it holds crops of {', '.join(sorted(forgotten))} too; name all "
                "sources, old and new, in one command, or choose a new --output."
            )

    def crops_of(self, item: PlannedFile) -> list[Crop]:
        """The crops that are there already, moved to their split if it changed; [] if any lacks."""
        line = self._done.get(item.key)
        if line is None or line["state"] != _state(item.file):
            return []
        if not all(self._placed(crop["name"], item.split) for crop in line["crops"]):
            return []
        return [_crop(item, crop) for crop in line["crops"]]

    def store(self, item: PlannedFile, faces: list[CroppedFace]) -> list[Crop]:
        lines = []
        for face in faces:
            name = _crop_name(item, face.frame)
            with atomic_write(self.output / item.split / name, "wb") as file:
                file.write(face.png)
            region = face.region
            lines.append(
                {
                    "name": name,
                    "frame": face.frame,
                    **{side: int(getattr(region, side)) for side in _SIDES},
                    "face_score": None if region.face is None else float(region.face.score),
                }
            )
        entry = {"key": item.key, "state": _state(item.file), "crops": lines}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        self._ever.update(line["name"] for line in lines)
        return [_crop(item, line) for line in lines]

    def remove_all_but(self, crops: list[Crop]) -> None:
        wanted = {crop.path for crop in crops}
        for split, name in itertools.product(SPLITS, sorted(self._ever)):
            if f"{split}/{name}" not in wanted:
                (self.output / split / name).unlink(missing_ok=True)

    def _read(self) -> None:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # killed in the middle of a line
            os.truncate(self._path, len(whole))
        try:
            settings, *lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise UserError(
                f"{self._path}: this file is damaged; remove {self.output} and start again."
            ) from error
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise UserError(
                    f"{self.output}: its crops were made with --{name} {settings.get(name)}, not "
                    f"{value}; use the same again, or choose a new --output."
                )
        for line in lines:
            self._done[line["key"]] = line
            self._ever.update(crop["name"] for crop in line["crops"])

    def _placed(self, name: str, split: str) -> bool:
        target = self.output / split / name
        if target.is_file():
            return True
        for other in SPLITS:
            if (self.output / other / name).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.output / other / name, target)
                return True
        return False

    def _remove_temporary_files(self) -> None:
        """Remove what a kill left in the middle of writing."""
        for path in self.output.rglob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()


def _crop(item: PlannedFile, line: dict) -> Crop:
    sides = {side: line[side] for side in _SIDES}
    path = f"{item.split}/{line['name']}"
    return Crop(item, path, line["frame"], face_score=line["face_score"], **sides)


def _crop_name(item: PlannedFile, frame: int | None) -> str:
    """<class>/<generator>/<name>.png: readable, and by the key's hash its own for every file."""
    folder = Path(CLASS_NAMES[item.file.label], item.file.generator)
    stem = re.sub(r"[^\w.-]+", "_", item.file.path.stem)[:40].strip(".") or "photo"
    stem = portable_name(stem)
    digest = hashlib.sha256(item.key.encode()).hexdigest()[:8]
    number = "" if frame is None else f"_{frame:06d}"
    return (folder / f"{stem}_{digest}{number}.png").as_posix()


def _source_name(key: str) -> str:
    return key.partition("/")[0]


def _state(file: SourceFile) -> list | None:
    """What changes when the file does, or when the set now says something else about it."""
    try:
        status = file.path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, file.label, file.generator]
