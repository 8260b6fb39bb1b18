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


def efficientnet_b0(dropout: float = 0.5) -> keras.Model:
    """(N, 256, 256, 3) in 0…255 → (N, 1) logits of fake. `imagenet_weights` fills it."""
    backbone = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(256, 256, 3)
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


def fill_from_torchvision(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
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
