"""Where a network saw the evidence for "fake": heat maps, and the pictures that show them.

Convolutional networks are explained by HiResCAM, vision transformers by integrated gradients. Why,
and what deleting the hottest pixels does to the logit, is in docs/heat_maps.md. A map is scaled to
its own largest value and shows nothing of what speaks for "real".
"""

import contextlib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write, portable_name
from pipeline.detectors.detector import GRAPH, Detector
from pipeline.rows.rows import Row
from pipeline.scoring.scoring import Scored
from pipeline.scoring.timeline import draw_timeline

WEIGHTS = {"keras": "model.weights.h5", "torch": "model.safetensors"}  # as training writes them

_TOGETHER = 8  # pictures whose feature maps are in memory at once
# Of the integrated gradients: the blur's standard deviation as a part of the picture's side, which
# leaves light and colours of a face but none of its details, and the steps towards the picture.
_BLUR, _STEPS = 0.1, 8
_STEM_BYTES, _MODEL_BYTES = 80, 60  # of a file's name, which may have 255


class Explainer:
    """A trained network with its weights rather than its exported graph, to look inside.

    Computes on the CPU, as scoring does; `heat_maps` may be called from one thread at a time.
    Raises UserError where the detector folder has no weights for it, or other ones, or where its
    framework is not installed.
    """

    def __init__(self, detector: Detector):
        framework = detector.architecture.framework
        in_graph = detector.description.get("weights_in") == "graph"
        weights = detector.folder / (GRAPH if in_graph else WEIGHTS[framework])
        # Only a file that is listed has been verified.
        if weights.name not in detector.description["files"]:
            raise UserError(
                f"{detector.folder}: heat maps need the network's weights, and this detector has "
                f"no {weights.name} beside its graph: train or download it again."
            )
        look_inside = {"keras": _keras_network, "torch": _torch_network}[framework]
        try:
            self._evidence = look_inside(detector, weights)
        except ModuleNotFoundError as error:
            package = error.name.partition(".")[0]
            raise UserError(
                f"Heat maps of {detector.name} need {package}, which scoring does without and "
                "is not installed here: pip install -r requirements.txt"
            ) from None
        self._scaling = detector.architecture.scaling

    def heat_maps(self, pixels: np.ndarray) -> np.ndarray:
        """(N, size, size, 3) uint8 RGB, as fed to the network → (N, size, size) float32 in 0…1.

        1 is what speaks most for fake in that picture; all 0 where nothing does.
        """
        maps = np.zeros(pixels.shape[:3], np.float32)
        for first in range(0, len(pixels), _TOGETHER):
            part = slice(first, first + _TOGETHER)
            of_layers = self._evidence(self._scaling(pixels[part]))
            for number, of_picture in enumerate(zip(*of_layers, strict=True)):
                scaled = [_scaled(evidence, pixels.shape[2]) for evidence in of_picture]
                maps[first + number] = _scaled(np.mean(scaled, axis=0), pixels.shape[2])
        return maps


class HeatMapFolder:
    """The folder of `--explain`: a PNG for each scored face, the face beside its heat map, and for
    each video one with its timeline.

    Makes the folder, and an `Explainer` for each of the detectors. Raises UserError where either
    cannot be.
    """

    def __init__(self, folder: Path, detectors: list[Detector]):
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(folder, error) from None
        self._explainers = {detector.name: Explainer(detector) for detector in detectors}

    def write(self, scored: Scored) -> dict[int, Path]:
        """Write the pictures of a photo's faces, or of a video, each whole or not at all; one that
        is there already is replaced. Returns those of faces by the numbers of their rows. Raises
        UserError where that fails."""
        written = {}
        for number, (row, pixels) in enumerate(zip(scored.rows, scored.pixels, strict=True)):
            if pixels is not None:
                [heat] = self._explainers[row.model].heat_maps(pixels[None])
                picture = Image.fromarray(beside(pixels, heat))
                save = partial(picture.save, format="png", pnginfo=_noted(row))
                self._save(picture_name(row), save)
                written[number] = self._folder / picture_name(row)
        timeline = draw_timeline(scored.rows)
        if timeline:
            save = partial(timeline.savefig, format="png", dpi=100)
            self._save(timeline_name(scored.rows[0]), save)
        return written

    def _save(self, name: str, save: Callable[[BinaryIO], None]) -> None:
        path = self._folder / name
        try:
            with atomic_write(path, "wb") as file:
                save(file)
        except OSError as error:
            raise self._refusal(path, error) from None

    @staticmethod
    def _refusal(path: Path, error: OSError) -> UserError:
        return UserError(
            f"{path}: heat maps cannot be written here ({error.strerror or error}); free space, "
            "or name another folder with --explain."
        )


