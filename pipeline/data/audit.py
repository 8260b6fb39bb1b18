"""Look over a dataset before training: what would make its results too good to be true?

Unreadable pictures, copies on both sides of the split, and leaks: properties of the files, such as
their JPEG quality, that tell real from fake without a look at any face. A detector learns those
first.
"""

import functools
import hashlib
import io
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image, JpegImagePlugin
from tqdm import tqdm

from pipeline.common.errors import ImageError
from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.common.machine import usable_cores
from pipeline.data.dataset import Dataset, Sample, fingerprint
from pipeline.data.leaks import measure_leaks
from pipeline.photos.images import read_image

# Measured on 8,400 faces (FFHQ, DFDC, CIPLAB, StyleGAN, Stable Diffusion) with the 256-bit
# perceptual hash. Re-saved at JPEG quality 30 to 90, scaled by 0.5 to 2 or made 15 % brighter, a
# picture moves by at most 20 bits; with 2 % cut off each side, by 36 in the median. Of 1,400
# pictures to validate with, 7 have a picture to train on within 40 bits, all 7 the same person in
# the same scene. A hash of 64 bits cannot part the two: there, the cut moves a picture by up to 12
# bits, and a stranger is found within 6.
NEAR_DISTANCE = 40  # of 256 bits
LEAK_AUC = 0.75

_HASH_SIDE = 16  # the perceptual hash has 16 x 16 bits


def audit_dataset(dataset: Dataset, workers: int | None = None, progress: bool = True) -> dict:
    """Decode every picture once and report what is wrong, as a dict that JSON can hold.

    Its keys (file names are relative to the dataset's folder):
    - `fingerprint`: see `pipeline.data.dataset.fingerprint`;
    - `counts`: split → class → generator → number of samples;
    - `unreadable`: `path` and `reason` of each picture that cannot be decoded; all that follows
      leaves them out;
    - `copies`: lists of two or more samples with the very same pixels;
    - `contradictions`: those of the copies that are called both real and fake;
    - `near_across_splits`: for each picture to validate with, the most similar one to train on
      (`validate`, `train`, `distance` in bits), where it is within `near_distance`;
    - `near_across_classes`: the same for each `fake` and its most similar `real` one, with
      `same_split`; for face swaps that is their original, as it should be;
    - `groups_across_splits`: groups with samples in train and in validate;
    - `leaks`: see `pipeline.data.leaks.measure_leaks`;
    - `warnings`: sentences, the leaks above 0.75 AUC first.

    `workers` threads decode; by default as many as there are cores.
    """
    samples = dataset.train + dataset.validate
    split_of = ["train"] * len(dataset.train) + ["validate"] * len(dataset.validate)
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        looks = pool.map(_look_at, samples)
        pictures = list(
            tqdm(looks, "Auditing", len(samples), unit=" pictures", disable=not progress)
        )

    names = [_name(dataset, sample) for sample in samples]
    readable = [i for i, picture in enumerate(pictures) if picture.error is None]
    train = [i for i in readable if split_of[i] == "train"]
    validate = [i for i in readable if split_of[i] == "validate"]
    real = [i for i in readable if samples[i].label == REAL]
    fake = [i for i in readable if samples[i].label == FAKE]
    copies = _copies(readable, pictures)

    audit = {
        "fingerprint": fingerprint(samples),
        "counts": {"train": _counts(dataset.train), "validate": _counts(dataset.validate)},
        "unreadable": [
            {"path": name, "reason": picture.error}
            for name, picture in zip(names, pictures, strict=True)
            if picture.error is not None
        ],
        "copies": [[names[i] for i in same] for same in copies],
        "contradictions": [
            [names[i] for i in same] for same in copies if len({samples[i].label for i in same}) > 1
        ],
        "near_distance": NEAR_DISTANCE,
        "near_across_splits": [
            {"validate": names[i], "train": names[j], "distance": distance}
            for i, j, distance in _nearest(validate, train, pictures)
        ],
        "near_across_classes": [
            {
                "fake": names[i],
                "real": names[j],
                "distance": distance,
                "same_split": split_of[i] == split_of[j],
            }
            for i, j, distance in _nearest(fake, real, pictures)
        ],
        "groups_across_splits": sorted(
            {s.group for s in dataset.train if s.group}
            & {s.group for s in dataset.validate if s.group}
        ),
        "leaks": measure_leaks(
            [samples[i] for i in readable], [pictures[i].properties for i in readable]
        ),
    }
    audit["warnings"] = _warnings(audit)
    return audit


