"""Train a Keras network with `fit`: stages, callbacks, and a state that survives kill -9.

Every batch is a function of the seed and its number alone, what dropout draws one of the seed and
the epoch, and everything else that training depends on is in the state folder that each epoch
leaves behind. So a run that was killed and resumed ends with the same weights, bit for bit, as one
that nobody touched.

Where several processes train together, the first alone reads and writes files and speaks.
"""

import contextlib
import importlib
import io
import json
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from models import Architecture, PixelScaling
from pipeline import keras_backend
from pipeline.batches import Batches
from pipeline.dataset import Dataset
from pipeline.detector import as_start, check_folder
from pipeline.errors import UserError
from pipeline.files import atomic_write, quiet_stderr, recover_folder, replace_folder
from pipeline.finishing import Trained
from pipeline.published import find_published
from pipeline.training import Recipe as CommonRecipe
from pipeline.training import StartingPoint

keras_backend.choose()
import keras  # noqa: E402 - only now, on the backend that was chosen

with keras_backend.alone():  # it imports torch, for functions that are not called here
    from tensorboardX import SummaryWriter

from models.published import load_reversed  # noqa: E402
from models.xception import HEAD  # noqa: E402

WEIGHTS = "model.weights.h5"

_PREPARED = 3  # batches that are made ready while the network computes
_device = "a device that nobody chose"


@dataclass(frozen=True)
class Recipe(CommonRecipe):
    """What shapes the trained weights of a Keras network.

    From weights that it starts with: for `head_epochs` epochs only the head is trained, at
    `head_learning_rate`; then all of it, but with the batch normalization that it started with, at
    `learning_rate`. From scratch there is nothing to keep: all of it is trained in all epochs, at
    `learning_rate`. The rates fall as cosines.
    """

    head_epochs: int = 0
    head_learning_rate: float = 1e-3


def use(device: str) -> None:
    """Train on `device`: "auto", "cpu" or "cuda". Raises UserError where it is not there."""
    global _device
    _device = keras_backend.use(device)


def device_in_words() -> str:
    """Where training happens, as `use` set it."""
    return _device


def devices() -> int:
    """How many devices share each step, in all processes."""
    return keras_backend.local_devices() * keras_backend.world()


def train(
    architecture: Architecture,
    recipe: Recipe,
    dataset: Dataset,
    start: StartingPoint,
    run: Path,
    resume: bool,
    workers: int,
    cache_bytes: int | None = None,
) -> Trained:
    """Train and return the network with the weights of its best epoch (validation AUC).

    `run` is the folder of the training: `history.jsonl` (one line an epoch), `tensorboard/`, and
    `state/`, from which `resume` goes on.
    """
    batches = Batches(
        architecture,
        recipe.augmentation,
        recipe.resize_filter,
        recipe.seed,
        recipe.batch_size * keras_backend.local_devices(),
        dataset.train,
        dataset.validate,
        workers,
        cache_bytes,
        keras_backend.rank(),
        keras_backend.world(),
        self_blended=recipe.self_blended,
        balance=recipe.balance,
        label_smoothing=recipe.label_smoothing,
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
    )
    model = fit(architecture, recipe, batches, start, run, resume)
    return finished_network(model, architecture)


def fit(
    architecture: Architecture,
    recipe: Recipe,
    batches: Batches,
    start: StartingPoint,
    run: Path,
    resume: bool,
) -> keras.Model:
    """As `train`, on batches that are there already; returns the Keras network, in 32 bits."""
    keras_backend.seed(recipe.seed)
    keras_backend.make_deterministic()
    with keras_backend.scope(), _precision(recipe.precision):
        model = architecture.build(dropout=recipe.dropout)
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
    if keras_backend.rank() == 0:
        bar = ProgressBar(recipe.epochs, batches.batch_size * keras_backend.world())
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
        keras_backend.copy_first([*model.variables, *model.optimizer.variables])
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
    if keras_backend.rank() == 0:
        model = architecture.build()  # without an optimizer, whatever the precision and devices
        model.load_weights(state.best_weights)
    return model


