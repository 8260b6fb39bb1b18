"""Whether a record still holds: the same photos, the same detectors, and the same rows from them.

A photo is known by the SHA-256 of its file, whatever it is called; a detector by that of its
graph, and by its version, which changes with its input and calibration. Rows are the same if their
verdicts are, the boxes lie within a pixel, and every other number within LARGEST_DIFFERENCE: as far
as a precision may move a fake_probability before it is refused (precision.py).
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.common.program import this_program
from pipeline.detectors.detector import GRAPH, WEIGHTS, Detector
from pipeline.detectors.together import together
from pipeline.photos.inputs import find_photos
from pipeline.photos.photo import Photo
from pipeline.rows.record import Record, RecordedPhoto
from pipeline.rows.rows import FRACTIONS, WHOLE_NUMBERS, Row
from pipeline.rows.table import count, printable
from pipeline.scoring.opening import open_detector
from pipeline.scoring.provenance import graphs_of
from pipeline.scoring.scoring import Scorer
from pipeline.scoring.video_rows import join
from pipeline.videos.frames import Sampling, with_frames

# Sentences, which may be worded otherwise in another version or where another package is installed.
_NOT_COMPARED = ("path", "error", "declared_by", "reason")
_BOX = ("left", "top", "right", "bottom")


class Verification(NamedTuple):
    """What has come of a check: how many photos, sentences on those that are not as recorded, how
    many could not be checked, and the largest difference of a fake_probability."""

    photos: int
    problems: list[str]
    unchecked: int
    difference: float

    def __str__(self) -> str:
        checked = self.photos - self.unchecked
        if self.problems:
            what = f"{len(self.problems)} not as in the record"
        else:
            what = "the same files and the same rows"
        rest = f"; {self.unchecked} without a SHA-256 in the record" if self.unchecked else ""
        return (
            f"{count(checked, 'photo')}: {what}; the largest difference of a fake_probability is "
            f"{self.difference:.4f}{rest}."
        )


def verify(
    record: Record, paths: Sequence[str], weights: Sequence[Path] = (), device: str = "auto"
) -> Verification:
    """Look for a record's photos in `paths` (as scoring takes them), and score them again.

    `weights` are the detectors' folders, by default what there is in weights/. Raises UserError
    where a detector is missing or another, or where this version cannot score as the record says.
    """
    from pipeline.evaluation.precision import LARGEST_DIFFERENCE

    scorer = _scorer(record, _detectors(record, weights), device)
    known = [photo for photo in record.photos if photo.sha256]
    found, problems = _find(known, paths)
    difference = 0.0
    recorded = [photo for photo in known if photo.path in found]
    frames = with_frames((Photo(found[photo.path]) for photo in recorded), _sampling(record))
    looked = scorer.look(frames, bool(record.run["options"].get("stability")))
    for photo, scored in zip(recorded, join(looked, scorer.verdict), strict=True):
        now = [row.as_dict(_columns(record)) for row in scored.rows]
        difference = max(difference, _largest_difference(photo.rows, now))
        what = _what_differs(photo.rows, now, LARGEST_DIFFERENCE)
        if what:
            problems.append(f"{printable(photo.path)}: scored again it has other rows: {what}.")
    unchecked = len(record.photos) - len(known)
    return Verification(len(record.photos), problems, unchecked, difference)


def other_version(record: Record) -> str:
    """A sentence where another version of the program, or of what it computes with, made the
    record; "" where this one did."""
    then, now = record.run["program"], this_program()
    libraries = [
        f"{name} {version} there and {now['libraries'].get(name)} here"
        for name, version in then.get("libraries", {}).items()
        if version != now["libraries"].get(name)
    ]
    if then.get("code_sha256") == now["code_sha256"] and not libraries:
        return ""
    codes = [
        f"{each.get('code_sha256')!s:.12}… (revision {each.get('code_revision') or 'not known'})"
        for each in (then, now)
    ]
    differ = ", ".join([f"code {codes[0]} there and {codes[1]} here", *libraries])
    return (
        f"The record was made by another version of this program ({differ}): should rows differ, "
        "that may be why; check again with that version."
    )


def unknown_columns(record: Record) -> list[str]:
    """The columns of a record that this version does not have, and that are not compared."""
    return [name for name in record.columns if name not in Row.__slots__]


def _columns(record: Record) -> list[str]:
    return [name for name in record.columns if name in Row.__slots__ and name not in _NOT_COMPARED]


def _find(known: list[RecordedPhoto], paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Where each photo of a record is now, and sentences on those that are missing or changed."""
    there: dict[str, str] = {}  # SHA-256 → path
    for photo in find_photos(paths):
        if not photo.error:
            with contextlib.suppress(OSError):
                there.setdefault(sha256_of(photo.path), photo.path)
    found = {photo.path: there[photo.sha256] for photo in known if photo.sha256 in there}
    by_name: dict[str, list[tuple[str, str]]] = {}
    for sha256, path in there.items():
        if path not in found.values():
            by_name.setdefault(Path(path).name, []).append((path, sha256))
    problems = []
    for photo in known:
        if photo.path in found:
            continue
        shown = printable(photo.path)
        changed = by_name.get(_name_of(photo.path), [])
        if changed:
            path, sha256 = max(changed, key=lambda each: _alike(each[0], photo.path))
            problems.append(
                f"{shown}: this photo was changed: the SHA-256 of {printable(path)} is {sha256}, "
                f"in the record it is {photo.sha256}."
            )
        else:
            problems.append(
                f"{shown}: this photo is missing: no file here has the SHA-256 {photo.sha256}, and "
                "none has its name."
            )
    return found, problems