def audited_dataset(dataset: Dataset, workers: int | None = None) -> tuple[Dataset, dict]:
    """Audit a dataset and print the audit; the dataset without its unreadable pictures, and the
    audit."""
    audit = audit_dataset(dataset, workers)
    print(format_audit(audit), file=sys.stderr)
    return drop_unreadable(dataset, audit), audit


def format_audit(audit: dict) -> str:
    """The audit as text to read: warnings in a frame first, then the figures, at most 99 wide."""
    sections = [_frame(audit["warnings"])] if audit["warnings"] else []
    sections.append(_counts_as_text(audit["counts"]))
    sections.append(_leaks_as_text(audit["leaks"]))

    unreadable = [f"{found['path']}: {found['reason']}" for found in audit["unreadable"]]
    sections.append(_listing("unreadable pictures", unreadable))
    sections.append(_listing("sets of exact copies", [", ".join(c) for c in audit["copies"]]))
    sections.append(
        _listing(
            "pictures to validate with that nearly equal one to train on",
            [
                f"{found['validate']} and {found['train']} ({found['distance']} of 256 bits differ)"
                for found in audit["near_across_splits"]
            ],
        )
    )
    swaps = audit["near_across_classes"]
    apart = sum(not found["same_split"] for found in swaps)
    sections.append(
        f"{len(swaps):,} fakes nearly equal a real picture (usual for face swaps and edits), "
        f"{apart:,} of them one in the other split."
    )
    sections.append(f"Fingerprint: {audit['fingerprint']}")
    return "\n\n".join(sections)


def drop_unreadable(dataset: Dataset, audit: dict) -> Dataset:
    """The dataset without the pictures that its audit found unreadable."""
    unreadable = {found["path"] for found in audit["unreadable"]}

    def readable(samples: list[Sample]) -> list[Sample]:
        return [sample for sample in samples if _name(dataset, sample) not in unreadable]

    return Dataset(dataset.root, readable(dataset.train), readable(dataset.validate))


@dataclass(frozen=True)
class _Picture:
    """What is kept of a picture: `error`, or all the rest."""

    error: str | None = None
    digest: bytes = b""  # of the decoded pixels
    hash: np.ndarray | None = None  # (32,) uint8
    properties: dict | None = None  # name → number or text; None: has no such property


def _look_at(sample: Sample) -> _Picture:
    try:
        pixels = read_image(sample.path)
    except ImageError as error:
        return _Picture(error=str(error))
    height, width = pixels.shape[:2]
    properties = {
        "bytes per pixel": sample.path.stat().st_size / (width * height),
        "width": width,
        "height": height,
        "aspect ratio": width / height,
        **_compression(sample.path),
    }
    grey = Image.fromarray(pixels).convert("L")
    bits = imagehash.phash(grey, hash_size=_HASH_SIDE).hash
    digest = hashlib.blake2b(pixels, digest_size=16)
    digest.update(str(pixels.shape).encode())
    return _Picture(None, digest.digest(), np.packbits(bits), properties)


def _compression(path: Path) -> dict:
    """File format, and for JPEG its quality (1 to 100) and chroma subsampling."""
    with Image.open(path) as image:
        jpeg = isinstance(image, JpegImagePlugin.JpegImageFile) and image.quantization
        return {
            "file format": "JPEG" if jpeg else image.format,  # phones write JPEG as MPO
            "JPEG quality": _jpeg_quality(image.quantization[0]) if jpeg else None,
            "chroma subsampling": str(JpegImagePlugin.get_sampling(image)) if jpeg else None,
        }


def _jpeg_quality(luminance_table: Sequence[int]) -> int:
    """The libjpeg quality (1 to 100) whose 64 luminance divisors come nearest in their sum."""
    return int(np.argmin(np.abs(_divisor_sums() - sum(luminance_table)))) + 1


@functools.cache
def _divisor_sums() -> np.ndarray:
    """(100,) the sums of libjpeg's luminance divisors at quality 1 to 100."""
    sums = []
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
        sums.append(sum(Image.open(file).quantization[0]))
    return np.array(sums)


def _name(dataset: Dataset, sample: Sample) -> str:
    """The sample's path, relative to the dataset's folder if it lies there."""
    folder = dataset.root if dataset.root.is_dir() else dataset.root.parent
    inside = sample.path.is_relative_to(folder)
    return (sample.path.relative_to(folder) if inside else sample.path).as_posix()


def _counts(samples: Sequence[Sample]) -> dict:
    counts: dict = {name: Counter() for name in CLASS_NAMES}
    for sample in samples:
        counts[CLASS_NAMES[sample.label]][sample.generator] += 1
    return {name: dict(sorted(generators.items())) for name, generators in counts.items()}