def _stages(recipe: Recipe, pretrained: bool) -> list[tuple[int, int, float]]:
    """(first epoch, the epoch after the last, learning rate) of the head alone and of all."""
    head, epochs = min(recipe.head_epochs, recipe.epochs), recipe.epochs
    if head and not pretrained:
        if keras_backend.rank() == 0:
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


class TrainingState(keras.callbacks.Callback):
    """After each epoch, leaves all that training depends on in `run/state/`, whole or not at all.

    Keras' BackupAndRestore writes its files in place and forgets how long early stopping has been
    waiting, so a run killed at the wrong moment would not come back the same.
    """

    def __init__(self, run: Path, early_stopping: keras.callbacks.EarlyStopping, recipe: Recipe):
        super().__init__()
        self._run = run
        self._folder = run / "state"
        self._early_stopping = early_stopping
        self._recipe = recipe
        self._history: list[dict] = []
        self._early: dict = {}
        self.finished = False
        self._board = SummaryWriter(str(run / "tensorboard")) if keras_backend.rank() == 0 else None

    @property
    def best_weights(self) -> Path:
        return self._folder / "best.weights.h5"

    def find(self) -> int:
        """Read how far the training of this run is; return the next epoch (0-based)."""
        state = keras_backend.said_by_first(self._read() if keras_backend.rank() == 0 else None)
        if state is None:  # killed before its first epoch was over
            return 0
        self._history, self._early = state["history"], state["early_stopping"]
        self.finished = state["finished"]
        if keras_backend.rank() == 0:
            self._write_history()  # killed just before, it would lack the last epoch
        return len(self._history)

    def load(self, model: keras.Model) -> None:
        """Bring a network, with its optimizer once it is compiled, back to where `find` found it;
        in the first of several processes."""
        if model.compiled:
            model.optimizer.build(model.trainable_variables)
        if keras_backend.rank() == 0:
            model.load_weights(self._folder / "last.weights.h5")

    def on_train_begin(self, logs=None):
        for name, value in self._early.items():  # EarlyStopping has just reset itself
            setattr(self._early_stopping, name, value)

    def on_epoch_begin(self, epoch: int, logs=None):
        self._epoch, self._epoch_start = epoch, time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs=None):
        if batch == 0:  # not earlier: what loads the batches may draw, too, before the first
            self._seed_dropout()

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        logs = {name: float(value) for name, value in logs.items()}
        if not np.isfinite(logs["val_loss"]):
            raise UserError(
                f"epoch {epoch + 1}: the loss is no longer a number; try a lower --learning-rate."
            )
        target = self._recipe.target_accuracy
        if target is not None and logs["val_accuracy"] >= target:
            self.model.stop_training = True
        # On unlike machines the figures could differ in their last digits.
        self.model.stop_training = keras_backend.said_by_first(self.model.stop_training)
        logs["seconds"] = round(time.perf_counter() - self._epoch_start, 1)
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._history.append({"epoch": epoch + 1, **logs, "learning_rate": rate})
        self._early = {name: getattr(self._early_stopping, name) for name in ("wait", "best_epoch")}
        self._early["best"] = float(self._early_stopping.best)
        self.finished = self.model.stop_training or epoch + 1 == self._recipe.epochs
        if keras_backend.rank() == 0:
            self._save(is_best=self._early_stopping.best_epoch == epoch)
            for name, value in self._history[-1].items():
                self._board.add_scalar(name, value, epoch + 1)
            if self.finished:
                self._board.close()  # its own thread writes, for which the end does not wait

    def _seed_dropout(self):
        # It draws from these variables, but on torch for the most part from torch's own source.
        layers = [layer for layer in self.model.layers if hasattr(layer, "seed_generator")]
        source = np.random.SeedSequence((self._recipe.seed, self._epoch, keras_backend.rank()))
        first, *others = (int(drawn) >> 2 for drawn in source.generate_state(1 + len(layers)))
        keras_backend.seed(first)
        for layer, drawn in zip(layers, others, strict=True):
            layer.seed_generator.state.assign([drawn, 0])

    def _read(self) -> dict | None:
        recover_folder(self._folder)
        for unfinished in self._run.glob(".state.*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        path = self._folder / "state.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _save(self, is_best: bool):
        self._run.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".state.", dir=self._run))
        self.model.save_weights(new / "last.weights.h5")
        best = new / "last.weights.h5" if is_best else self.best_weights
        shutil.copyfile(best, new / "best.weights.h5")
        state = {
            "history": self._history,
            "early_stopping": self._early,
            "finished": self.finished,
        }
        (new / "state.json").write_text(json.dumps(state))
        replace_folder(new, self._folder)
        self._write_history()

    def _write_history(self):
        with atomic_write(self._run / "history.jsonl") as file:
            file.writelines(json.dumps(line) + "\n" for line in self._history)


