"""EfficientNetB0 with the head of models/xception.py.

Tan & Le: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
The backbone is keras.applications'; its first layers bring pixels of 0…255 to its own scale, so
that is what it must be fed.
"""

from collections.abc import Callable, Mapping

import keras
import numpy as np

from models.xception import copy_backbone, with_head

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in 0…1

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
_TORCHVISIONS_EPSILON = 1e-5
_STRETCH = 3.0  # of what goes into a swish
_OPEN = 5.0  # a gate's bias: sigmoid(5) is 0.993


def efficientnet_b0(dropout: float = 0.5, size: int = 256) -> keras.Model:
    """(N, size, size, 3) in 0…255 → (N, 1) logits of fake. `imagenet_weights` fills it."""
    backbone = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(size, size, 3)
    )
    set_normalization(backbone)
    return with_head(backbone, dropout, name="efficientnet_b0")


def set_normalization(network: keras.Model) -> None:
    """Let the first layers subtract ImageNet's mean and divide by its standard deviation.

    With its ImageNet weights keras.applications divides in two layers, without them not at all;
    here one layer always does, so that both are the same network.
    """
    variance = [std**2 for std in _STD]
    [normalization] = [
        layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)
    ]
    normalization.load_own_variables({"0": _MEAN, "1": variance, "2": 0})


def imagenet_weights() -> Callable[[keras.Model], None]:
    """What puts keras.applications' ImageNet weights, which are downloaded once, into a network of
    this file."""
    backbone = keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, input_shape=(256, 256, 3)
    )
    return lambda model: copy_backbone(backbone, model, after="stem_conv_pad")


def fill_from_packaged(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Put the weights of torchvision's efficientnet_b0, under its names, into the backbone.

    The layers are the same but for two things. Where a stride is 2, torchvision pads both sides and
    Keras only the end, so that the features lie a pixel apart: fine-tuning absorbs it. And batch
    normalization adds 1e-5 to the variance there and 1e-3 here, which `gamma` makes up for. Raises
    KeyError where a name is missing.
    """

    def convolution(name: str, theirs: str) -> None:
        kernel = np.transpose(weights[f"{theirs}.weight"], (2, 3, 1, 0))
        layer = model.get_layer(name)
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            kernel = kernel.swapaxes(2, 3)
        bias = [weights[f"{theirs}.bias"]] if layer.use_bias else []
        layer.set_weights([kernel, *bias])

    def normalization(name: str, theirs: str) -> None:
        gamma, beta, mean, variance = (
            weights[f"{theirs}.{kind}"]
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        layer = model.get_layer(name)
        gamma = gamma * np.sqrt((variance + layer.epsilon) / (variance + _TORCHVISIONS_EPSILON))
        layer.set_weights([gamma, beta, mean, variance])

    def both(name: str, theirs: str, separator: str = "_") -> None:
        convolution(f"{name}{separator}conv", f"{theirs}.0")
        normalization(f"{name}_bn", f"{theirs}.1")

    both("stem", "features.0")
    for stage, blocks in enumerate(_BLOCKS, start=1):
        for number in range(blocks):
            ours, theirs = f"block{stage}{'abcd'[number]}", f"features.{stage}.{number}.block"
            steps = iter(range(4))
            if stage > 1:  # the first one does not expand
                both(f"{ours}_expand", f"{theirs}.{next(steps)}")
            both(ours, f"{theirs}.{next(steps)}", "_dw")
            squeeze = f"{theirs}.{next(steps)}"
            convolution(f"{ours}_se_reduce", f"{squeeze}.fc1")
            convolution(f"{ours}_se_expand", f"{squeeze}.fc2")
            both(f"{ours}_project", f"{theirs}.{next(steps)}")
    both("top", "features.8")


def fill_from_lite0(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Put the weights of timm's tf_efficientnet_lite0 with one logit, under its names, into the
    network, so that it begins as nearly the same function (as in Chen, Goodfellow and Shlens,
    "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016).

    Lite0 is EfficientNetB0 with ReLU6 in the place of swish and without the squeeze-and-excitation
    gates. These are set to stay open, and what goes into each swish is stretched by `_STRETCH`,
    which what follows undoes: swish(3x) / 3 is close to ReLU(x). Nothing clips at 6, so the logits
    are others, but rank faces much alike. Two units of the head carry the logit, one for each sign.
    Raises KeyError where a name is missing.
    """

    def convolution(name: str, theirs: str, factor: float | np.ndarray = 1.0) -> np.ndarray:
        kernel = np.transpose(weights[f"{theirs}.weight"], (2, 3, 1, 0))
        layer = model.get_layer(name)
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        layer.set_weights([(kernel.swapaxes(2, 3) if depthwise else kernel) * factor])
        return kernel

    def normalization(name: str, theirs: str, stretch: float, shift: float | np.ndarray = 0.0):
        gamma, beta, mean, variance = (
            weights[f"{theirs}.{kind}"]
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        layer = model.get_layer(name)
        layer.set_weights([gamma * stretch, beta * stretch, mean - shift, variance])

    # Lite0 was fed pixels in -1…1, and here they are normalized: 2 std · pixel + 2 mean - 1.
    mean, std = (np.array(values)[:, None] for values in (_MEAN, _STD))
    kernel = convolution("stem_conv", "conv_stem", 2 * std)
    normalization("stem_bn", "bn1", _STRETCH, (kernel * (2 * mean - 1)).sum(axis=(0, 1, 2)))
    for stage, blocks in enumerate(_BLOCKS, start=1):
        for number in range(blocks):
            ours, theirs = f"block{stage}{'abcd'[number]}", f"blocks.{stage - 1}.{number}"
            names = ("conv_dw", "bn1", "conv_pw", "bn2")
            if stage > 1:  # the first one does not expand
                convolution(f"{ours}_expand_conv", f"{theirs}.conv_pw")
                normalization(f"{ours}_expand_bn", f"{theirs}.bn1", _STRETCH)
                names = ("conv_dw", "bn2", "conv_pwl", "bn3")
            depthwise, its_normalization, pointwise, the_last = (f"{theirs}.{n}" for n in names)
            convolution(f"{ours}_dwconv", depthwise, 1 / _STRETCH)
            normalization(f"{ours}_bn", its_normalization, _STRETCH)
            gates = model.get_layer(f"{ours}_se_expand")
            kernel, bias = gates.get_weights()
            gates.set_weights([np.zeros_like(kernel), np.full_like(bias, _OPEN)])
            convolution(f"{ours}_project_conv", pointwise, (1 + np.exp(-_OPEN)) / _STRETCH)
            normalization(f"{ours}_project_bn", the_last, 1)
    convolution("top_conv", "conv_head")
    normalization("top_bn", "bn2", _STRETCH)
    dense, logit = (model.get_layer(name) for name in ("head_dense", "logit"))
    kernel, bias = dense.get_weights()
    last, offset = weights["classifier.weight"], weights["classifier.bias"]
    kernel[:, :2], bias[:2] = np.stack([last[0], -last[0]], 1) / _STRETCH, (offset[0], -offset[0])
    dense.set_weights([kernel, bias])
    kernel = np.zeros_like(logit.get_weights()[0])
    kernel[:2, 0] = 1, -1
    logit.set_weights([kernel, np.zeros(1)])