def _copies(indices: list[int], pictures: list[_Picture]) -> list[list[int]]:
    by_digest = defaultdict(list)
    for i in indices:
        by_digest[pictures[i].digest].append(i)
    return [same for same in by_digest.values() if len(same) > 1]


def _nearest(
    queries: list[int], targets: list[int], pictures: list[_Picture]
) -> list[tuple[int, int, int]]:
    """(query, its nearest target, their distance in bits), where that is within NEAR_DISTANCE.

    OpenCV compares every pair: half a second for 4,200 x 4,200 on two cores.
    """
    if not queries or not targets:
        return []
    distances, nearest = cv2.batchDistance(
        np.stack([pictures[i].hash for i in queries]),
        np.stack([pictures[i].hash for i in targets]),
        cv2.CV_32S,
        normType=cv2.NORM_HAMMING,
        K=1,
    )
    return [
        (query, targets[j], int(distance))
        for query, j, distance in zip(queries, nearest[:, 0], distances[:, 0], strict=True)
        if distance <= NEAR_DISTANCE
    ]


def _warnings(audit: dict) -> list[str]:
    warnings = []
    scopes = {"": audit["leaks"]["overall"]}
    scopes |= {f" for {name}": leaks for name, leaks in audit["leaks"]["by_generator"].items()}
    for name in audit["leaks"]["overall"]:
        found = {scope: leaks[name] for scope, leaks in scopes.items() if leaks[name] is not None}
        found = {scope: auc for scope, auc in found.items() if auc > LEAK_AUC}
        if found:
            figures = ", ".join(f"{auc:.2f}{scope}" for scope, auc in found.items())
            warnings.append(
                f"LEAK: {name} alone tells real from fake (AUC {figures}). A detector would learn "
                "it instead of faces and fail on other files. Re-save both classes alike: same "
                "size, format and quality, from originals alike."
            )
    if audit["contradictions"]:
        warnings.append(
            f"{len(audit['contradictions']):,} pictures are called both real and fake, for "
            f"example {' and '.join(audit['contradictions'][0][:2])}. Remove the wrong ones."
        )
    if audit["groups_across_splits"]:
        groups = audit["groups_across_splits"]
        warnings.append(
            f"{len(groups):,} groups are in train and in validate, for example {groups[0]}. "
            "The validation looks too good; split again by group."
        )
    if audit["near_across_splits"]:
        validated = sum(sum(kinds.values()) for kinds in audit["counts"]["validate"].values())
        found = len(audit["near_across_splits"])
        warnings.append(
            f"{found:,} of {validated:,} pictures to validate with ({found / validated:.1%}) "
            "nearly equal one to train on. The validation looks too good; remove one of each two."
        )
    if audit["unreadable"]:
        warnings.append(
            f"{len(audit['unreadable']):,} pictures cannot be read and are left out of training."
        )
    return warnings


def _frame(warnings: list[str]) -> str:
    lines = [f"DATASET WARNING{'S' if len(warnings) > 1 else ''}"]
    for warning in warnings:
        lines += textwrap.wrap(warning, 93, initial_indent="- ", subsequent_indent="  ")
    edge = "!" * 99
    return "\n".join([edge, *(f"!! {line:<93} !!" for line in lines), edge])


def _counts_as_text(counts: dict) -> str:
    lines = []
    for split, classes in counts.items():
        totals = {name: sum(generators.values()) for name, generators in classes.items()}
        lines.append(f"{split:<10}" + ", ".join(f"{n:,} {name}" for name, n in totals.items()))
        for name, generators in classes.items():
            if set(generators) - {""}:
                kinds = ", ".join(f"{n:,} {kind or '(none)'}" for kind, n in generators.items())
                lines += textwrap.wrap(
                    f"{name}: {kinds}", 99, initial_indent=" " * 10, subsequent_indent=" " * 12
                )
    return "\n".join(lines)


def _leaks_as_text(leaks: dict) -> str:
    lines = ["AUC with which a property of the files alone tells real from fake (0.5 is none):"]
    scopes = {"overall": leaks["overall"], **leaks["by_generator"]}
    for name in leaks["overall"]:
        figures = [
            f"{'–' if found[name] is None else format(found[name], '.2f')} {scope}"
            for scope, found in scopes.items()
        ]
        lines += textwrap.wrap(f"  {name:<20}{', '.join(figures)}", 99, subsequent_indent=" " * 22)
    return "\n".join(lines)


def _listing(title: str, entries: list[str], shown: int = 10) -> str:
    if not entries:
        return f"No {title}."
    more = [f"  … and {len(entries) - shown:,} more"] if len(entries) > shown else []
    return "\n".join([f"{len(entries):,} {title}:", *(f"  {e}" for e in entries[:shown]), *more])
