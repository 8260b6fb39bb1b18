"""Measure whether a threshold for each kind of quality beats one for all.

    python benchmarks/quality_bins.py weights/efficientnet_lite0 --data FACES --tests FACES/test/*

The real validation faces of FACES are dealt into bins of the same number by how sharp they are, and
by how large. Each bin gets the threshold that keeps the detector's own promise in it (Mondrian
conformal prediction; Vovk, Gammerman, Shafer: "Algorithmic Learning in a Random World", 2005): of
the real faces of each source, unchanged, recompressed and shrunk, at most the same share is called
fake. A changed face counts in the bin of its own quality; bins with fewer than FEWEST real faces
are merged with the next. Pictures are taken whole. Prints Markdown tables and writes
benchmarks/quality_bins.json; `python benchmarks/readme_tables.py` then puts them into place.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import ROOT, machine
from benchmarks.results import TITLES, percent
from benchmarks.stability import pictures_in
from pipeline.common.command_line import run
from pipeline.common.files import atomic_write
from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import load_dataset
from pipeline.detectors.calibration import FEWEST_OF_A_SOURCE, choose_threshold
from pipeline.detectors.detector import Detector, load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.evaluation.robustness import CLEAN, EVERYDAY, GRID
from pipeline.evaluation.shares import share_of
from pipeline.feeding.sampling import source_of
from pipeline.photos.images import read_image, resize

FEWEST = 100  # real faces of a bin
BINS = 4
VERSIONS = (CLEAN, *EVERYDAY)


class Looks(NamedTuple):
    """What was seen of N pictures: their class, where they are from, and, of V versions of each
    (V, N), fake_probability and each quality."""

    labels: np.ndarray
    sources: np.ndarray
    probabilities: np.ndarray
    qualities: dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detector", type=Path, metavar="DETECTOR")
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--tests", nargs="+", type=Path, required=True, metavar="TEST")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "quality_bins.json")
    args = parser.parse_args()
    detector = load_detector(args.detector)
    runtime = Runtime.of(detector)
    samples = load_dataset(args.data).validate
    validate = look(
        detector,
        runtime,
        [sample.path for sample in samples],
        [sample.label for sample in samples],
        list(map(source_of, samples)),
        VERSIONS,
    )
    paths, labels, names = [], [], []
    for folder in sorted(args.tests):
        photos, its_labels = pictures_in(folder, None)
        paths += [Path(photo.path) for photo in photos]
        labels += its_labels
        names += [folder.name] * len(photos)
    tests = look(detector, runtime, paths, labels, names, (CLEAN,))
    result = {
        **machine(),
        "detector": detector.name,
        "qualities": {name: compared(validate, tests, detector, name) for name in tests.qualities},
    }
    with atomic_write(args.output) as file:
        json.dump(result, file, indent=1)
    print(tables(result))


def look(
    detector: Detector,
    runtime: Runtime,
    paths: list[Path],
    labels: list[int],
    sources: list[str],
    versions: tuple[str, ...],
) -> Looks:
    """Score pictures, whole, after each of these degradations of robustness.GRID."""
    logits, sharpness, sizes = [], [], []
    for path in paths:
        image = read_image(path)
        size = detector.architecture.input_size
        seen = [resize(GRID[name](image), size, detector.resize_filter) for name in versions]
        logits.append(runtime.logits(np.stack(seen)))
        sharpness.append([sharpness_of(pixels) for pixels in seen])
        sizes.append([min(image.shape[:2])] * len(versions))
    return Looks(
        np.array(labels),
        np.array(sources),
        detector.calibration.probability(np.array(logits).T),
        {"sharpness": np.array(sharpness).T, "side in pixels": np.array(sizes).T},
    )


def sharpness_of(pixels: np.ndarray) -> float:
    """The variance of the Laplacian of what a network is fed (size, size, 3) uint8, a usual measure
    of focus (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000)."""
    return float(cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def compared(validate: Looks, tests: Looks, detector: Detector, quality: str) -> dict:
    """One threshold and those of the bins, by the same promise, on validation and test faces."""
    real = validate.labels == REAL
    edges = edges_of(validate.qualities[quality][0, real])
    bins, test_bins = (np.digitize(looks.qualities[quality], edges) for looks in (validate, tests))
    share = float(detector.calibration.rule.partition("=")[2])
    one = threshold_for(validate, np.ones_like(bins, bool), share)
    each = np.array([threshold_for(validate, bins == k, share) for k in range(len(edges) + 1)])
    fake_by_one, fake_by_each = (
        tests.probabilities[0] >= one,
        tests.probabilities[0] >= each[test_bins[0]],
    )
    groups = {name: tests.sources == name for name in TITLES if name in tests.sources}
    groups["all"] = np.ones(len(tests.labels), bool)
    seen_by_one, seen_by_each = (
        validate.probabilities[0] >= one,
        validate.probabilities[0] >= each[bins[0]],
    )
    sources = [
        name
        for name in np.unique(validate.sources[real])
        if np.sum(real & (validate.sources == name)) >= FEWEST_OF_A_SOURCE
    ]
    # What one threshold would find that accuses as many real test faces as those of the bins do.
    accused = int(np.sum(fake_by_each[tests.labels == REAL]))
    as_many = np.sort(tests.probabilities[0, tests.labels == REAL])[::-1][accused]
    return {
        "edges": edges.tolist(),
        "threshold": one,
        "thresholds": each.tolist(),
        "bins": [
            _before_and_after(seen_by_one, seen_by_each, validate.labels, bins[0] == k)
            for k in range(len(each))
        ],
        "sources": {
            str(name): _before_and_after(
                seen_by_one, seen_by_each, validate.labels, real & (validate.sources == name)
            )
            for name in sources
        },
        "tests": {
            name: _before_and_after(fake_by_one, fake_by_each, tests.labels, chosen)
            for name, chosen in groups.items()
        },
        "one_threshold_finds": share_of(tests.probabilities[0, tests.labels == FAKE] > as_many),
    }


def edges_of(values: np.ndarray) -> np.ndarray:
    """Where the bins of real faces begin, but for the first: each has at least FEWEST of them."""
    edges = []
    for edge in np.unique(np.quantile(values, np.arange(1, BINS) / BINS)):
        last = edges[-1] if edges else -np.inf
        if np.sum((values >= last) & (values < edge)) >= FEWEST <= np.sum(values >= edge):
            edges.append(edge)
    return np.array(edges)


def threshold_for(looks: Looks, chosen: np.ndarray, share: float) -> float:
    """The threshold that keeps the promise for the faces that are chosen (V, N) of each version."""
    found = []
    for version, its in zip(looks.probabilities, chosen, strict=True):
        its = its | (looks.labels == FAKE)  # where they lie moves a threshold only between scores
        if np.sum(its & (looks.labels == REAL)) >= FEWEST:
            rule = f"each-fpr={share}"
            found.append(
                choose_threshold(looks.labels[its], version[its], rule, list(looks.sources[its]))
            )
    return max(found)


def _before_and_after(before: np.ndarray, after: np.ndarray, labels: np.ndarray, chosen) -> dict:
    """The shares called fake, [value, low, high], of the chosen real faces and fakes."""
    result = {}
    for name, label in (("real", REAL), ("fake", FAKE)):
        its = chosen & (labels == label)
        if its.any():
            result[name] = {
                "faces": int(its.sum()),
                "before": share_of(before[its]),
                "after": share_of(after[its]),
            }
    return result


def tables(result: dict) -> str:
    """Of each quality: its bins, then real faces by source, then the test sets."""
    return "\n".join(_tables_of(name, each) for name, each in result["qualities"].items())


def _tables_of(quality: str, found: dict) -> str:
    head = "real called fake | fakes found |\n|---|---|---|---|"
    edges = [f"{edge:.0f}" for edge in found["edges"]]
    names = [f"below {edges[0]}", *map("{} to {}".format, edges, edges[1:]), f"from {edges[-1]}"]
    lines = [f"| validation faces, {quality} | threshold | {head}"]
    for name, threshold, figures in zip(names, found["thresholds"], found["bins"], strict=True):
        thresholds = f"{found['threshold']:.3f} → {threshold:.3f}"
        lines.append(
            f"| {name} | {thresholds} | {_change(figures, 'real')} | {_change(figures, 'fake')} |"
        )
    lines += ["", f"| by {quality} | faces | {head}"]
    for name, figures in found["sources"].items():
        lines.append(
            f"| validation, {name} | {figures['real']['faces']} | {_change(figures, 'real')} | |"
        )
    for name, figures in found["tests"].items():
        faces = " + ".join(
            str(figures[kind]["faces"]) for kind in ("real", "fake") if kind in figures
        )
        title = TITLES.get(name, "All test sets")
        lines.append(
            f"| {title} | {faces} | {_change(figures, 'real')} | {_change(figures, 'fake')} |"
        )
    lines.append(
        "| All test sets, one threshold that accuses as many as the bins | | "
        f"| {percent(found['one_threshold_finds'])} |"
    )
    return "\n".join(lines) + "\n"


def _change(figures: dict, kind: str) -> str:
    if kind not in figures:
        return "–"
    return f"{percent(figures[kind]['before'])} → {percent(figures[kind]['after'])}"


if __name__ == "__main__":
    run(main)
