"""What the files of a source show: a folder of real/ and fake/, or a well-known published set.

`files_of` lists a source. `KNOWN_SETS` says of each published set where it can be had, under which
terms, how it lies on disk, and how its file names tell label, generator, group and split. What the
publishers set aside for testing stays aside, so that results on it can be compared with theirs.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.data.dataset import files_below
from pipeline.photos.images import PHOTO_SUFFIXES
from pipeline.photos.photo import VIDEO_SUFFIXES


@dataclass(frozen=True)
class SourceFile:
    """A photo or a video of a source."""

    path: Path
    label: int  # REAL or FAKE
    generator: str = ""
    group: str = ""  # identity or source video, which must not cross a split; empty: the file
    donor: str = ""  # a second such group: the person whose face was put into the picture
    split: str = ""  # train, validate or test, as published; empty: to be split here


@dataclass(frozen=True)
class KnownSet:
    name: str
    address: str
    terms: str
    layout: str  # for people
    required: tuple[str, ...]  # the folders and files that together mark the set's own folder
    list_files: Callable[[Path], Iterator[SourceFile]]  # of the set's own folder
    folder_name: str = ""  # if the set's own folder always bears the same name


def files_of(source: str | Path) -> tuple[str, list[SourceFile]]:
    """What kind of source a folder is (in words), and its photos and videos, sorted by path.

    The published sets are looked for in `source` and two levels below it. Otherwise the folder
    names decide, at any depth: `real` or `fake` labels what lies below; `train`, `validate` (also
    `valid`, `val`, `validation`) and `test` above that keep the files in this split; all other
    folders together name the generator. Upper and lower case are the same.

    Raises UserError when the layout is unknown, or nearly that of a published set.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: a source is a folder, and there is none of this name.")
    found: dict[str, list[SourceFile]] = {}
    nearly = ""
    if not _children(source, CLASS_NAMES):
        for folder in _folders_within(source, levels=2):
            for known in KNOWN_SETS:
                if known.folder_name and folder.name.lower() != known.folder_name:
                    continue
                missing = [name for name in known.required if not _children(folder, [name])]
                if not missing and (known is _DFDC or known.name not in found):
                    found.setdefault(known.name, []).extend(known.list_files(folder))
                elif missing and (len(missing) < len(known.required) or known.folder_name):
                    nearly = nearly or (
                        f"{folder}: this looks like {known.name}, but {' and '.join(missing)} "
                        f"is not there. Complete it to: {known.layout}"
                    )
    if found:
        name = " and ".join(found)
        files = [file for files in found.values() for file in files]
    else:
        name = "folders real/ and fake/"
        files = list(_labelled_by_folder(source))
    if not files:
        raise UserError(
            nearly
            or f"{source}: no photos or videos in a layout that is known. A source is a folder "
            "with real/ and fake/ in it, one with these two in train/ and in validate/, or a "
            "published set as it was unpacked (see: python prepare_dataset.py --list)."
        )
    return name, sorted(files, key=lambda file: os.fspath(file.path))


def describe_known_sets() -> str:
    """The published sets as text for people: name, page, terms, layout."""
    return "\n\n".join(
        f"{known.name}\n  page    {known.address}\n  terms   {known.terms}\n"
        f"  layout  {known.layout}"
        for known in KNOWN_SETS
    )


_SPLIT_NAMES = {
    "train": "train",
    "validate": "validate",
    "valid": "validate",
    "val": "validate",
    "validation": "validate",
    "test": "test",
}


def _labelled_by_folder(source: Path) -> Iterator[SourceFile]:
    files = []
    for path in files_below(source, PHOTO_SUFFIXES | VIDEO_SUFFIXES):
        folders = list(path.relative_to(source).parts[:-1])
        names = [folder.lower() for folder in folders]
        at = next((i for i, name in enumerate(names) if name in CLASS_NAMES), None)
        if at is None:
            continue
        split_at = next((i for i, name in enumerate(names[:at]) if name in _SPLIT_NAMES), None)
        split = _SPLIT_NAMES[names[split_at]] if split_at is not None else ""
        generator = "/".join(folder for i, folder in enumerate(folders) if i not in (at, split_at))
        files.append(SourceFile(path, CLASS_NAMES.index(names[at]), generator, split=split))
    if not any(file.split == "validate" for file in files):
        # Without pictures to validate with, "train" only says that these are not the test's
        files = [replace(file, split="") if file.split == "train" else file for file in files]
    yield from files


