"""Which pictures are there, what is each, and which of them train a detector or judge it.

A dataset is a folder `train|validate/real|fake/…` or a CSV file. Nothing is decoded here.
"""

import csv
import hashlib
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.photos.images import PHOTO_SUFFIXES

_LABELS = {"real": REAL, "fake": FAKE, "0": REAL, "1": FAKE}
_VALIDATE_NAMES = ("validate", "valid", "val", "validation")
_VALIDATE_FRACTION = 0.2  # of a CSV that does not say how to split
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Sample:
    path: Path
    label: int  # REAL or FAKE
    generator: str = ""  # the sub-folder of real/ or fake/, or the CSV's column
    group: str = ""  # identity or source video; never crosses a split; empty: its own group


@dataclass(frozen=True)
class Dataset:
    root: Path
    train: list[Sample]
    validate: list[Sample]


def load_dataset(
    root: str | Path, fakes_in_train: bool = True, both_classes: bool = True
) -> Dataset:
    """Find the samples to train on and to validate with, in an order that is always the same.

    `root` is a folder with `train/` and `validate/` (also `valid`, `val`, `validation`), each with
    `real/` and `fake/`; upper and lower case are the same. Or it is a CSV file as in
    `load_samples`, whose column `split` says train or validate (rows that say test are left out);
    without that column a fifth of the groups validates. Without `fakes_in_train` there need be no
    fakes to train on, and those that are there are left out; without `both_classes` either may be
    absent.

    Raises UserError when something is missing, a class is empty, or a group crosses the split.
    """
    root = Path(root)
    if _is_csv(root):
        train, validate = _split_csv(root)
    else:
        train_folder = _subfolder(root, ("train",))
        validate_folder = _subfolder(root, _VALIDATE_NAMES)
        for name, folder in (("train", train_folder), ("validate", validate_folder)):
            if folder is None:
                raise UserError(f"{root}: there is no folder {name}/ in it.\n{_NEXT_STEPS}")
        train, validate = load_samples(train_folder), load_samples(validate_folder)

    if not fakes_in_train:
        train = [sample for sample in train if sample.label == REAL]
    dataset = Dataset(root, train, validate)
    if both_classes and (lacking := missing_class(dataset, fakes_in_train)):
        split, name = lacking
        raise UserError(
            f"{root}: no {name} pictures to {split} with; "
            f"both classes need some in train and in validate.\n{_NEXT_STEPS}"
        )
    return dataset


def missing_class(dataset: Dataset, fakes_in_train: bool = True) -> tuple[str, str] | None:
    """The first split ("train", "validate") and class of which the dataset has not one picture;
    None where it has all, apart from fakes to train on where these need not be."""
    for split, samples in (("train", dataset.train), ("validate", dataset.validate)):
        for label, name in enumerate(CLASS_NAMES):
            wanted = fakes_in_train or (split, label) != ("train", FAKE)
            if wanted and not any(sample.label == label for sample in samples):
                return split, name
    return None


def load_samples(root: str | Path) -> list[Sample]:
    """Find the samples of one set, sorted; one class may be absent.

    `root` is a folder with `real/`, `fake/` or both (sub-folders of any depth become `generator`;
    hidden files and files that are no photos are skipped), or a CSV file with the columns `path`
    (relative to the file's folder) and `label` (real, fake, 0 or 1), and, if wanted, `generator`
    and `group`.

    Raises UserError when there is nothing, or a line of the CSV file is wrong.
    """
    root = Path(root)
    if _is_csv(root):
        return sorted((sample for sample, _ in _read_csv(root)), key=_by_path)

    folders = [_subfolder(root, (name,)) for name in CLASS_NAMES]
    samples = [
        Sample(path, label, path.parent.relative_to(folder).as_posix().removeprefix("."))
        for label, folder in enumerate(folders)
        if folder is not None
        for path in files_below(folder, PHOTO_SUFFIXES)
    ]
    if not samples:
        raise UserError(f"{root}: no photos in its folders real/ and fake/.\n{_NEXT_STEPS}")
    return sorted(samples, key=_by_path)


