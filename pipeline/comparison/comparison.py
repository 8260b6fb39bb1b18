"""The figures of detectors on labelled pictures that none was trained on, and how they differ."""

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL
from pipeline.comparison.entries import ComparisonInputs, Entry, TestSet, kind_of
from pipeline.comparison.scores import BATCH_SIZE, Scores, input_of
from pipeline.data.dataset import Sample
from pipeline.detectors.detector import NUMBERS
from pipeline.detectors.runtime import Runtime
from pipeline.evaluation.metrics import (
    auc_covariance,
    delong_test,
    evaluate,
    evaluate_with_intervals,
    holm,
)
from pipeline.evaluation.robustness import GRID
from pipeline.evaluation.shares import Estimate
from pipeline.photos.images import read_image


def compare(
    inputs: ComparisonInputs,
    scores: Scores,
    training_data: dict[str, set[str]],
    device: str = "auto",
) -> dict:
    """All figures, as plain numbers in lists and dicts; see the keys below. Measures speed, too.

    `training_data` says which test sets' kinds each detector has seen, by its label; of a detector
    that is not in it, nothing is known.
    """
    sets = [test_set for test_set in inputs.sets if scores.readable(test_set).any()]
    if not sets:
        raise UserError("Not one picture of the test sets can be read.")
    milliseconds = measure_speed(inputs, scores, device)
    return {
        "detectors": [
            _description(entry, inputs, scores) | {"milliseconds": milliseconds[entry.label]}
            for entry in inputs.entries
        ],
        "test_sets": [
            {
                "name": test_set.name,
                "real": int(np.sum(test_set.labels[scores.readable(test_set)] == REAL)),
                "fake": int(np.sum(test_set.labels[scores.readable(test_set)] == FAKE)),
                "degraded": int(test_set.grid.sum()),
            }
            for test_set in sets
        ],
        "results": [
            {
                "detector": entry.label,
                "test_set": test_set.name,
                "kind": kind_of(entry, test_set.name, training_data),
                "figures": _measured(entry, test_set, scores),
            }
            for entry in inputs.entries
            for test_set in sets
        ],
        "paired": [row for test_set in sets for row in _paired(inputs, test_set, scores)],
        "robustness": [
            row
            for entry in inputs.entries
            for test_set in sets
            for row in _robustness(entry, test_set, scores)
        ],
        "skipped": inputs.skipped,
        "failed": inputs.failed
        + [f"{path}: {sentence}" for path, sentence in scores.unreadable.items()],
    }


def worst_mistakes(
    entry: Entry, sets: Iterable[TestSet], scores: Scores, count: int
) -> dict[int, list[tuple[float, str, Sample]]]:
    """The clean pictures of each class that it is most wrong about, the worst first: label →
    (fake_probability, the set's name, the sample). Only such as it calls wrong."""
    wrong: dict[int, list] = {REAL: [], FAKE: []}
    for test_set in sets:
        readable = np.flatnonzero(scores.readable(test_set))
        _, probabilities = scores.labelled(entry, test_set)
        for index, probability in zip(readable, probabilities.tolist(), strict=True):
            sample = test_set.samples[index]
            if (probability >= entry.calibration.threshold) != (sample.label == FAKE):
                wrong[sample.label].append((probability, test_set.name, sample))
    return {
        label: sorted(mistakes, key=lambda row: row[0], reverse=label == REAL)[:count]
        for label, mistakes in wrong.items()
    }


def _description(entry: Entry, inputs: ComparisonInputs, scores: Scores) -> dict:
    detector = entry.detector
    described = {
        "name": entry.label,
        "start": entry.start,
        "threshold": entry.calibration.threshold,
        "rule": entry.calibration.rule,
    }
    ranked = [test_set for test_set in inputs.sets if scores.can_be_ranked(test_set)]
    if ranked:
        described["mean_auc"] = mean_auc(entry, ranked, scores)
    if detector is None:
        parts = [_description(member, inputs, scores) for member in entry.members]
        return described | {
            "architecture": " + ".join(member.label for member in entry.members),
            **{name: sum(part[name] for part in parts) for name in ("parameters", "megabytes")},
            "minutes": None,
        }
    return described | {
        "architecture": detector.architecture.name,
        "parameters": count_parameters(detector.graph),
        "megabytes": sum(
            path.stat().st_size
            for path in (detector.graph, detector.folder / NUMBERS)
            if path.exists()
        )
        / 1e6,
        "minutes": entry.training.get("minutes"),
    }


