"""models/xception.py in torch, which a machine with a card can train without Keras.

    python benchmarks/torch_xception.py start starts/xception.safetensors
    python benchmarks/torch_xception.py back card/xception/weights.safetensors xception.weights.h5

The first writes what --init packaged starts from, for on_a_card.py; the second what on_a_card.py
made of it, for train_xception.py --init. Layers have the names that `models.xception.names_of`
gives them.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

EPSILON, MOMENTUM = 1e-3, 0.01  # Keras' 0.99, as torch counts it


class Xception(nn.Module):
    """(N, 3, side, side) in -1…1 → (N, 1) logits of fake."""

    def __init__(self, dropout: float = 0.5):
        super().__init__()
        residuals = 0
        self._convolution("block1_conv1", "block1_conv1_bn", 3, 32, 3, stride=2)
        self._convolution("block1_conv2", "block1_conv2_bn", 32, 64, 3)
        width = 64
        for block, widths in self._blocks():
            for number, out in enumerate(widths, start=1):
                self._separable(f"block{block}_sepconv{number}", width, out)
                width = out
            if block in _HALVED:
                residuals += 1
                self._convolution(
                    f"conv2d_{residuals}",
                    f"batch_normalization_{residuals}",
                    _HALVED[block],
                    width,
                    1,
                    stride=2,
                )
        self.head_dense, self.logit = nn.Linear(2048, 128), nn.Linear(128, 1)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def _blocks() -> list[tuple[int, tuple[int, ...]]]:
        """Each block's number and the widths of its separable convolutions."""
        entry = [(2, (128, 128)), (3, (256, 256)), (4, (728, 728))]
        middle = [(block, (728, 728, 728)) for block in range(5, 13)]
        return [*entry, *middle, (13, (728, 1024)), (14, (1536, 2048))]

    def _convolution(self, name, normalization, width, out, kernel, stride=1) -> None:
        self.add_module(name, nn.Conv2d(width, out, kernel, stride, bias=False))
        self.add_module(normalization, nn.BatchNorm2d(out, EPSILON, MOMENTUM))

    def _separable(self, name: str, width: int, out: int) -> None:
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        pointwise = nn.Conv2d(width, out, 1, bias=False)
        self.add_module(name, nn.Sequential(depthwise, pointwise))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(out, EPSILON, MOMENTUM))

    def _normalized(self, name: str, x: torch.Tensor, normalization: str = "") -> torch.Tensor:
        return getattr(self, normalization or f"{name}_bn")(getattr(self, name)(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self._normalized("block1_conv1", x))
        x = functional.relu(self._normalized("block1_conv2", x))
        residuals = 0
        for block, widths in self._blocks():
            kept = x
            for number in range(1, len(widths) + 1):
                name = f"block{block}_sepconv{number}"
                if 2 < block < 14 or (block == 2 and number > 1):
                    x = functional.relu(x)
                x = self._normalized(name, x)
                if block == 14:
                    x = functional.relu(x)
            if block in _HALVED:
                residuals += 1
                kept = self._normalized(
                    f"conv2d_{residuals}", kept, f"batch_normalization_{residuals}"
                )
                x = functional.max_pool2d(_padded(x), 3, 2)
            if block < 14:
                x = x + kept
        x = x.float().mean((2, 3))
        return self.logit(self.dropout(functional.relu(self.head_dense(x))))


_HALVED = {2: 64, 3: 128, 4: 256, 13: 728}  # block → width of what comes into it


def _padded(x: torch.Tensor) -> torch.Tensor:
    """As Keras pads for a pooling of 3 with a stride of 2: at odd sums, more at the end."""
    pads = []
    for side in (x.shape[3], x.shape[2]):
        total = (-(-side // 2) - 1) * 2 + 3 - side
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads, value=float("-inf"))


def from_keras(model: Any) -> dict[str, torch.Tensor]:
    """The weights of models/xception.py's network for the one here."""
    state = {}
    for layer, names in _layers(model):
        for name, value, weight in zip(names, layer.get_weights(), layer.weights, strict=True):
            state[name] = torch.tensor(_to_torch(value, weight.path.rpartition("/")[2]))
            if name.endswith(".running_var"):
                state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def to_keras(state: dict[str, torch.Tensor], model: Any) -> None:
    """Put weights of the network here into models/xception.py's. Raises KeyError where one is
    missing."""
    for layer, names in _layers(model):
        kinds = [weight.path.rpartition("/")[2] for weight in layer.weights]
        values = [state[name].float().numpy() for name in names]
        layer.set_weights(list(map(_to_keras, values, kinds)))


_OURS = {  # Keras' name of a weight → torch's
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "depthwise_kernel": "0.weight",
    "pointwise_kernel": "1.weight",
}


def _layers(model: Any) -> Iterator[tuple[Any, list[str]]]:
    """The layers of Keras' network that have weights, and these weights' names here."""
    from models.xception import names_of  # Keras, which a machine with a card need not have

    for layer, name in names_of(model):
        yield layer, [f"{name}.{_OURS[weight.path.rpartition('/')[2]]}" for weight in layer.weights]


def _to_torch(value: np.ndarray, kind: str) -> np.ndarray:
    """(height, width, in, out) → (out, in, height, width), in and out the other way round of a
    depthwise kernel; (in, out) → (out, in)."""
    if kind == "depthwise_kernel":
        return value.transpose(2, 3, 0, 1)
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _to_keras(value: np.ndarray, kind: str) -> np.ndarray:
    if kind == "depthwise_kernel":
        return value.transpose(2, 3, 0, 1)
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("start").add_argument("output", type=Path)
    back = steps.add_parser("back")
    back.add_argument("weights", type=Path)
    back.add_argument("output", type=Path)
    args = parser.parse_args()

    os.environ.setdefault("KERAS_BACKEND", "torch")  # which is here, and enough
    from models import ARCHITECTURES
    from pipeline.keras_engine.weights import starting_point

    architecture = ARCHITECTURES["xception"]
    model = architecture.build()
    if args.step == "start":
        starting_point("packaged", architecture).load(model)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: each.contiguous() for name, each in from_keras(model).items()}, args.output
        )
    else:
        to_keras(load_file(args.weights), model)
        model.save_weights(args.output)


if __name__ == "__main__":
    main()
