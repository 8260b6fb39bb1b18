"""EfficientNetB0 with the head of models/xception.py.

Tan & Le: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
The backbone is keras.applications'; its first layers bring pixels of 0…255 to its own scale, so
that is what it must be fed.
"""

from collections.abc import Callable

import keras

from models.xception import copy_backbone, with_head

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in 0…1


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
