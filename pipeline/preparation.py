"""Photos and videos in, a dataset of face crops out: cropped, split by group, listed in a manifest.

Of a photo or video frame with several faces the largest counts: labels are given to whole pictures,
and strangers in the background are not what they speak of. Crops are stored as PNG, all of them:
lossless, so that they hold the very pixels that scoring would cut out of the same photo, and so
that no class gains or loses a trace of compression on the way.
"""

import csv
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.dataset import CLASS_NAMES, Dataset, Sample, split_by_group
from pipeline.errors import ImageError, UserError
from pipeline.faces import FaceFinder, FaceRegion, crop_region, face_regions
from pipeline.files import atomic_write, portable_name
from pipeline.images import read_image
from pipeline.inputs import VIDEO_SUFFIXES
from pipeline.known_sets import SourceFile, files_of
from pipeline.machine import usable_cores

SPLITS = ("train", "validate", "test")
MANIFEST_COLUMNS = (
    *("path", "label", "generator", "group", "split", "source", "frame"),
    *("left", "top", "right", "bottom", "face_score"),
)

_FORMAT_LEAK_AUC = 0.75


@dataclass(frozen=True)
class CropSettings:
    face: str  # auto or none, see pipeline.faces.face_regions
    margin: float  # side of the crop in sides of the face's box
    size: int | None = None  # pixels; longer crops are shrunk to it, shorter ones left alone
    frames: int = 8  # per video, evenly spread


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


@dataclass(frozen=True)
class Skipped:
    path: Path
    reason: str


def find_files(sources: Iterable[str | Path], output: Path) -> list[tuple[str, SourceFile]]:
    """The photos and videos of all sources with their keys (see PlannedFile), sorted by key.

    Prints a line for each source: what it was taken for, and how many files it has. Generators
    become names that any file system takes.

    Raises UserError when a source is of no known layout or holds the output, or when files of two
    sources cannot be told apart.
    """
    found: dict[str, SourceFile] = {}
    for source in dict.fromkeys(Path(source) for source in sources):
        if output.resolve().is_relative_to(source.resolve()):
            raise UserError(
                f"{output}: the output lies in the source {source}, and the next run would take "
                "its crops for photos; choose an output outside."
            )
        kind, files = files_of(source)
        print(f"{source}: {kind}, {len(files):,} photos and videos")
        for file in files:
            key = _printable(f"{source.resolve().name}/{file.path.relative_to(source).as_posix()}")
            other = found.setdefault(key, replace(file, generator=_tidy(file.generator)))
            if other.path != file.path and not os.path.samefile(other.path, file.path):
                raise UserError(
                    f"{file.path}: another source is called {source.resolve().name} too and has a "
                    "file of this name; rename one of the two folders."
                )
    return sorted(found.items())


def plan_splits(
    files: Sequence[tuple[str, SourceFile]], validate_fraction: float, seed: int
) -> tuple[list[PlannedFile], int]:
    """Give every file its split, so that no group is in both train and validate.

    A split of the publishers is kept, and what is of the same group follows it. All others are
    split by `pipeline.dataset.split_by_group`. A fake whose person and donor fall on different
    sides would show a known face on each: such files are left out; their number is returned too.
    """
    own_split = {
        file.group: file.split for _, file in files if file.group and file.split in SPLITS[:2]
    }
    free = [
        Sample(Path(key), file.label, file.generator, file.group or key)
        for key, file in files
        if not file.split and file.group not in own_split
    ]
    train, validate = split_by_group(free, validate_fraction, seed) if free else ([], [])
    split_of = {sample.group: "train" for sample in train}
    split_of |= {sample.group: "validate" for sample in validate}
    split_of |= own_split

    planned, left_out = [], 0
    for key, file in files:
        split = file.split or split_of[file.group or key]
        if split != "test" and file.donor and split_of.setdefault(file.donor, split) != split:
            left_out += 1
        else:
            planned.append(PlannedFile(file, key, split))
    return planned, left_out


