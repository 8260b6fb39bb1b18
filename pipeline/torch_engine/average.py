"""The moving average of a torch network's weights while it trains."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.torch_engine.weights import owned


class MovingAverage:
    """The moving average of what training changes in a network: the parameters that learn, and the
    statistics of batch normalization (as in torchvision's references).

    `decay` is the share of the old average that a step leaves, from 0 to below 1. After n steps it
    is at most (1 + n) / (10 + n), as in TensorFlow's tf.train.ExponentialMovingAverage; otherwise a
    training of a hundred steps would end with little but the weights that it started from.
    """

    def __init__(self, network: nn.Module, decay: float):
        self._decay = decay
        self._own = {
            name: value for name, value in network.named_parameters() if value.requires_grad
        }
        self._own |= {
            name: value for name, value in network.named_buffers() if value.is_floating_point()
        }
        self._averaged = {name: value.detach().clone() for name, value in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights of a step, counted from 1."""
        average = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))
        average(list(self._averaged.values()), list(self._own.values()), None)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block, the network has the averaged weights; after it, its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def save(self, path: Path) -> None:
        """Write the averaged weights to a .safetensors file."""
        save_file(owned(self._averaged), path)

    def load(self, path: Path) -> None:
        """Go on with what `save` has written."""
        for name, value in load_file(path).items():
            self._averaged[name].copy_(value)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, own in self._own.items():
            kept = own.clone()
            own.copy_(self._averaged[name])
            self._averaged[name].copy_(kept)
