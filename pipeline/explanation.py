"""Where a network saw the evidence for "fake": heat maps, and the pictures that show them.

Convolutional networks are explained by HiResCAM (Draelos & Carin: "Use HiResCAM instead of Grad-CAM
for faithful explanations of convolutional neural networks", https://arxiv.org/abs/2011.08891): the
last feature map, multiplied place by place with the gradient of the logit of fake there, summed
over channels, what is below zero left out. Where a network ends with the mean over all places
(Xception, EfficientNet, ResNet) this is Grad-CAM itself (Selvaraju et al., ICCV 2017), since the
gradient is then the same everywhere. Meso4 and MesoInception4 weigh each place by itself, which
Grad-CAM averages away; their map is the mean of two, of the last convolution (32 × 32 places) and
of the pooling behind it (8 × 8). So is EfficientNet-Lite0's, of the last stage with 14 × 14 places
and of the last feature map (7 × 7).

A vision transformer mixes its tokens, so that the last ones carry evidence of other places: in two
tiny ones, trained on faces of which a half was pasted, 22 % and 54 % of HiResCAM's heat lay on that
half, and of Grad-CAM's as much. Transformers are explained by integrated gradients (Sundararajan,
Taly, Yan: "Axiomatic Attribution for Deep Networks", ICML 2017) from a blurred picture to the sharp
one, summed over each patch: 91 % and 89 %. This takes eight times as long.

Checked on 40 fakes (StyleGAN, DFDC) that the method was not chosen on, by deleting a tenth of the
pixels. The logit of fake falls by this much; at random: the worst of single pixels, of blobs, and
of the heat map's own shape moved elsewhere.

| detector | deleted to | most important tenth | at random |
|---|---|---|---|
| meso4 | black | 3.86 | 2.18 |
| | mean colour | 2.93 | 0.58 |
| mesoinception4 | black | 2.69 | 1.46 |
| | mean colour | 2.10 | 1.26 |
| efficientnet_lite0 | black | 3.38 | 2.34 (but 3.74, single pixels) |
| | mean colour | 3.79 | 2.36 |

Black pixels scattered over the face are noise all over it, which costs EfficientNet-Lite0 more
than its evidence. Its second layer was chosen on 24 other fakes, after three epochs: with the last
feature map alone 1.85 and 1.79 instead of 2.56 and 2.98.

Plain Grad-CAM of the last feature map did not pass: on 32 other fakes it cost Meso4 2.11 and 0.58,
where blobs at random cost 2.36 and single cells of 8 pixels 0.50.

On faces of which one half is StyleGAN's and the other a photo (40 pairs, each half once), 54 ± 2 %
of Meso4's heat, 55 ± 2 % of MesoInception4's and 69 % of EfficientNet-Lite0's lie on StyleGAN's
half; of DFDC's swaps 51 ± 2 % of the Meso networks', which hardly recognize them, and 61 % of
EfficientNet-Lite0's; of FLUX, SDXL and DALL·E 3, which it has never seen, 63 %. A map is no better
than the network that it explains.

A heat map is scaled to its own largest value: it says where the evidence lies, not how much there
is. What speaks for "real" is not shown; where nothing speaks for "fake" the map is all zero.
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

from pipeline.detector import Detector
from pipeline.errors import UserError
from pipeline.files import atomic_write, portable_name
from pipeline.rows import Row
from pipeline.scoring import Scored
from pipeline.video import draw_timeline

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
        weights = detector.folder / WEIGHTS[framework]
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
            raise UserError(
                f"Heat maps of {detector.name} need {error.name}, which scoring does without and "
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

    def write(self, scored: Scored) -> None:
        """Write the pictures of a photo's faces, or of a video, each whole or not at all; one that
        is there already is replaced. Raises UserError where that fails."""
        for row, pixels in zip(scored.rows, scored.pixels, strict=True):
            if pixels is not None:
                [heat] = self._explainers[row.model].heat_maps(pixels[None])
                picture = Image.fromarray(np.hstack([pixels, overlay(pixels, heat)]))
                save = partial(picture.save, format="png", pnginfo=_noted(row))
                self._save(picture_name(row), save)
        timeline = draw_timeline(scored.rows)
        if timeline:
            save = partial(timeline.savefig, format="png", dpi=100)
            self._save(timeline_name(scored.rows[0]), save)

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
    from pipeline import keras_backend

    keras_backend.choose("cpu")
    import keras

    keras_backend.use("cpu")
    network = detector.architecture.build()
    with _weights_refused(detector, weights, ValueError, KeyError, OSError):
        network.load_weights(weights)
    inside = keras.Model(network.input, [_last_keras_features(network), network.output])

    def evidence(pictures: np.ndarray) -> list[np.ndarray]:
        if keras.backend.backend() == "torch":
            import torch

            features, logits = inside(pictures, training=False)
            gradients = torch.autograd.grad(logits.sum(), features)
            pairs = zip(features, gradients, strict=True)
            return [(feature * gradient).sum(-1).detach().numpy() for feature, gradient in pairs]
        import tensorflow as tf

        with tf.GradientTape() as tape:
            features, logits = inside(pictures, training=False)
        pairs = zip(features, tape.gradient(logits, features), strict=True)
        return [tf.reduce_sum(feature * gradient, -1).numpy() for feature, gradient in pairs]

    return evidence


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
    from pytorch_grad_cam import HiResCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):  # without values: what the file lacks could not be computed with
        network = detector.architecture.build()
    with _weights_refused(detector, weights, SafetensorError, RuntimeError, OSError):
        network.load_state_dict(load_file(weights), assign=True)
    network.eval()
    if isinstance(network, VisionTransformer):
        return lambda pictures: [_integrated_gradients(network, pictures)]
    cam = HiResCAM(network, _last_timm_features(network))

    def evidence(pictures: np.ndarray) -> list[np.ndarray]:
        batch = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        return [cam(batch, [ClassifierOutputTarget(0)] * len(batch))]

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
