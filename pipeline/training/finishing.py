"""The last steps of every training: calibrate, measure, export, check, write the detector folder.

Knows nothing of the framework: a trained network comes in as engine.Trained, three functions.
"""

import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from models import Architecture
from pipeline.common.errors import ImageError, UserError
from pipeline.common.labels import REAL
from pipeline.data.audit import audited_dataset
from pipeline.data.dataset import Sample, load_dataset
from pipeline.detectors.calibration import (
    DEGRADED_RULE,
    Calibration,
    calibrate,
    expected_calibration_error,
    sigmoid,
)
from pipeline.detectors.detector import GRAPH, describe_input, write_detector
from pipeline.detectors.real_scores import SECTION, RealScores
from pipeline.detectors.runtime import Runtime
from pipeline.evaluation.metrics import evaluate_with_auc_interval
from pipeline.evaluation.model_card import write_model_card
from pipeline.evaluation.robustness import CLEAN, EVERYDAY, GRID
from pipeline.feeding.engine import Trained
from pipeline.feeding.sampling import source_of
from pipeline.photos.images import read_image, resize

PARITY = 1e-4  # of fake_probability, between the trained network and its exported graph
CHECKED_FACES = 64
_LIBRARIES = ("numpy", "opencv-python", "pillow", "onnx", "openvino")


@dataclass(frozen=True)
class DetectorSpec:
    """What is known of a detector before it is measured: its name, what it is fed, where from.

    `training` is the section of that name in detector.json, without versions and date; `history` is
    the file with a line an epoch.
    """

    name: str
    architecture: Architecture
    resize_filter: str
    margin: float
    training: dict[str, Any]
    history: Path


def finish_training(
    trained: Trained, spec: DetectorSpec, validate: list[Sample], threshold_rule: str, target: Path
) -> dict:
    """Turn a trained network into the detector folder `target`; return its description.

    It is calibrated and measured on the samples `validate`. The folder that was at `target` stays
    until the new one is whole. Raises UserError where the exported graph disagrees with the
    network.
    """
    look = partial(
        predict,
        trained.logits,
        architecture=spec.architecture,
        resize_filter=spec.resize_filter,
    )
    calibration, probabilities, sections = calibrate_and_evaluate(validate, look, threshold_rule)
    description = {
        "name": spec.name,
        "architecture": spec.architecture.name,
        **({"options": dict(spec.architecture.options)} if spec.architecture.options else {}),
        "input": describe_input(spec.architecture, spec.resize_filter),
        "face": {"mode": "auto", "margin": spec.margin},
        **sections,
        "training": {**spec.training, **_circumstances(trained.libraries)},
    }
    with write_detector(target, description) as new:
        trained.export(new / GRAPH)
        description["export"] = _check_export(trained, new / GRAPH, spec, calibration, validate)
        trained.save_weights(new)
        shutil.copyfile(spec.history, new / "history.jsonl")
        labels = np.array([sample.label for sample in validate])
        write_model_card(new, description, labels, probabilities)
    return description


def calibration_samples(data: Path) -> tuple[str, list[Sample]]:
    """The name of a dataset, and its validation pictures after an audit. Raises UserError where
    they are not of both classes."""
    dataset, _ = audited_dataset(load_dataset(data))
    if len({sample.label for sample in dataset.validate}) < 2:
        raise UserError(f"{data}: calibration needs real and fake pictures in validate/.")
    return dataset.root.resolve().name, dataset.validate


def calibrate_and_evaluate(
    samples: list[Sample], look: Callable[..., np.ndarray], rule: str
) -> tuple[Calibration, np.ndarray, dict]:
    """How a network's logits of the validation pictures become verdicts, and what these are worth:
    the calibration, the pictures' fake_probability (N,), and the sections `calibration`, `metrics`
    and `real_scores` of detector.json. `look` is `predict` for this network."""
    labels = np.array([sample.label for sample in samples])
    logits = look(samples)
    degraded = []
    if rule.startswith(DEGRADED_RULE):
        real = [sample for sample in samples if sample.label == REAL]
        degraded = [look(real, change=GRID[name]) for name in EVERYDAY]
    sources = [source_of(sample) for sample in samples]
    calibration = calibrate(labels, logits, rule, sources, degraded)
    probabilities = calibration.probability(logits)
    metrics = evaluate_with_auc_interval(labels, probabilities, calibration.threshold)
    metrics["ece_before"] = expected_calibration_error(labels, sigmoid(logits))
    scores = [probabilities[labels == REAL], *map(calibration.probability, degraded)]
    return (
        calibration,
        probabilities,
        {
            "calibration": {**asdict(calibration), "images": metrics["images"]},
            "metrics": metrics,
            SECTION: RealScores.of(scores).as_json(),
        },
    )


def predict(
    logits: Callable[[np.ndarray], np.ndarray],
    samples: list[Sample],
    architecture: Architecture,
    resize_filter: str,
    change: Callable[[np.ndarray], np.ndarray] = GRID[CLEAN],
) -> np.ndarray:
    """The logits (N,) of whole pictures, after a `change` of robustness.GRID; `logits` is that of
    a `Trained` or of a `Runtime`."""
    pixels = (_input(sample, architecture, resize_filter, change) for sample in samples)
    return np.concatenate([logits(np.stack(batch)) for batch in _batches(pixels, 64)])


def _input(
    sample: Sample, architecture: Architecture, resize_filter: str, change: Callable = GRID[CLEAN]
) -> np.ndarray:
    try:
        image = read_image(sample.path)
    except ImageError as error:
        raise UserError(
            f"{sample.path}: {error} (when the dataset was audited it could be read)."
        ) from error
    return resize(change(image), architecture.input_size, resize_filter)


def _batches(pictures, size: int):
    batch = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_export(
    trained: Trained,
    graph: Path,
    spec: DetectorSpec,
    calibration: Calibration,
    validate: list[Sample],
) -> dict:
    """Compare graph and network on real faces spread over the validation set."""
    chosen = validate[:: max(1, len(validate) // CHECKED_FACES)][:CHECKED_FACES]
    pixels = np.stack([_input(sample, spec.architecture, spec.resize_filter) for sample in chosen])
    expected = calibration.probability(trained.logits(pixels))
    exported = calibration.probability(Runtime(graph, spec.architecture).logits(pixels))
    difference = float(np.abs(expected - exported).max())
    if difference > PARITY:
        raise UserError(
            f"The exported graph moves fake_probability by {difference:.2g} (at most {PARITY:g} is "
            "allowed), so no detector was written; the training state is kept."
        )
    return {"faces": len(chosen), "largest_difference": difference}


def _circumstances(libraries: tuple[str, ...]) -> dict:
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in (*libraries, *_LIBRARIES)},
    }