def _name_of(path: str) -> str:
    """The name of a file on whatever system its path was written."""
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def _alike(path: str, other: str) -> int:
    """How many of the last parts of two paths are the same."""
    pairs = zip(reversed(Path(path).parts), reversed(PurePosixPath(other).parts), strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), 1000)


def _detectors(record: Record, weights: Sequence[Path]) -> list[Detector]:
    given = [open_detector(path) for path in weights]
    detectors = []
    for described in record.run["detectors"]:
        members = [_member(member, given) for member in described["members"]]
        detectors.append(together(*members) if len(members) == 2 else members[0])
    return detectors


def _member(member: dict, given: list[Detector]) -> Detector:
    """The detector that a record names, of those that the user has given or of those in weights/.

    Raises UserError where none of them is it.
    """
    name, graphs = member["name"], member["graphs"]
    installed = given or list(_installed(name, graphs))
    for detector in installed:
        if graphs_of(detector) == graphs:
            return detector
    for detector in installed:
        if detector.name == name:
            raise UserError(
                f"{detector.folder}: this is another detector than the record's {name}: the "
                f"SHA-256 of its {GRAPH} is {graphs_of(detector)[GRAPH]}, in the record it is "
                f"{graphs.get(GRAPH)}; name the right one with --weights DIR."
            )
    raise UserError(
        f"There is no detector {name} whose {GRAPH} has the SHA-256 {graphs.get(GRAPH)}; name its "
        "folder with --weights DIR."
    )


def _installed(name: str, graphs: dict[str, str]) -> Iterator[Detector]:
    """The detectors in weights/ of this graph or name; raises UserError where one is damaged."""
    for file in sorted(WEIGHTS.glob("*/detector.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["files"][GRAPH] == graphs.get(GRAPH) or content["name"] == name:
                yield open_detector(file.parent)


def _scorer(record: Record, detectors: list[Detector], device: str) -> Scorer:
    """A scorer that scores as the record says; raises UserError where it would not."""
    options = dict(record.run["options"])
    stability = bool(options.pop("stability", False))
    try:
        if options["face_mode"] not in (None, "auto", "none"):
            raise ValueError("face_mode")
        if options["threshold"] is not None and not 0 <= options["threshold"] <= 1:
            raise ValueError("threshold")
        scorer = Scorer(*detectors, **options, device=device)
    except (TypeError, ValueError, LookupError) as error:
        raise UserError(
            f"This version cannot score with the options of the record, {options} ({error}): use "
            "the version that the record names."
        ) from None
    for then, now in zip(record.run["detectors"], scorer.described(stability), strict=True):
        differ = [
            name for name, value in now["settings"].items() if then["settings"].get(name) != value
        ]
        if differ:
            raise UserError(
                f"{then['name']}: the detector here has the record's graph, but another "
                f"{' and '.join(differ)}: its detector.json (input, face or calibration) was "
                "changed; name the right one with --weights DIR."
            )
    return scorer


def _sampling(record: Record) -> Sampling:
    try:
        sampling = Sampling(**record.run["sampling"])
        if sampling.frames < 1 or (sampling.every is not None and not sampling.every > 0):
            raise ValueError("it is not positive")
        return sampling
    except (TypeError, ValueError) as error:
        raise UserError(f"The record's `sampling` of videos is malformed ({error}).") from None


def _largest_difference(then: Iterable[dict], now: Iterable[dict]) -> float:
    pairs = [
        (old["fake_probability"], new["fake_probability"])
        for old, new in zip(then, now, strict=False)
    ]
    return max((abs(a - b) for a, b in pairs if None not in (a, b)), default=0.0)


def _what_differs(then: list[dict], now: list[dict], tolerance: float) -> str:
    """The first thing that differs between the rows of a photo, in words; "" where nothing does."""
    if len(then) != len(now):
        return f"{count(len(now), 'row')}, not {len(then)}"
    for number, (old, new) in enumerate(zip(then, now, strict=True)):
        for name, value in new.items():
            if not _same(name, old[name], value, tolerance):
                return f"in row {number}, {name} is {value}, not {old[name]}"
    return ""


def _same(name: str, old, new, tolerance: float) -> bool:
    if old is None or new is None:
        return old is new
    if name in FRACTIONS:
        return math.isclose(old, new, rel_tol=0, abs_tol=tolerance)
    return abs(old - new) <= 1 if name in WHOLE_NUMBERS and name in _BOX else old == new
