"""Photos and videos in, a dataset of face crops out: cropped, split by group, listed in a manifest.

Of a photo or video frame with several faces the largest counts: labels are given to whole pictures,
and strangers in the background are not what they speak of. Crops are stored as PNG, all of them:
lossless, so that they hold the very pixels that scoring would cut out of the same photo, and so
that no class gains or loses a trace of compression on the way.
"""

import csv
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from pipeline.common.errors import ImageError, UserError
from pipeline.common.files import atomic_write, portable_name
from pipeline.common.labels import CLASS_NAMES
from pipeline.common.machine import usable_cores
from pipeline.data.crop_journal import SPLITS, Crop, CropJournal, PlannedFile
from pipeline.data.cropping import CroppedFace, CropSettings, largest_faces
from pipeline.data.dataset import Dataset, Sample, split_by_group
from pipeline.data.known_sets import SourceFile, files_of
from pipeline.photos.faces import FaceFinder

MANIFEST_COLUMNS = (
    *("path", "label", "generator", "group", "split", "source", "frame"),
    *("left", "top", "right", "bottom", "face_score"),
)

_FORMAT_LEAK_AUC = 0.75


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
    split by `pipeline.data.dataset.split_by_group`. A fake whose person and donor fall on different
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
            journal = stack.enter_context(CropJournal(output, settings))
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


def _in_threads(
    items: Sequence[PlannedFile], settings: CropSettings, workers: int | None
) -> Iterator[tuple[PlannedFile, list[CroppedFace] | ImageError]]:
    """Each file with its faces, or with the reason why there are none, as they become ready."""
    workers = workers or usable_cores()
    finder = FaceFinder() if items and settings.face != "none" else None

    def work(item: PlannedFile) -> list[CroppedFace] | ImageError:
        try:
            return largest_faces(item.file.path, finder, settings)
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


def _printable(text: str) -> str:
    """Text that UTF-8 can hold, of names that may be in any encoding."""
    return text.encode(errors="backslashreplace").decode()


def _tidy(generator: str) -> str:
    """The generator's name as one that a folder of the dataset can bear."""
    parts = (re.sub(r"[^\w.+ -]+", "_", part).strip(". ")[:60] for part in generator.split("/"))
    return "/".join(portable_name(part) for part in parts if part)
