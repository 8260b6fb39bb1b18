"""A detector's graph with 8-bit weights, from which the network's own weights can be read again.

Every large matrix is stored as whole numbers with a step and a zero point for each output channel,
and DequantizeLinear before its use: a fourth of the size, and the only copy that a detector folder
needs, for scoring and for training on. What is large lies in a file beside the graph, which stays
the same, byte for byte, where only layer norms and the head learn. Weights that lie on such a grid
already, as those do of a network that was started from 8-bit weights and whose layer norms alone
have learned, come back as they were; others are rounded by at most half a step.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from pipeline.common.files import sha256_of
from pipeline.detectors.detector import NUMBERS

FEWEST = 100_000  # numbers in a matrix that is worth it


def pack(graph: Path, state: dict[str, torch.Tensor]) -> None:
    """Rewrite an exported graph with 8-bit weights, each named as in the network's `state`.

    Writes the file NUMBERS beside it. Raises ValueError where the graph holds other weights than
    the `state`, as the exporter makes of batch normalization.
    """
    model = onnx.load(graph)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes, packed = [], []
    for name, value in state.items():
        matrix = value.float().numpy()
        if matrix.ndim != 2 or matrix.size < FEWEST:
            if name not in stored:  # the exporter keeps equal ones once
                packed.append(numpy_helper.from_array(matrix, name))
            elif not np.array_equal(stored[name].ravel(), matrix.ravel()):
                raise ValueError(f"the graph has other numbers for {name} than the network")
            continue
        found = _find(stored, matrix.T)
        steps, zeros, numbers = quantised(matrix)
        for kind, array in (("", numbers.T), (".step", steps), (".zero", zeros)):
            packed.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}{kind}"))
        inputs = [name, f"{name}.step", f"{name}.zero"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [found], axis=1))
        del stored[found]
    packed += [tensor for tensor in model.graph.initializer if tensor.name in stored]
    nodes += model.graph.node
    for field, values in (("initializer", packed), ("node", nodes)):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(values)
    numbers = graph.with_name(NUMBERS)
    numbers.unlink(missing_ok=True)
    onnx.save(
        model,
        graph,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=numbers.name,
        size_threshold=FEWEST,
    )
    numbers.chmod(graph.stat().st_mode)  # onnx would keep it from others
    # With it in the graph, the graph's own checksum tells whether anything is another.
    model = onnx.load(graph, load_external_data=False)
    helper.set_model_props(model, {numbers.name: sha256_of(numbers)})
    onnx.save(model, graph)


def unpack(graph: Path) -> dict[str, torch.Tensor]:
    """The weights in a graph that `pack` has made, float32, under the network's names."""
    arrays = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(graph).graph.initializer
    }
    weights = {}
    for name, array in arrays.items():
        if name.endswith((".step", ".zero")) or name.startswith("val_"):  # val_1, …: the exporter's
            continue
        if f"{name}.step" in arrays:
            steps, zeros = arrays[f"{name}.step"], arrays[f"{name}.zero"].astype(np.float32)
            array = ((array.astype(np.float32) - zeros) * steps).T
        weights[name] = torch.from_numpy(np.array(array))
    return weights


def quantised(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(out, in) float32 → the step (out,) float32 and zero point (out,) uint8 of each output
    channel, and the matrix as (out, in) uint8: (number - zero point) · step."""
    steps, lowest = np.empty(len(matrix), np.float32), np.empty(len(matrix), np.int64)
    for channel, row in enumerate(matrix):
        steps[channel], lowest[channel] = _grid(row)
    numbers = np.rint(matrix / steps[:, None]) - lowest[:, None]
    return steps, (-lowest).astype(np.uint8), np.clip(numbers, 0, 255).astype(np.uint8)


def _grid(row: np.ndarray) -> tuple[np.float32, int]:
    """The step of a grid of at most 256 points, 0 among them, that fits the numbers in `row`, and
    the lowest point as a multiple of it: the grid that they lie on, if there is one."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    between = np.diff(np.unique(np.append(row, 0.0)))
    step = between[between > 1e-3 * between.max(initial=0)].min(initial=np.inf)
    if np.isfinite(step):
        farthest = row[np.abs(row).argmax()]
        step = farthest / np.rint(farthest / step)  # of all the least rounded
        on_grid = np.abs(row / step - np.rint(row / step)).max() < 0.01
        if on_grid and np.rint((high - low) / step) <= 255:
            return np.float32(step), int(np.rint(low / step))
    step = (high - low) / 255 or 1.0
    lowest = int(np.rint(low / step))
    return np.float32(step), max(lowest, -255)


def _find(stored: dict[str, np.ndarray], matrix: np.ndarray) -> str:
    """The name under which torch's exporter has stored a matrix."""
    for name, array in stored.items():
        if array.shape == matrix.shape and (array == matrix).all():
            return name
    raise ValueError(f"the graph has no matrix like this one of {matrix.shape}")
