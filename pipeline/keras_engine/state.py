"""A Keras network's weights by name, as a graph that keeps them wants them, and back.

Keras numbers the layers that nobody named by how many of their kind a process has made, so that two
builds of one network differ; here each network counts its own.
"""

from collections.abc import Mapping

import keras
import numpy as np

from models.xception import names_of


def state_of(network: keras.Model) -> dict[str, np.ndarray]:
    """The weights by "layer/weight": matrices (out, in), convolutions (out, in, height, width), all
    others as they are."""
    return {
        f"{name}/{variable.name}": np.transpose(
            keras.ops.convert_to_numpy(variable), _to_output_first(layer, variable)
        )
        for layer, name in names_of(network)
        for variable in layer.weights
    }


def load_state(network: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Put what `state_of` has given into such a network. Raises KeyError where a weight is missing,
    ValueError where one has another shape."""
    for layer, name in names_of(network):
        layer.set_weights(
            [
                np.transpose(
                    np.reshape(state[f"{name}/{variable.name}"], _turned_shape(layer, variable)),
                    np.argsort(_to_output_first(layer, variable)),
                )
                for variable in layer.weights
            ]
        )


def _turned_shape(layer: keras.Layer, variable: keras.Variable) -> tuple[int, ...]:
    return tuple(variable.shape[axis] for axis in _to_output_first(layer, variable))


def _to_output_first(layer: keras.Layer, variable: keras.Variable) -> tuple[int, ...]:
    """The order of a weight's axes in which its output channels come first."""
    if len(variable.shape) == 2:
        return 1, 0
    if len(variable.shape) == 4:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        if depthwise or variable.name == "depthwise_kernel":
            return 2, 3, 0, 1
        return 3, 2, 0, 1
    return tuple(range(len(variable.shape)))