def split_by_group(
    samples: Iterable[Sample], validate_fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Split into (train, validate) so that no group is on both sides.

    Each generator of each class gives `validate_fraction` (between 0 and 1) of its samples as
    nearly as whole groups allow, and each class is on both sides if it has two groups that can
    be parted. The same samples and seed give the same split, in whatever order they come.
    """
    if not 0 < validate_fraction < 1:
        raise ValueError(f"validate_fraction must lie between 0 and 1, not {validate_fraction}")
    samples = sorted(samples, key=_by_path)
    groups = defaultdict(list)
    for sample in samples:
        groups[_group_key(sample)].append(sample)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda key: len(groups[key]), reverse=True)  # what is small fills the gaps

    sizes = Counter(stratum for sample in samples for stratum in _strata(sample))
    missing = {stratum: validate_fraction * size for stratum, size in sizes.items()}
    in_train = Counter(sample.label for sample in samples)
    in_validate: Counter = Counter()
    chosen = set()

    def choose(key: tuple[str, str], at_any_price: bool = False) -> None:
        """Move a group to validate, if that helps and train keeps something of each class."""
        strata = Counter(stratum for sample in groups[key] for stratum in _strata(sample))
        labels = Counter(sample.label for sample in groups[key])
        gain = sum(abs(missing[name]) - abs(missing[name] - n) for name, n in strata.items())
        spared = all(n < in_train[label] for label, n in labels.items())
        if spared and (gain > 0 or at_any_price):
            chosen.add(key)
            in_train.subtract(labels)
            in_validate.update(labels)
            for name, n in strata.items():
                missing[name] -= n

    for key in order:
        choose(key)
    for key in reversed(order):  # the smallest first
        if any(not in_validate[sample.label] for sample in groups[key]):
            choose(key, at_any_price=True)

    train = [sample for sample in samples if _group_key(sample) not in chosen]
    validate = [sample for sample in samples if _group_key(sample) in chosen]
    return train, validate


def fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 over names, labels and sizes in bytes: tells whether a dataset is the same one.

    Names are relative to the deepest folder that holds all samples, so that a dataset keeps its
    fingerprint wherever it lies. Contents are not read.
    """
    samples = list(samples)
    if not samples:
        return hashlib.sha256().hexdigest()
    common = os.path.commonpath([os.path.abspath(sample.path.parent) for sample in samples])
    lines = sorted(
        f"{Path(os.path.relpath(sample.path, common)).as_posix()}\0{sample.label}"
        f"\0{sample.path.stat().st_size}\n"
        for sample in samples
    )
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def files_below(folder: Path, suffixes: Set[str]) -> Iterator[Path]:
    """The files in `folder` and its sub-folders that end in one of `suffixes` (lower case), sorted
    within each folder; hidden ones are left out. Raises UserError where a folder cannot be read."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: this folder cannot be read ({error.strerror}).")

    visited = set()  # linked folders are followed, each once, even where links go in a circle
    for current, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(current) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(current))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(current, name)


_NEXT_STEPS = """\
To get a dataset:
  1. See where the well-known sets can be had:
       python prepare_dataset.py --list
  2. Make face crops of photos, or of such a set:
       python prepare_dataset.py SOURCE… --output dataset/
  3. Or lay out your own pictures like this:
       dataset/train/real      dataset/train/fake
       dataset/validate/real   dataset/validate/fake"""


def _is_csv(root: Path) -> bool:
    """Whether `root` is a CSV file rather than a folder; raises UserError if it is neither."""
    if os.path.isdir(root):
        return False
    if not os.path.exists(root):
        raise UserError(f"{root}: there is no such dataset.\n{_NEXT_STEPS}")
    if root.suffix.lower() != ".csv":
        raise UserError(f"{root}: a dataset is a folder or a .csv file.\n{_NEXT_STEPS}")
    return True


def _subfolder(root: Path, names: tuple[str, ...]) -> Path | None:
    try:
        found = [path for path in sorted(root.iterdir()) if path.name.lower() in names]
    except OSError as error:
        raise UserError(f"{root}: this folder cannot be read ({error.strerror}).") from error
    found = [path for path in found if path.is_dir()]
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise UserError(f"{root}: {listed} mean the same; keep one of these folders.")
    return found[0] if found else None


def _read_csv(path: Path) -> Iterator[tuple[Sample, dict[str, str]]]:
    """Each sample with its row (lower-case column → text, and `line` → the line's number)."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            for column in ("path", "label"):
                if column not in reader.fieldnames:
                    raise UserError(
                        f"{path}: the column {column} is missing; the first line names the "
                        "columns: path,label and, if wanted, generator,group,split."
                    )
            for fields in reader:
                row = {name: (fields[name] or "").strip() for name in reader.fieldnames}
                row["line"] = str(reader.line_num)
                yield _sample_of_row(path, row), row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: this is no CSV file in UTF-8 ({error}).") from error
    except OSError as error:
        raise UserError(f"{path}: this file cannot be read ({error.strerror}).") from error


def _sample_of_row(csv_path: Path, row: dict[str, str]) -> Sample:
    where = f"{csv_path}, line {row['line']}"
    label = _LABELS.get(row["label"].lower())
    if label is None:
        raise UserError(f"{where}: the label is '{row['label']}'; write real, fake, 0 or 1.")
    photo = csv_path.parent / row["path"]
    if not os.path.isfile(photo):
        raise UserError(
            f"{where}: there is no file {photo}; paths count from the folder of the CSV file."
        )
    if photo.suffix.lower() not in PHOTO_SUFFIXES:
        raise UserError(f"{where}: {photo} does not end like a photo (.jpg, .png, …).")
    return Sample(photo, label, row.get("generator", ""), row.get("group", ""))


def _split_csv(path: Path) -> tuple[list[Sample], list[Sample]]:
    rows = list(_read_csv(path))
    if not any("split" in row for _, row in rows):
        return split_by_group((sample for sample, _ in rows), _VALIDATE_FRACTION, _SPLIT_SEED)

    splits: dict[str, list[Sample]] = {"train": [], "validate": []}
    split_of_group: dict[str, str] = {}
    for sample, row in rows:
        split = row["split"].lower()
        split = "validate" if split in _VALIDATE_NAMES else split
        if split == "test":
            continue
        if split not in splits:
            raise UserError(
                f"{path}, line {row['line']}: the split is '{row['split']}'; "
                "write train, validate or test."
            )
        splits[split].append(sample)
        if sample.group and split_of_group.setdefault(sample.group, split) != split:
            raise UserError(
                f"{path}, line {row['line']}: the group '{sample.group}' is in train and in "
                "validate; put all its pictures into one of them, else the validation is no test."
            )
    return sorted(splits["train"], key=_by_path), sorted(splits["validate"], key=_by_path)


def _by_path(sample: Sample) -> str:
    return os.fspath(sample.path)


def _strata(sample: Sample) -> tuple:
    """What is to be shared out evenly: the classes, and the generators of each."""
    return (sample.label, (sample.label, sample.generator))


def _group_key(sample: Sample) -> tuple[str, str]:
    return (sample.group, "") if sample.group else ("", os.fspath(sample.path))
