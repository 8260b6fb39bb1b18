"""A detector's graph as the only copy of its weights: for scoring, and for training on.

An exported graph lacks the names of the network's weights, and has batch normalization multiplied
into the convolution in front of it. Here the names come back, and beside the weights lies what it
takes to read the network's own out of them: by what each channel was multiplied, and what batch
normalization has learned. What scores stays the same, bit for bit.

Where 8 bits are asked for, every large matrix is stored as whole numbers with a step and a zero
point for each output channel, and DequantizeLinear before its use: a fourth of the size. Of a
convolution the graph has a step that scores and one that gives the network's own weights. Weights
that lie on such a grid already, as those do of a network that was started from 8-bit weights and
whose layer norms alone have learned, come back as they were; others are rounded by at most half a
step. Large matrices in 8 bits lie in a file beside the graph, which stays the same, byte for byte,
where only layer norms and the head learn.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

from pipeline.common.files import sha256_of
from pipeline.detectors.detector import NUMBERS

FEWEST = 100_000  # numbers in a matrix that is worth it
FEWEST_OF_CONVOLUTION = 10_000  # the first layers stay exact
# How far the network's own may lie from those in the graph, as a part of the largest.
_ROUNDED = 1e-4


def pack(
    graph: Path, state: Mapping[str, ArrayLike], eight_bits_from: int | None = FEWEST_OF_CONVOLUTION
) -> None:
    """Rewrite an exported graph so that `unpack` gives the network's `state`, whose matrices and
    convolutions have their output channels first, as torch has them.

    Convolutions of at least `eight_bits_from` numbers get 8-bit weights, and matrices of at least
    FEWEST; with None all of them stay as they are. Large matrices go to the file NUMBERS beside the
    graph. Raises ValueError where the graph holds other weights than the `state`.
    """
    model = onnx.load(graph)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    packed: dict[str, np.ndarray] = {}
    nodes, renamed = [], {}
    for name, value in state.items():
        matrix = np.asarray(value)
        if matrix.ndim == 2 and matrix.size >= FEWEST and name not in stored:
            found = _find(stored, matrix.T)
            if eight_bits_from is None:
                packed[f"{name}.turned"] = stored.pop(found)
                renamed[found] = f"{name}.turned"
                continue
            steps, zeros, numbers = quantised(matrix)
            packed |= {name: numbers.T, f"{name}.step": steps, f"{name}.zero": zeros}
            nodes.append(_dequantised(name, found, axis=1))
            del stored[found]
        elif matrix.ndim == 4 and not np.array_equal(stored.get(name), matrix):
            found = name if name in stored else _find_convolution(stored, matrix)
            factors = _folded(name, stored[found], matrix)
            if eight_bits_from is None or matrix.size < eight_bits_from:
                packed[f"{name}.graph"] = stored.pop(found)
                renamed[found] = f"{name}.graph"
                if np.abs(factors).min() > 1e-6 * np.abs(factors).max():
                    packed[f"{name}.factors"] = factors
                else:  # of a channel that is all zeros nothing could be read again
                    packed[f"{name}.own"] = matrix
                continue
            steps, zeros, numbers = quantised(matrix.reshape(len(matrix), -1))
            turned = factors < 0  # a step is positive
            numbers[turned], zeros[turned] = 255 - numbers[turned], 255 - zeros[turned]
            packed |= {
                name: numbers.reshape(matrix.shape),
                f"{name}.step": steps * abs(factors),
                f"{name}.zero": zeros,
                f"{name}.own": np.where(turned, -steps, steps),
            }
            renamed[found] = f"{name}.folded"
            nodes.append(_dequantised(name, renamed[found], axis=0))
            del stored[found]
        elif name not in stored:  # the exporter keeps equal ones once
            packed[name] = matrix
        elif not np.array_equal(stored[name].ravel(), matrix.ravel()):
            raise ValueError(f"the graph has other numbers for {name} than the network")
    whole = [array.size for array in packed.values() if array.ndim == 2 and array.dtype == np.uint8]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in packed.items()
    ]
    tensors += [tensor for tensor in model.graph.initializer if tensor.name in stored]
    nodes += model.graph.node
    for field, values in (("initializer", tensors), ("node", nodes)):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(values)
    # Whose names are the network's: all others in the graph are the exporter's own.
    helper.set_model_props(model, {"state": "\n".join(state)})
    if sum(whole) >= 10 * FEWEST:  # more than a head
        _save_with_numbers(model, graph)
    else:
        onnx.save(model, graph)


def _save_with_numbers(model: onnx.ModelProto, graph: Path) -> None:
    """Write the graph, and what is large in it to the file NUMBERS beside it."""
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
    properties = {each.key: each.value for each in model.metadata_props}
    helper.set_model_props(model, properties | {numbers.name: sha256_of(numbers)})
    onnx.save(model, graph)


def unpack(graph: Path) -> dict[str, np.ndarray]:
    """The weights in a graph that `pack` has made, under the network's names: float32, and whole
    numbers where the network has such."""
    model = onnx.load(graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    noted = {each.key: each.value for each in model.metadata_props}.get("state")
    return {name: _own(name, arrays) for name in (noted.split("\n") if noted else _guessed(arrays))}


def _guessed(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The network's names among a torch graph's, where they are not noted: earlier ones."""
    # val_1, …: the exporter's own; …_bias: of a convolution with its batch normalization.
    others = (".step", ".zero", ".own", ".weight_bias")
    names = [name for name in arrays if not name.endswith(others) and not name.startswith("val_")]
    owned = [name.removesuffix(".own") for name in arrays if name.endswith(".own")]
    return [*dict.fromkeys([*names, *owned])]