def overlay(pixels: np.ndarray, heat: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """A face (size, size, 3) uint8 RGB under its heat map (size, size) in 0…1; the same shape.

    Dark blue is 0, yellow is 1: viridis, which is perceptually uniform, brighter from end to end
    (so it also reads in grey), and can be told apart with any kind of colour blindness. The face
    loses its own colours, so that every colour is heat. `opacity` 0 shows the face alone, 1 the
    heat alone.
    """
    levels = np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    face = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(colours, opacity, face, 1 - opacity, 0)


def beside(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A face and, on its right, itself under its heat map, (size, 2 size, 3); see `overlay`."""
    return np.hstack([pixels, overlay(pixels, heat)])


def picture_name(row: Row) -> str:
    """The file name of a row's heat map: `<photo>-<16 hexadecimal digits>-face<n>-<model>.png`.

    The digits begin the SHA-256 of the row's `path`, a NUL and its `model`: photos of the same name
    in different folders differ in them. Only letters, digits and `._-` are kept of photo and model,
    and of long names the beginning. The same is within the PNG, unabridged, as text.
    """
    identity = f"{row.path}\0{row.model}".encode("utf-8", "surrogatepass")
    return f"{_stem(row, identity)}-face{row.face}-{_plain(row.model, _MODEL_BYTES)}.png"


def timeline_name(row: Row) -> str:
    """The file name of a video's timeline, as picture_name; the digits are those of its path."""
    return f"{_stem(row, row.path.encode('utf-8', 'surrogatepass'))}-timeline.png"


def _stem(row: Row, identity: bytes) -> str:
    stem = _plain(os.path.splitext(os.path.basename(row.path))[0], _STEM_BYTES)
    stem = portable_name(stem)
    return f"{stem}-{hashlib.sha256(identity).hexdigest()[:16]}"


def _plain(text: str, longest: int) -> str:
    text = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", text)).lstrip(".-")
    return text.encode("utf-8", "ignore")[:longest].decode("utf-8", "ignore") or "photo"


def _noted(row: Row) -> PngImagePlugin.PngInfo:
    noted = PngImagePlugin.PngInfo()
    for name in ("path", "face", "model", "fake_probability", "verdict"):
        # A path may hold bytes of another encoding, which PNG's UTF-8 cannot.
        text = str(getattr(row, name)).encode("utf-8", "backslashreplace").decode()
        noted.add_itxt(name, text)
    return noted


def _scaled(evidence: np.ndarray, size: int) -> np.ndarray:
    """(rows, columns) of any range → (size, size) in 0…1: what is above zero, by its largest."""
    evidence = np.maximum(evidence, 0).astype(np.float32)
    evidence = cv2.resize(evidence, (size, size), interpolation=cv2.INTER_LINEAR)
    largest = evidence.max()
    return evidence / largest if largest > 0 else evidence


# Each of the following gives a function: pictures as the network is fed, (N, size, size, 3)
# float32 → for each feature map (N, rows, columns), how much each place speaks for fake.


def _keras_network(detector: Detector, weights: Path):
    from pipeline.keras_engine import backend as keras_backend

    # Not on TensorFlow: networks of torch may be explained beside this one. Nothing here asks for
    # the gradients of weights, which oneDNN spoils the memory with where a 1 × 1 convolution of few
    # channels takes strides (https://github.com/uxlfoundation/oneDNN/issues/6035).
    keras_backend.choose_torch()
    import keras
    import torch

    from pipeline.detectors.graph_weights import unpack
    from pipeline.keras_engine.state import load_state

    network = detector.architecture.build()
    with _weights_refused(detector, weights, ValueError, KeyError, OSError):
        if weights.name == GRAPH:
            load_state(network, unpack(weights))
        else:
            network.load_weights(weights)
    network.trainable = False
    inside = keras.Model(network.input, [_last_keras_features(network), network.output])

    def evidence(pictures: np.ndarray) -> list[np.ndarray]:
        features, logits = inside(torch.from_numpy(pictures).requires_grad_(), training=False)
        return _hirescam(features, logits, channels=-1)

    return evidence


def _hirescam(features: list, logits, channels: int) -> list[np.ndarray]:
    """Of each of the torch tensors `features` (N, …) that `logits` (N, 1) were computed from: how
    much its places add to the logit, (N, rows, columns). `channels` is the axis that is summed."""
    import torch

    gradients = torch.autograd.grad(logits.sum(), features)
    pairs = zip(features, gradients, strict=True)
    return [(feature * gradient).sum(channels).detach().numpy() for feature, gradient in pairs]


@contextlib.contextmanager
def _weights_refused(detector: Detector, weights: Path, *errors: type[Exception]):
    try:
        yield
    except errors as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{weights}: these are not the weights of a {detector.architecture.name} ({reason}): "
            "train or download the detector again."
        ) from None


def _last_keras_features(network) -> list:
    """The feature maps in which the evidence is looked for, as the module says."""
    from keras import layers

    # Behind the last of these no place can be told from another.
    ends = (layers.Flatten, layers.GlobalAveragePooling2D)
    end = [layer for layer in network.layers if isinstance(layer, ends)][-1]
    if isinstance(end, layers.GlobalAveragePooling2D):
        return [end.input]
    convolution = [layer for layer in network.layers if isinstance(layer, layers.Conv2D)][-1]
    return [convolution.output, end.input]


def _torch_network(detector: Detector, weights: Path):
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer

    from pipeline.foreign.library_formats import own_weights
    from pipeline.torch_engine.weights import read_graph

    with torch.device("meta"):  # without values: what the file lacks could not be computed with
        network = detector.architecture.build()
    with _weights_refused(
        detector, weights, SafetensorError, RuntimeError, OSError, KeyError, IndexError
    ):
        if weights.name == GRAPH:
            state = read_graph(weights)
        else:
            state = own_weights(load_file(weights), detector.architecture, detector.description)
        network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
    if isinstance(network, VisionTransformer):
        return lambda pictures: [_integrated_gradients(network, pictures)]
    features: list[torch.Tensor] = []
    for layer in _last_timm_features(network):
        layer.register_forward_hook(lambda layer, inputs, output: features.append(output))

    def evidence(pictures: np.ndarray) -> list[np.ndarray]:
        features.clear()
        batch = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        return _hirescam(features, network(batch.requires_grad_()), channels=1)

    return evidence


def _last_timm_features(network) -> list:
    """The layers that give the feature maps in which the evidence is looked for."""
    from timm.models.efficientnet import EfficientNet
    from timm.models.resnet import ResNet

    if isinstance(network, ResNet):
        return [network.layer4[-1]]
    assert isinstance(network, EfficientNet)
    return [network.blocks[4], network.bn2]


def _integrated_gradients(network, pictures: np.ndarray) -> np.ndarray:
    """Pictures as a vision transformer is fed → (N, rows, columns) of its patches: what each adds
    to the logit on the way from a blurred picture to the sharp one."""
    import torch

    deviation = _BLUR * pictures.shape[1]
    blurred = np.stack([cv2.GaussianBlur(picture, (0, 0), deviation) for picture in pictures])
    blurred, sharp = (
        torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
        for batch in (blurred, pictures)
    )
    gradients = torch.zeros_like(sharp)
    for step in range(_STEPS):
        between = torch.lerp(blurred, sharp, (step + 0.5) / _STEPS).requires_grad_()
        gradients += torch.autograd.grad(network(between).sum(), between)[0] / _STEPS
    added = ((sharp - blurred) * gradients).sum(1, keepdim=True)
    return torch.nn.functional.avg_pool2d(added, network.patch_embed.patch_size)[:, 0].numpy()
