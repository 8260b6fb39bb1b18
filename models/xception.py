"""Xception with the head that all Keras networks with a backbone share.

Chollet: "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017; the detector
of FaceForensics++ (Rössler et al., ICCV 2019). The backbone is keras.applications'.
"""

from collections.abc import Callable

import keras
from keras import layers

HEAD = ("head_pool", "head_dense", "head_dropout", "logit")


def xception(dropout: float = 0.5) -> keras.Model:
    """(N, 256, 256, 3) in -1…1 → (N, 1) logits of fake. `imagenet_weights` fills it."""
    backbone = keras.applications.Xception(
        weights=None, include_top=False, input_shape=(256, 256, 3)
    )
    return with_head(backbone, dropout, name="xception")


def imagenet_weights() -> Callable[[keras.Model], None]:
    """What puts keras.applications' ImageNet weights, which are downloaded once, into a network of
    this file."""
    backbone = keras.applications.Xception(
        weights="imagenet", include_top=False, input_shape=(256, 256, 3)
    )
    return lambda model: copy_backbone(backbone, model)


def with_head(backbone: keras.Model, dropout: float, name: str) -> keras.Model:
    """Average pool, dense 128 with ReLU, dropout, one logit; the layers of `HEAD`."""
    x = layers.GlobalAveragePooling2D(name="head_pool")(backbone.output)
    x = layers.Dense(128, activation="relu", name="head_dense")(x)
    x = layers.Dropout(dropout, name="head_dropout")(x)
    return keras.Model(backbone.input, layers.Dense(1, name="logit", dtype="float32")(x), name=name)


def copy_backbone(backbone: keras.Model, model: keras.Model, after: str | None = None) -> None:
    """Copy a backbone's weights to the layers in front of a network's head, all of them.

    `after` is the last layer to leave out, with those before it.
    """
    sources = backbone.layers
    targets = [layer for layer in model.layers if layer.name not in HEAD]
    if after:
        sources, targets = (_behind(after, layers) for layers in (sources, targets))
    for source, target in zip(sources, targets, strict=True):
        target.set_weights(source.get_weights())


def _behind(name: str, layers: list) -> list:
    return layers[[layer.name for layer in layers].index(name) + 1 :]