def _faces_140k(folder: Path) -> Iterator[SourceFile]:
    for split_folder, split in (("train", "train"), ("valid", "validate"), ("test", "test")):
        for label, generator in ((REAL, "FFHQ"), (FAKE, "StyleGAN")):
            for path in files_below(
                _child(_child(folder, split_folder), CLASS_NAMES[label]), PHOTO_SUFFIXES
            ):
                yield SourceFile(path, label, generator, split=split)


def _ciplab(folder: Path) -> Iterator[SourceFile]:
    # The authors advise against taking easy, mid and hard of the file names for categories
    for label, name in ((REAL, "training_real"), (FAKE, "training_fake")):
        for path in files_below(_child(folder, name), PHOTO_SUFFIXES):
            yield SourceFile(path, label, "CIPLAB")


def _faceforensics(folder: Path) -> Iterator[SourceFile]:
    videos = {
        label: {
            (kind.name, compression.name): list(files_below(videos, VIDEO_SUFFIXES))
            for kind in _subfolders(_child(folder, name))
            for compression in _subfolders(kind)
            for videos in _children(compression, ["videos"])
        }
        for label, name in ((REAL, "original_sequences"), (FAKE, "manipulated_sequences"))
    }
    real, fake = ({compression for _, compression in videos[label]} for label in (REAL, FAKE))
    if not real & fake:
        raise UserError(
            f"{folder}: the real videos are there as {', '.join(sorted(real)) or 'nothing'}, the "
            f"manipulated ones as {', '.join(sorted(fake)) or 'nothing'}. Have both in the same "
            "compression (raw, c23 or c40), else a detector learns compression, not forgery."
        )

    split_of, pairs = _faceforensics_splits(folder)
    for paths in videos[FAKE].values():
        pairs += [match.groups() for path in paths if (match := _PAIR.fullmatch(path.stem))]
    connected = _connected(pairs)
    for label, sets in videos.items():
        for (kind, compression), paths in sets.items():
            if compression not in real & fake:
                continue
            for path in paths:
                sequence, actor = _SEQUENCE.match(path.stem), _ACTOR.match(path.stem)
                if sequence:
                    own = sequence[1]
                    group = connected.get(own, own)
                    yield SourceFile(path, label, kind, f"ff-{group}", split=split_of.get(own, ""))
                elif actor:
                    donor = f"ff-actor-{actor[2]}" if actor[2] else ""
                    yield SourceFile(path, label, kind, f"ff-actor-{actor[1]}", donor)
                else:
                    yield SourceFile(path, label, kind)


_SEQUENCE = re.compile(r"(\d{3})(?:_\d{3})?$")  # youtube: target, then source of the face
_PAIR = re.compile(r"(\d{3})_(\d{3})")
_ACTOR = re.compile(r"(\d{2})(?:_(\d{2}))?__")  # DeepFakeDetection: actor, donor, scene


def _faceforensics_splits(folder: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The publishers' split of each sequence, and their pairs, if their JSON files are there."""
    for place in (folder, folder / "splits", folder / "dataset" / "splits"):
        files = {place / f"{name}.json": _SPLIT_NAMES[name] for name in ("train", "val", "test")}
        there = [path for path in files if path.is_file()]
        if there and len(there) < len(files):
            missing = next(path for path in files if path not in there)
            raise UserError(f"{missing}: the splits train, val and test belong together; add it.")
        if there:
            pairs = {path: _read_json(path) for path in files}
            try:
                split_of = {
                    sequence: files[path]
                    for path in files
                    for a, b in pairs[path]
                    for sequence in (a, b)
                }
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{place}: its train.json, val.json and test.json are not the lists of pairs "
                    'that FaceForensics++ publishes, as in [["071", "054"], …].'
                ) from error
            return split_of, [(a, b) for path in files for a, b in pairs[path]]
    return {}, []


