"""A trained torch network as what a detector folder holds: the graph, the weights, the adapter."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from torch import nn

from models import Architecture
from pipeline.common.files import quiet_stderr
from pipeline.feeding.engine import Trained
from pipeline.torch_engine.tuning import plain, save_adapter
from pipeline.torch_engine.weights import WEIGHTS, owned


def finished(tuned: nn.Module, architecture: Architecture) -> Trained:
    """A trained network as the last steps want it, its adapter merged."""
    network = plain(tuned, architecture).eval()

    @torch.inference_mode()
    def logits(pixels: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy(architecture.scaling(pixels)).permute(0, 3, 1, 2)
        return network(scaled).float().numpy()[:, 0]

    def save_weights(folder: Path) -> None:
        save_file(owned(network.state_dict()), folder / WEIGHTS)
        save_adapter(tuned, folder)

    return Trained(
        logits,
        export=lambda path: export_graph(network, architecture.input_size, path),
        save_weights=save_weights,
        libraries=("torch", "timm", "transformers", "peft", "accelerate"),
    )


def export_graph(network: nn.Module, size: int, path: Path) -> None:
    """Write the network as ONNX: `pixels` (N, 3, size, size) float32 → `logits` (N, 1) float32."""
    with quiet_stderr(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 3, size, size),),
            path,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _forget_the_machine(path)


def _forget_the_machine(path: Path) -> None:
    """Take out of a graph the notes of torch's exporter: with each node come the paths of the files
    on this machine that it was made by."""
    model = onnx.load(path)
    parts = [model, model.graph, *model.functions]
    for graph in (model.graph, *model.functions):
        parts += [*graph.node, *graph.value_info]
    parts += [*model.graph.input, *model.graph.output, *model.graph.initializer]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)
