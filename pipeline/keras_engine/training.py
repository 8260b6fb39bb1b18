"""Train a Keras network with `fit`: stages, callbacks, and a state that survives kill -9.

Every batch is a function of the seed and its number alone, what dropout draws one of the seed and
the epoch, and everything else that training depends on is in the state folder that each epoch
leaves behind. So a run that was killed and resumed ends with the same weights, bit for bit, as one
that nobody touched.

Where several processes train together, the first alone reads and writes files and speaks.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models import Architecture, PixelScaling
from pipeline.data.dataset import Dataset
from pipeline.feeding.batches import Batches, Share
from pipeline.feeding.engine import (
    Plan,
    Recipe,
    StartingPoint,
    Trained,
    is_first_process,
    rank,
    world_size,
)
from pipeline.keras_engine import backend as keras_backend
from pipeline.keras_engine.callbacks import ProgressBar, TrainingState
from pipeline.keras_engine.export import finished
from pipeline.keras_engine.weights import starting_point

keras_backend.choose()
import keras  # noqa: E402 - only now, on the backend that was chosen

from models.xception import HEAD  # noqa: E402

_PREPARED = 3  # batches that are made ready while the network computes


@dataclass(frozen=True)
class KerasRecipe(Recipe):
    """What shapes the trained weights of a Keras network.

    From weights that it starts with: for `head_epochs` epochs only the head is trained, at
    `head_learning_rate`; then all of it, but with the batch normalization that it started with, at
    `learning_rate`. From scratch there is nothing to keep: all of it is trained in all epochs, at
    `learning_rate`. The rates fall as cosines.
    """

    head_epochs: int = 0
    head_learning_rate: float = 1e-3


class KerasEngine:
    """Trains Keras networks; see engine.Engine."""

    recipe_type = KerasRecipe

    def __init__(self, device: str = "auto"):
        self._where = keras_backend.use(device)

    def device_in_words(self) -> str:
        return self._where

    def devices(self) -> int:
        return keras_backend.local_devices() * world_size()

    def starting_point(
        self, init: str, architecture: Architecture, fake_labels: Sequence[str] = ()
    ) -> StartingPoint:
        return starting_point(init, architecture, fake_labels)

    def train(
        self, plan: Plan, dataset: Dataset, run: Path, *, resume: bool, workers: int
    ) -> Trained:
        batches = Batches(plan.architecture, plan.recipe, dataset, workers, share())
        return finished(fit(plan, batches, run, resume), plan.architecture)


def share() -> Share:
    """Which part of every step this process takes, with all of its devices."""
    return Share(rank(), world_size(), keras_backend.local_devices())


def fit(plan: Plan, batches: Batches, run: Path, resume: bool) -> keras.Model:
    """As KerasEngine.train, on batches that are there already; the Keras network, in 32 bits."""
    architecture, recipe, start = plan.architecture, plan.recipe, plan.start
    keras_backend.seed(recipe.seed)
    keras_backend.make_deterministic()
    with keras_backend.scope(), _precision(recipe.precision):
        size = {"size": recipe.resolution} if recipe.resolution else {}
        model = architecture.build(dropout=recipe.dropout, **size)
    if start.load:
        start.load(model)
    keras_backend.average_gradients(model)
    early_stopping = keras.callbacks.EarlyStopping("val_auc", mode="max", patience=recipe.patience)
    state = TrainingState(run, early_stopping, recipe)
    first_epoch = state.find() if resume else 0
    if first_epoch:
        state.load(model)
    validation = _Sequence(batches.validation, batches.validation_steps, architecture.scaling)
    callbacks = [
        # Each process has normalized other pictures.
        keras.callbacks.LambdaCallback(
            on_test_begin=lambda logs=None: keras_backend.average(model.non_trainable_weights)
        ),
        early_stopping,
        state,
    ]
    if is_first_process():
        bar = ProgressBar(recipe.epochs, batches.batch_size * world_size())
        callbacks.insert(-1, bar)
    for begin, end, rate in _stages(recipe, pretrained=bool(start.load)):
        if state.finished or first_epoch >= end:
            continue
        only_the_head = bool(start.load) and end <= recipe.head_epochs
        _choose_layers(model, only_the_head, pretrained=bool(start.load))
        with keras_backend.scope():
            _compile(model, rate, steps=(end - begin) * batches.steps)
        if first_epoch > begin:
            state.load(model)  # now with the optimizer, in the middle of its stage
        keras_backend.broadcast_from_rank0([*model.variables, *model.optimizer.variables])
        model.fit(
            _Sequence(
                batches.training,
                (end - first_epoch) * batches.steps,
                architecture.scaling,
                first=first_epoch * batches.steps,
            ),
            validation_data=validation,
            initial_epoch=first_epoch,
            epochs=end,
            steps_per_epoch=batches.steps,
            shuffle=False,  # the batches already are
            verbose=0,
            callbacks=callbacks,
        )
        first_epoch = end
    if is_first_process():
        model = architecture.build()  # without an optimizer, whatever the precision and devices
        model.load_weights(state.best_weights)
    return model


def _stages(recipe: KerasRecipe, pretrained: bool) -> list[tuple[int, int, float]]:
    """(first epoch, the epoch after the last, learning rate) of the head alone and of all."""
    head, epochs = min(recipe.head_epochs, recipe.epochs), recipe.epochs
    if head and not pretrained:
        if is_first_process():
            print("From scratch: no epochs for the head alone.", file=sys.stderr)
        head = 0
    stages = [(0, head, recipe.head_learning_rate), (head, epochs, recipe.learning_rate)]
    return [stage for stage in stages if stage[0] < stage[1]]


def _choose_layers(model: keras.Model, only_the_head: bool, pretrained: bool) -> None:
    """Set which layers learn. The statistics of a pretrained backbone's batch normalization come
    from far more pictures than any of ours, so these layers stay as they are."""
    has_backbone = any(layer.name == HEAD[0] for layer in model.layers)
    for layer in model.layers:
        normalizes = isinstance(layer, keras.layers.BatchNormalization)
        fixed = only_the_head or (pretrained and normalizes)
        layer.trainable = not (has_backbone and fixed and layer.name not in HEAD)


def _compile(model: keras.Model, learning_rate: float, steps: int) -> None:
    rates = keras.optimizers.schedules.CosineDecay(learning_rate, decay_steps=steps, alpha=0.01)
    model.compile(
        optimizer=keras.optimizers.Adam(rates),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[
            _of_labels(keras.metrics.AUC)(num_thresholds=2000, from_logits=True, name="auc"),
            _of_labels(keras.metrics.BinaryAccuracy)(threshold=0.0, name="accuracy"),
        ],
    )


def _of_labels(metric: type) -> type:
    """A metric that takes what is smoothed or mixed for what it mostly is: real or fake."""

    class OfLabels(metric):
        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(y_true > 0.5, y_pred, sample_weight)

    return OfLabels


@contextlib.contextmanager
def _precision(precision: str):
    """What layers built in this block compute in; their variables stay 32 bits wide."""
    # On a CPU, B0 is slower in bfloat16 and Xception hardly faster: it is not chosen unasked.
    before = keras.mixed_precision.dtype_policy()
    name = "mixed_bfloat16" if precision == "bf16" else "float32"
    keras.mixed_precision.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


class _Sequence(keras.utils.PyDataset):
    """Batches as `fit` wants them, prepared in a thread while the network computes.

    Keras' own threads start again from the first batch in each epoch, and this one goes through
    all epochs of a stage.
    """

    def __init__(self, batch: Callable, count: int, scaling: PixelScaling, first: int = 0):
        super().__init__()
        self._batch, self._count, self._scaling, self._first = batch, count, scaling, first
        self._thread = ThreadPoolExecutor(1)
        self._prepared: dict[int, Future] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        for coming in range(number, min(number + 1 + _PREPARED, self._count)):
            if coming not in self._prepared:
                self._prepared[coming] = self._thread.submit(self._prepare, coming)
        return self._prepared.pop(number).result()

    def _prepare(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = self._batch(self._first + number)
        return self._scaling(pixels), labels
