"""What a training engine must offer, and what it shares with all that comes before and after it.

An engine trains networks of one framework: keras_training.KerasEngine, torch_training.TorchEngine.
Engines import this file and never training.py, which chooses among them.

Several processes may train together, started by torchrun or `accelerate launch`, which tell each by
RANK and WORLD_SIZE in its environment which it is. The first alone writes files and prints.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from models import Architecture
from pipeline.common.errors import UserError
from pipeline.data.dataset import Dataset
from pipeline.feeding.augmentation import Augmentation


@dataclass(frozen=True)
class Recipe:
    """What shapes the trained weights, apart from the network and the data. Engines add to it."""

    epochs: int
    batch_size: int  # on each device
    learning_rate: float
    patience: int  # epochs without a better validation AUC before training stops
    dropout: float
    seed: int
    precision: str  # "auto", "fp32" or "bf16"
    target_accuracy: float | None  # training stops once the validation accuracy reaches it
    augmentation: Augmentation
    resize_filter: str
    self_blended: float = 0.0  # for these five see batches.Batches
    balance: str = "none"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    teacher: str | None = None  # a detector folder, see teacher.py
    alike: str = "none"  # or "group": pictures of one group are changed alike
    resolution: int | None = None  # of the pictures, where smaller than the network's input

    def check(self, architecture: Architecture) -> None:
        """Raise UserError, at once, where this network cannot be trained so."""
        size = architecture.input_size
        if self.resolution and not (architecture.any_size and 32 <= self.resolution <= size):
            raise UserError(
                f"--resolution {self.resolution}: {architecture.name} can be trained on pictures "
                + (
                    f"of 32 to {size} pixels."
                    if architecture.any_size
                    else f"of {size} pixels only."
                )
            )


@dataclass(frozen=True)
class StartingPoint:
    """What training starts from: a label for the model card, and what puts the weights into a
    network of the engine's kind; None: from scratch. `adapter` is the folder of a LoRA adapter
    that has been merged into the weights."""

    label: str
    load: Callable[[Any], None] | None
    adapter: Path | None = None


@dataclass(frozen=True)
class Plan:
    """Which network is to be trained, by which recipe, from where."""

    architecture: Architecture
    recipe: Recipe
    start: StartingPoint

    @classmethod
    def of(
        cls,
        engine: "Engine",
        architecture: Architecture,
        settings: dict[str, Any],
        init: str,
        fake_labels: Sequence[str] = (),
    ) -> Self:
        """Of a recipe's settings and what `--init` and `--fake-label` name. Raises UserError where
        it cannot be."""
        recipe = engine.recipe_type(**settings)
        recipe.check(architecture)
        return cls(architecture, recipe, engine.starting_point(init, architecture, fake_labels))


@dataclass(frozen=True)
class Trained:
    """A trained network of any framework.

    `logits` (N, size, size, 3) uint8 → (N,) logits of fake; `export` writes the graph as ONNX;
    `save_weights` writes what training can go on from, into a folder; `libraries` are the packages
    whose versions matter.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    export: Callable[[Path], None]
    save_weights: Callable[[Path], None]
    libraries: tuple[str, ...]


class Engine(Protocol):
    """Trains networks of one framework on one kind of device, which it is made for.

    Made with "auto", "cpu" or "cuda"; raises UserError where that device is not there.
    """

    recipe_type: type[Recipe]

    def device_in_words(self) -> str:
        """Where training happens, for people."""

    def devices(self) -> int:
        """How many devices share each step, in all processes."""

    def starting_point(
        self, init: str, architecture: Architecture, fake_labels: Sequence[str] = ()
    ) -> StartingPoint:
        """What `--init` means: "none", "imagenet", or where weights are, whose classes named
        `fake_labels` mean fake.

        Raises UserError for anything else, and where the weights are not there or do not fit.
        """

    def train(
        self, plan: Plan, dataset: Dataset, run: Path, *, resume: bool, workers: int
    ) -> Trained:
        """Train and return the network with the weights of its best epoch (validation AUC).

        `run` is the folder of the training. Each epoch leaves a line in its `history.jsonl`, logs
        in `tensorboard/`, and a state from which `resume` goes on to the same weights, bit for bit,
        after kill -9. `workers` is how many threads prepare pictures.
        """


def rank() -> int:
    """Which of the processes that train together this is, from 0."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_process() -> bool:
    """Whether this process is the one of all that train together which writes and prints."""
    return rank() == 0