def _connected(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name → the smallest name that it hangs together with by way of pairs."""
    group_of: dict[str, set[str]] = {}
    for a, b in pairs:
        group = group_of.get(a, {a}) | group_of.get(b, {b})
        for name in group:
            group_of[name] = group
    return {name: min(group) for name, group in group_of.items()}


def _celeb_df(folder: Path) -> Iterator[SourceFile]:
    listing = _child(folder, "List_of_testing_videos.txt")
    # A line is "1 YouTube-real/00170.mp4"; the number, 1 for real, only repeats the folder
    tests = {
        Path(line.split(maxsplit=1)[1].strip().lower()).parts[-2:]
        for line in _read_text(listing).splitlines()
        if len(line.split()) >= 2
    }
    for name, label, generator in (
        ("Celeb-real", REAL, "Celeb-real"),
        ("YouTube-real", REAL, "YouTube-real"),
        ("Celeb-synthesis", FAKE, "Celeb-DF"),
    ):
        for path in files_below(_child(folder, name), VIDEO_SUFFIXES):
            split = "test" if (name.lower(), path.name.lower()) in tests else ""
            identities = re.match(r"(id\d+)_(?:(id\d+)_)?\d+$", path.stem)
            group, donor = identities.groups(default="") if identities else ("", "")
            yield SourceFile(
                path,
                label,
                generator,
                group and f"celeb-{group}",
                donor and f"celeb-{donor}",
                split,
            )


def _dfdc(folder: Path) -> Iterator[SourceFile]:
    metadata = _read_json(_child(folder, "metadata.json"))
    for name, entry in metadata.items() if isinstance(metadata, dict) else [("", None)]:
        label = str(entry.get("label", "")).lower() if isinstance(entry, dict) else ""
        if label not in CLASS_NAMES:
            raise UserError(
                f"{folder / 'metadata.json'}: this is not the file that DFDC publishes: '{name}' "
                "has no label REAL or FAKE. Download it again, or remove it if this is no DFDC."
            )
        path = folder / Path(name).name
        if path.is_file():  # parts are often kept without all of their videos
            original = Path(entry.get("original") or name).stem
            split = "test" if entry.get("split") == "test" else ""
            yield SourceFile(
                path, CLASS_NAMES.index(label), "DFDC", f"dfdc-{original}", split=split
            )


_DFDC = KnownSet(
    name="DFDC (Deepfake Detection Challenge)",
    address="https://ai.meta.com/datasets/dfdc/",
    terms="free registration; the DFDC licence allows research on deepfakes, no passing on",
    layout="dfdc_train_part_N/metadata.json beside the videos that it names",
    required=("metadata.json",),
    list_files=_dfdc,
)

KNOWN_SETS: tuple[KnownSet, ...] = (
    KnownSet(
        name="140k Real and Fake Faces",
        address="https://www.kaggle.com/datasets/xhlulu/140k-real-and-fake-faces",
        terms="non-commercial (FFHQ: CC BY-NC-SA 4.0; StyleGAN faces: CC BY-NC 4.0)",
        layout="real_vs_fake/real-vs-fake/{train,valid,test}/{real,fake}/*.jpg",
        required=("train", "valid", "test"),
        list_files=_faces_140k,
        folder_name="real-vs-fake",
    ),
    KnownSet(
        name="CIPLAB Real and Fake Face Detection",
        address="https://www.kaggle.com/datasets/ciplab/real-and-fake-face-detection",
        terms="non-commercial research; see the page",
        layout="real_and_fake_face/{training_real,training_fake}/*.jpg",
        required=("training_real", "training_fake"),
        list_files=_ciplab,
    ),
    KnownSet(
        name="FaceForensics++",
        address="https://github.com/ondyari/FaceForensics",
        terms="on request by form; non-commercial research and education",
        layout="{original_sequences/youtube,manipulated_sequences/METHOD}/{raw,c23,c40}/videos/"
        "*.mp4, and train.json, val.json, test.json of the publishers' splits if at hand",
        required=("original_sequences", "manipulated_sequences"),
        list_files=_faceforensics,
    ),
    KnownSet(
        name="Celeb-DF v2",
        address="https://github.com/yuezunli/celeb-deepfakeforensics",
        terms="on request by form; non-commercial research",
        layout="{Celeb-real,YouTube-real,Celeb-synthesis}/*.mp4 and List_of_testing_videos.txt",
        required=("Celeb-real", "YouTube-real", "Celeb-synthesis", "List_of_testing_videos.txt"),
        list_files=_celeb_df,
    ),
    _DFDC,
)


def _folders_within(source: Path, levels: int) -> Iterator[Path]:
    yield source
    if levels:
        for folder in _subfolders(source):
            yield from _folders_within(folder, levels - 1)


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _children(folder: Path, names: Iterable[str]) -> list[Path]:
    """The entries of a folder with one of these names, in upper or lower case."""
    names = {name.lower() for name in names}
    return [path for path in _entries(folder) if path.name.lower() in names]


def _child(folder: Path, name: str) -> Path:
    found = _children(folder, [name])
    if not found:
        raise UserError(f"{folder / name}: this part of the set is missing; unpack it again.")
    return found[0]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read ({error.strerror}).") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this file cannot be read as text ({error}).") from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(_read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: this file is no JSON ({error}); download it again.") from error
