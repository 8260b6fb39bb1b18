"""A trained Keras network as what a detector folder holds: the graph and the weights."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np

from models import Architecture
from pipeline.common.files import quiet_stderr
from pipeline.feeding.engine import Trained
from pipeline.keras_engine import backend as keras_backend

keras_backend.choose()
import keras  # noqa: E402 - only now, on the backend that was chosen

WEIGHTS = "model.weights.h5"


def finished(network: keras.Model, architecture: Architecture) -> Trained:
    """A trained Keras network as the last steps want it."""
    keras_backend.compute_exactly()

    def logits(pixels: np.ndarray) -> np.ndarray:
        return network.predict_on_batch(architecture.scaling(pixels))[:, 0]

    return Trained(
        logits,
        export=lambda path: export_graph(network, path),
        save_weights=lambda folder: network.save_weights(folder / WEIGHTS),
        libraries=(keras.backend.backend(), "keras"),
    )


def export_graph(model: keras.Model, path: Path) -> None:
    """Write the network as ONNX: `pixels` (N, size, size, 3) float32 → logits (N, 1) float32."""
    # The exporter talks about its progress on both streams; nothing in it is for a user.
    model(np.zeros((1, *model.input_shape[1:]), np.float32))  # the exporter wants a network in use
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):  # as tensors they would become inputs
            layer.mean, layer.variance = map(
                keras.ops.convert_to_numpy, (layer.mean, layer.variance)
            )
    with (
        quiet_stderr(),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        model.export(path, format="onnx", verbose=False)
