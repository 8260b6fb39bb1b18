"""Xception with the head that all Keras networks with a backbone share.

Chollet: "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017; the detector
of FaceForensics++ (Rössler et al., ICCV 2019). The backbone is keras.applications'.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping

import keras
import numpy as np
from keras import layers

HEAD = ("head_pool", "head_dense", "head_dropout", "logit")


def xception(dropout: float = 0.5, size: int = 256) -> keras.Model:
    """(N, size, size, 3) in -1…1 → (N, 1) logits of fake. `imagenet_weights` fills it."""
    backbone = keras.applications.Xception(
        weights=None, include_top=False, input_shape=(size, size, 3)
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


def fill_from_packaged(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Put the backbone of NudeNet's classifier, by the names in its graph, into a network of this
    file.

    It is keras.applications' Xception with ImageNet's start, fine-tuned on pixels in 0…1. Here they
    are in -1…1; a factor in the first kernel and a shift of the mean that the normalization behind
    it takes off make that the same. Raises KeyError where a weight is missing.
    """
    named = {name.split("/read__")[0]: value for name, value in weights.items()}
    for layer, name in names_of(model):
        if layer.name not in HEAD:
            layer.set_weights([_to_keras(named, name, weight.name) for weight in layer.weights])
    first, normalization = model.get_layer("block1_conv1"), model.get_layer("block1_conv1_bn")
    (kernel,) = first.get_weights()
    gamma, beta, mean, variance = normalization.get_weights()
    first.set_weights([kernel / 2])
    normalization.set_weights([gamma, beta, mean - kernel.sum(axis=(0, 1, 2)) / 2, variance])


def _to_keras(weights: Mapping[str, np.ndarray], layer: str, name: str) -> np.ndarray:
    """One weight, its axes in Keras' order."""
    value = weights[f"{layer}/{name}"]
    if value.ndim < 4:
        return value
    return (
        value.transpose(2, 3, 0, 1) if name == "depthwise_kernel" else value.transpose(2, 3, 1, 0)
    )


def names_of(model: keras.Model) -> list[tuple[keras.Layer, str]]:
    """The layers with weights and their names. Keras has numbered those that have none of their own
    by how many it had made before; here they are counted from one in each network."""
    counted, named = Counter(), []
    for layer in model.layers:
        name = layer.name
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        if re.fullmatch(rf"{kind}(_\d+)?", name):
            counted[kind] += 1
            name = f"{kind}_{counted[kind]}"
        if layer.weights:
            named.append((layer, name))
    return named
