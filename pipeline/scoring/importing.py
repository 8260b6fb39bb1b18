"""Weights of other projects, imported once into detector folders that scoring can use.

The folder lies in the user's cache. The import needs TensorFlow or torch; scoring from then on does
not.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from models import ARCHITECTURES, Architecture
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.common.graphs import cache_folder
from pipeline.common.out_of_memory import LEAST_TO_TRAIN, require_memory
from pipeline.detectors.detector import (
    GRAPH,
    Detector,
    describe_input,
    load_detector,
    write_detector,
)
from pipeline.detectors.fake_class import FakeClass, FakeLabels
from pipeline.foreign.published import Published, find_published


def import_published(
    weights: Path,
    allowed: tuple[str, ...] | list[str] = (),
    fake_labels: FakeLabels | None = None,
) -> Detector:
    """The detector folder of another project's weights, made if it is not there yet.

    `allowed` are the architectures that are wanted; none: any. `fake_labels` are the labels that
    the user says mean fake. Raises UserError for weights that are not known here, of another
    architecture, or whose labels do not say what is fake, and where the framework for the import
    is missing.
    """
    published = find_published(weights)
    name = published.architecture.name
    if allowed and name not in allowed:
        raise UserError(
            f"{weights}: these are weights of {name}, and this script scores with "
            f"{', '.join(allowed)}: use the script named after it."
        )
    fake = published.decide(fake_labels or FakeLabels())
    state = repr(([sha256_of(file) for file in published.files], fake)).encode()
    checksum = hashlib.sha256(state).hexdigest()[:16]
    folder = cache_folder() / "published" / f"{published.name}-{checksum}"
    try:
        return load_detector(folder)
    except UserError:  # not there yet, damaged, or of another version: made anew
        try:
            _convert(published, folder, weights, fake)
        except OSError as error:
            raise UserError(
                f"{folder}: the imported weights cannot be kept there ({error.strerror}); set "
                "XDG_CACHE_HOME to a folder that can be written."
            ) from error
    return load_detector(folder)


def _convert(published: Published, folder: Path, weights: Path, fake: FakeClass | None) -> None:
    if importlib.util.find_spec(published.needs) is None:
        framework = {"tensorflow": "TensorFlow", "torch": "torch"}[published.needs]
        raise UserError(
            f"{weights}: importing published weights, which is done once, needs {framework}: "
            "pip install -r requirements.txt"
        )
    require_memory("the import of published weights", LEAST_TO_TRAIN)
    print(f"Importing {weights} (once; it takes some seconds to start)…", file=sys.stderr)
    description = {
        "name": published.name,
        "architecture": published.architecture.name,
        "input": describe_input(published.architecture, published.resize_filter),
        "face": {"mode": "none", "margin": 1.0},
        "calibration": {
            "temperature": 1.0,
            "threshold": 0.5,
            "uncertain_from": 0.5,
            "rule": "as published, not calibrated",
        },
        "metrics": {},
        "training": {"start": "published", "source": published.source},
    }
    if fake:
        description["fake_class"] = fake.as_section()
    with write_detector(folder, description) as new:
        _fill(published, weights, new, fake)


def _fill(published: Published, weights: Path, folder: Path, fake: FakeClass | None) -> None:
    if published.needs == "torch":
        _fill_with_torch(published.architecture, weights, folder, fake)
    else:
        _fill_with_keras(published.architecture, weights, folder, fake.output if fake else 0)


def _fill_with_keras(
    architecture: Architecture, path: Path, folder: Path, fake_output: int = 0
) -> None:
    """`fill_with_keras` in a process of its own, on TensorFlow: this one may need torch later."""
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.scoring.importing", architecture.name]
        + [str(path.resolve()), str(folder.resolve()), str(fake_output)],
        cwd=repository,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
    )
    if done.returncode:
        reason = done.stderr.strip() or f"the import ended with code {done.returncode}"
        raise UserError(f"{path}: {reason.splitlines()[-1]}")


def fill_with_keras(
    architecture: Architecture, path: Path, folder: Path, fake_output: int = 0
) -> None:
    """Write the graph and the weights of a Keras network that others trained into `folder`.

    `fake_output`: with 1 the weights mean P(fake), with 0 P(real). Raises ValueError where the file
    holds another network.
    """
    from pipeline.keras_engine.export import (  # before another imports TensorFlow
        WEIGHTS,
        export_graph,
    )

    from models.published import load_reversed  # isort: skip

    model = architecture.build()
    try:
        if fake_output == 1:
            model.load_weights(path)
        else:
            load_reversed(model, path)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"these are not the weights of a {architecture.name} with the usual head "
            f"({str(error).splitlines()[0]})."
        ) from None
    if architecture.name == "efficientnet_b0":
        from models.efficientnet import set_normalization

        set_normalization(model)  # theirs is spread over two layers, ours is in one
    export_graph(model, folder / GRAPH)
    model.save_weights(folder / WEIGHTS)


def _fill_with_torch(
    architecture: Architecture, folder: Path, target: Path, fake: FakeClass
) -> None:
    from pipeline.foreign.hugging_face import classifier_of
    from pipeline.torch_engine.export import export_graph
    from pipeline.torch_engine.weights import WEIGHTS

    network, is_plain = classifier_of(folder, architecture, fake)
    export_graph(network, architecture.input_size, target / GRAPH)
    if is_plain:
        from safetensors.torch import save_file

        save_file(network.state_dict(), target / WEIGHTS)


if __name__ == "__main__":
    name, weights, target, fake_output = sys.argv[1:]
    try:
        fill_with_keras(ARCHITECTURES[name], Path(weights), Path(target), int(fake_output))
    except ValueError as error:
        sys.exit(str(error))