def _own(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The network's own weight of this name. Raises KeyError where it is missing."""
    own = arrays.get(f"{name}.own")
    if f"{name}.step" in arrays:
        steps = arrays[f"{name}.step"] if own is None else own
        axis = -1 if own is None else 0
        whole = np.moveaxis(arrays[name], axis, -1).astype(np.float32)
        array = (whole - arrays[f"{name}.zero"].astype(np.float32)) * steps
        return np.moveaxis(array, -1, 0)
    if own is not None:
        return own
    if f"{name}.turned" in arrays:
        return arrays[f"{name}.turned"].T
    if f"{name}.factors" in arrays:
        folded = arrays[f"{name}.graph"]
        return folded / arrays[f"{name}.factors"].reshape(-1, *[1] * (folded.ndim - 1))
    return arrays[name]


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


def _dequantised(name: str, output: str, axis: int) -> onnx.NodeProto:
    inputs = [name, f"{name}.step", f"{name}.zero"]
    return helper.make_node("DequantizeLinear", inputs, [output], axis=axis)


def _folded(name: str, folded: np.ndarray, own: np.ndarray) -> np.ndarray:
    """By what the exporter has multiplied each output channel (out,) of a convolution."""
    factors = _factors(folded, own)
    if factors is None:
        raise ValueError(f"the graph has other numbers for {name} than the network")
    return factors


def _factors(folded: np.ndarray, own: np.ndarray) -> np.ndarray | None:
    """(out,) float32, or None where one is not the other times a factor for each channel."""
    if folded.shape != own.shape:
        return None
    rows, own_rows = (each.reshape(len(own), -1).astype(np.float64) for each in (folded, own))
    factors = (rows * own_rows).sum(1) / np.maximum((own_rows**2).sum(1), 1e-30)
    difference = abs(rows - factors[:, None] * own_rows).max(initial=0)
    if difference > _ROUNDED * abs(rows).max(initial=0):
        return None
    return factors.astype(np.float32)


def _find_convolution(stored: Mapping[str, np.ndarray], own: np.ndarray) -> str:
    """The name under which an exporter that knows no names has stored a convolution."""
    for name, array in stored.items():
        if array.ndim == 4 and _factors(array, own) is not None:
            return name
    raise ValueError(f"the graph has no convolution like this one of {own.shape}")


def _find(stored: Mapping[str, np.ndarray], matrix: np.ndarray) -> str:
    """The name under which an exporter has stored a matrix."""
    for name, array in stored.items():
        if array.shape == matrix.shape and (array == matrix).all():
            return name
    raise ValueError(f"the graph has no matrix like this one of {matrix.shape}")