def mean_auc(entry: Entry, sets: Sequence[TestSet], scores: Scores) -> Estimate:
    """The mean of its AUCs on sets that can be ranked, at least one; the interval is DeLong's, as
    of sets that share no picture."""
    areas = []
    for test_set in sets:
        labels, probabilities = scores.labelled(entry, test_set)
        areas.append(auc_covariance(labels, probabilities[None]))
    mean = float(np.mean([area[0] for area, _ in areas]))
    half = 1.96 * float(np.sqrt(sum(variance[0, 0] for _, variance in areas))) / len(areas)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


def count_parameters(graph: Path) -> int:
    """The numbers that an ONNX graph holds as weights; batch normalization may be folded in."""
    import onnx

    integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)  # axes and shapes
    stored = onnx.load(graph, load_external_data=False).graph.initializer
    return sum(int(np.prod(t.dims)) for t in stored if t.data_type not in integers)


def measure_speed(
    inputs: ComparisonInputs, scores: Scores, device: str = "auto"
) -> dict[str, float]:
    """Milliseconds that each detector's network takes a picture, by its label.

    In batches of BATCH_SIZE, the median of five after one to warm up; without decoding and face
    search, which cost all detectors the same. An ensemble takes as long as its members together.
    """
    paths = [
        sample.path
        for test_set in inputs.sets
        for sample in test_set.samples
        if sample.path not in scores.unreadable
    ][:BATCH_SIZE]
    images = [read_image(path) for path in paths]
    milliseconds: dict[str, float] = {}
    for entry in inputs.entries:
        if entry.members:
            parts = [milliseconds[member.label] for member in entry.members]
            milliseconds[entry.label] = sum(parts)
            continue
        detector = entry.detector
        inputs = np.stack([input_of(detector)(image) for image in images])
        inputs = np.resize(inputs, (BATCH_SIZE, *inputs.shape[1:]))  # repeated where there are few
        runtime = Runtime.of(detector, device)
        runtime.logits(inputs)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            runtime.logits(inputs)
            times.append(time.perf_counter() - started)
        milliseconds[entry.label] = 1000 * statistics.median(times) / BATCH_SIZE
    return milliseconds


def _measured(entry: Entry, test_set: TestSet, scores: Scores) -> dict[str, Estimate]:
    labels, probabilities = scores.labelled(entry, test_set)
    return evaluate_with_intervals(labels, probabilities, entry.calibration.threshold)


def _paired(inputs: ComparisonInputs, test_set: TestSet, scores: Scores) -> Iterator[dict]:
    """DeLong's test of each two entries, adjusted for their number (Holm)."""
    if not scores.can_be_ranked(test_set):
        return
    labels = test_set.labels[scores.readable(test_set)]
    probabilities = {entry.label: scores.labelled(entry, test_set)[1] for entry in inputs.entries}
    pairs = list(combinations(probabilities, 2))
    tests = [delong_test(labels, *(probabilities[label] for label in pair)) for pair in pairs]
    adjusted = holm([test.p for test in tests])
    for (first, second), test, p_adjusted in zip(pairs, tests, adjusted, strict=True):
        yield {
            "test_set": test_set.name,
            "first": first,
            "second": second,
            "difference": test.difference,
            "p": test.p,
            "p_holm": p_adjusted,
        }


def _robustness(entry: Entry, test_set: TestSet, scores: Scores) -> Iterator[dict]:
    """The figures of each cell, the clean one's too, on the pictures that the grid has.

    `auc_change` is from clean to degraded, with DeLong's interval: the pictures are the same.
    """
    on_grid = TestSet(
        test_set.name,
        [test_set.samples[index] for index in np.flatnonzero(test_set.grid)],
        np.ones(int(test_set.grid.sum()), bool),
    )
    labels, clean = scores.labelled(entry, on_grid)
    if not len(labels):
        return
    for degradation in GRID:
        _, probabilities = scores.labelled(entry, on_grid, degradation)
        figures = evaluate(labels, probabilities, entry.calibration.threshold)
        change = None
        if scores.can_be_ranked(on_grid):
            change = delong_test(labels, probabilities, clean).difference
        yield {
            "detector": entry.label,
            "test_set": test_set.name,
            "degradation": degradation,
            "images": figures["images"],
            **{name: figures.get(name) for name in ("auc", "recall_real", "recall_fake")},
            "auc_change": change,
        }