def make_crops(
    planned: Sequence[PlannedFile],
    output: Path,
    settings: CropSettings,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[list[Crop], list[Skipped]]:
    """Store the crops of all files in the folder `output`; return them, and what had to be skipped.

    May be killed at any moment: the next call with the same settings makes only what is missing,
    and removes the crops of files that are no longer wanted. A photo that changed is done again,
    and skipped ones are tried again. `workers` threads (by default one for each core) decode and
    crop; only this thread writes.

    Raises UserError when `output` holds something else, was begun with other settings, or cannot
    be written.
    """
    with ExitStack() as stack:
        try:
            journal = stack.enter_context(_Journal(output, settings))
            journal.check_sources(planned)
            crops: list[Crop] = []
            missing: list[PlannedFile] = []
            for item in planned:
                done = journal.crops_of(item)
                crops.extend(done)
                if not done:
                    missing.append(item)
            skipped: list[Skipped] = []
            bar = stack.enter_context(
                tqdm(
                    desc="Cropping faces",
                    total=len(planned),
                    initial=len(planned) - len(missing),
                    unit=" files",
                    disable=not progress,
                )
            )
            for item, faces in _in_threads(missing, settings, workers):
                if isinstance(faces, ImageError):
                    skipped.append(Skipped(item.file.path, str(faces)))
                else:
                    crops.extend(journal.store(item, faces))
                bar.update()
            journal.remove_all_but(crops)
        except OSError as error:
            raise UserError(
                f"{error.filename or output}: cannot be written ({error.strerror}). Mend that and "
                "run the same command again: what is done is kept."
            ) from error
    return sorted(crops, key=lambda crop: crop.path), sorted(skipped, key=lambda s: s.path)


def write_manifest(output: Path, crops: Sequence[Crop], skipped: Sequence[Skipped]) -> Dataset:
    """Write `manifest.csv` (a dataset CSV) and `skipped.csv`; return the dataset without test."""
    with atomic_write(output / "manifest.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(MANIFEST_COLUMNS)
        for crop in crops:
            item = crop.planned
            writer.writerow(
                (
                    *(crop.path, CLASS_NAMES[item.file.label], item.file.generator),
                    *(item.file.group or item.key, item.split, item.key, crop.frame),
                    *(crop.left, crop.top, crop.right, crop.bottom),
                    "" if crop.face_score is None else f"{crop.face_score:.4f}",
                )
            )
    with atomic_write(output / "skipped.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "reason"))
        writer.writerows((_printable(str(skip.path)), skip.reason) for skip in skipped)

    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for crop in crops:
        file = crop.planned.file
        samples[crop.planned.split].append(
            Sample(output / crop.path, file.label, file.generator, file.group or crop.planned.key)
        )
    return Dataset(output, samples["train"], samples["validate"])


def source_format_leak(crops: Sequence[Crop]) -> str | None:
    """A warning if the sources' file formats tell real from fake, which the crops no longer show.

    PNG crops keep the traces of JPEG in their pixels, but not the ending that gives them away.
    The AUC is that of guessing by the share of fakes among the files of each ending.
    """
    counts: tuple[Counter, Counter] = (Counter(), Counter())
    for crop in crops:
        suffix = crop.planned.file.path.suffix.lower()
        counts[crop.planned.file.label][{".jpeg": ".jpg"}.get(suffix, suffix)] += 1
    if not all(counts):
        return None
    real, fake = ({suffix: n / c.total() for suffix, n in c.items()} for c in counts)
    suffixes = sorted(real | fake, key=lambda s: fake.get(s, 0) / (real.get(s, 0) + fake.get(s, 0)))
    auc = below = 0.0
    for suffix in suffixes:
        auc += fake.get(suffix, 0) * (below + real.get(suffix, 0) / 2)
        below += real.get(suffix, 0)
    if auc <= _FORMAT_LEAK_AUC:
        return None
    listed = (
        f"{name}: " + ", ".join(f"{n:,} {suffix}" for suffix, n in count.most_common())
        for name, count in zip(CLASS_NAMES, counts, strict=True)
    )
    return (
        f"LEAK: the formats of the sources alone tell real from fake (AUC {auc:.2f}; "
        f"{'; '.join(listed)}). The crops keep their traces; take both classes from files alike."
    )


class _Journal:
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

    def store(self, item: PlannedFile, faces: list["_Face"]) -> list[Crop]:
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


_SIDES = ("left", "top", "right", "bottom")
_TEMPORARY = re.compile(r"\.(.*\.png|manifest\.csv|skipped\.csv|\.journal\.jsonl)\.\w{8}")


@dataclass(frozen=True)
class _Face:
    frame: int | None
    region: FaceRegion
    png: bytes


def _in_threads(
    items: Sequence[PlannedFile], settings: CropSettings, workers: int | None
) -> Iterator[tuple[PlannedFile, list[_Face] | ImageError]]:
    """Each file with its faces, or with the reason why there are none, as they become ready."""
    workers = workers or usable_cores()
    finder = FaceFinder() if items and settings.face != "none" else None

    def work(item: PlannedFile) -> list[_Face] | ImageError:
        try:
            return _largest_faces(item.file.path, finder, settings)
        except ImageError as error:
            return error

    waiting = iter(items)
    running: dict[Future, PlannedFile] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            # A few ahead, not all: finished crops wait in memory
            for item in itertools.islice(waiting, 4 * workers - len(running)):
                running[pool.submit(work, item)] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _largest_faces(path: Path, finder: FaceFinder | None, settings: CropSettings) -> list[_Face]:
    """The largest face of the photo, or of each chosen frame of the video that shows one."""
    video = path.suffix.lower() in VIDEO_SUFFIXES
    pictures = _frames(path, settings.frames) if video else [(None, read_image(path))]
    faces = []
    for frame, image in pictures:
        regions = face_regions(image, finder, settings.face, settings.margin)
        if regions:
            crop = _shrunk(crop_region(image, regions[0]), settings.size)  # the largest is first
            faces.append(_Face(frame, regions[0], _png(crop)))
    if not faces:
        raise ImageError("no face was found in it; leave it out, or crop it to the face by hand")
    return faces


def _frames(path: Path, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Number and RGB pixels of up to `count` frames, each in the middle of an equal part."""
    if not path.is_file():  # nor is anything opened that would wait for a writer
        raise ImageError("there is no such file, or it is a special one; check the path")
    # Only FFmpeg: other backends take a % in a name for a series of pictures
    video = cv2.VideoCapture(os.fspath(path), cv2.CAP_FFMPEG)
    try:
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        numbers = (
            sorted({(2 * i + 1) * total // (2 * count) for i in range(count)}) if total else []
        )
        read = 0
        for number in numbers:
            video.set(cv2.CAP_PROP_POS_FRAMES, number)
            success, frame = video.read()
            if success:
                read += 1
                yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if not read:
            raise ImageError("this video cannot be decoded; copy or download it again")
    finally:
        video.release()


def _shrunk(image: np.ndarray, size: int | None) -> np.ndarray:
    height, width = image.shape[:2]
    if size is None or max(height, width) <= size:
        return image
    scale = size / max(height, width)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA)


def _png(image: np.ndarray) -> bytes:
    success, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not success:
        raise RuntimeError(f"OpenCV cannot encode a picture of shape {image.shape}")
    return data.tobytes()


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


def _printable(text: str) -> str:
    """Text that UTF-8 can hold, of names that may be in any encoding."""
    return text.encode(errors="backslashreplace").decode()


def _tidy(generator: str) -> str:
    """The generator's name as one that a folder of the dataset can bear."""
    parts = (re.sub(r"[^\w.+ -]+", "_", part).strip(". ")[:60] for part in generator.split("/"))
    return "/".join(portable_name(part) for part in parts if part)