class ProgressBar(keras.callbacks.Callback):
    """One line an epoch: loss, AUC, images a second and the time left."""

    def __init__(self, epochs: int, batch_size: int):
        super().__init__()
        self._epochs, self._batch_size = epochs, batch_size

    def on_epoch_begin(self, epoch: int, logs=None):
        self._bar = tqdm(
            total=self.params["steps"] * self._batch_size,
            desc=f"epoch {epoch + 1}/{self._epochs}",
            unit=" images",
            file=sys.stderr,
        )

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        self._bar.update(self._batch_size)
        if batch % 10 == 0:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", auc=f"{logs['auc']:.3f}")

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in logs.items()})
        self._bar.close()


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


def finished_network(network: keras.Model, architecture: Architecture) -> Trained:
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


def starting_point(init: str, architecture: Architecture) -> StartingPoint:
    """What `--init` means for a Keras network.

    "none" is from scratch, "imagenet" keras.applications' weights; otherwise a detector folder of
    the same architecture, or an .h5 file as in published.py. Raises UserError for anything else,
    and where ImageNet's weights cannot be had.
    """
    if init == "none":
        return StartingPoint("scratch", None)
    if keras_backend.rank() > 0:
        return StartingPoint(init, lambda model: None)  # `fit` gives it the first one's weights
    if init == "imagenet":
        return _imagenet(architecture)
    path = Path(init)
    if path.suffix == ".h5":
        published = find_published(path)
        _require_same(published.architecture.name, architecture, path)
        if published.architecture.scaling != architecture.scaling:
            raise UserError(
                f"--init {path}: it learned from pixels on another scale than {architecture.name} "
                "is fed here: score with it, but start from other weights."
            )
        return StartingPoint(
            f"published {published.name}", lambda model: load_reversed(model, path)
        )
    if not path.exists():
        raise UserError(f"--init {init}: there is no such file or folder; `none` is from scratch.")
    description = check_folder(path)
    _require_same(description["architecture"], architecture, path)
    return StartingPoint(as_start(description), lambda model: model.load_weights(path / WEIGHTS))


def _imagenet(architecture: Architecture) -> StartingPoint:
    module = importlib.import_module(architecture.builder.split(":")[0])
    if not hasattr(module, "load_imagenet"):
        raise UserError(
            f"--init imagenet: nobody has trained {architecture.name} on ImageNet; use none, or "
            "the path of weights."
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):
            backbone = module.imagenet_backbone()
    except Exception as error:  # Keras raises a bare Exception where a download fails
        address = re.search(r"https?://\S+?(?=:? |$)", str(error))
        if address is None:
            raise
        raise UserError(
            f"--init imagenet: the weights at {address[0]} cannot be fetched from here; fetch them "
            "elsewhere and put the file into ~/.keras/models/, or start from other weights (--init "
            "PATH) or from scratch (--init none)."
        ) from None
    return StartingPoint("ImageNet", lambda model: module.load_imagenet(model, backbone))


def _require_same(found: str, architecture: Architecture, path: Path) -> None:
    if found != architecture.name:
        raise UserError(f"--init {path}: this is a {found}, not a {architecture.name}.")
