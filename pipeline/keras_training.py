"""Train a Keras network with `fit`: batches, callbacks, and a state that survives kill -9.

Every batch is a function of the seed and its number alone, and everything else that training
depends on is in the state folder that each epoch leaves behind. So a run that was killed and
resumed ends with the same weights, bit for bit, as one that nobody touched.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

# oneDNN's kernels train Meso4 three times as fast on CPUs where TensorFlow leaves them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from models import Architecture
from pipeline.augmentation import Augmentation, augment
from pipeline.dataset import CLASS_NAMES, FAKE, REAL, Dataset, Sample, fingerprint
from pipeline.detector import check_folder
from pipeline.errors import UserError
from pipeline.faces import DEFAULT_MARGIN
from pipeline.files import atomic_write, quiet_stderr, recover_folder, replace_folder
from pipeline.finishing import Trained, finish_training
from pipeline.images import read_image, resize
from pipeline.published import published_file
from pipeline.runs import close_run, open_run, read_history

with quiet_stderr():  # TensorFlow tells at length which devices it has not found
    import keras
    import tensorflow as tf

    tf.config.list_physical_devices()

WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class Recipe:
    """What shapes the trained weights, apart from the network and the data."""

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int  # epochs without a better validation AUC before training stops
    dropout: float
    seed: int
    augmentation: Augmentation
    resize_filter: str


def choose_device(device: str) -> str:
    """Make TensorFlow use `device` ("auto", "cpu" or "cuda") and return the one used, in words.

    GPU memory is taken as needed, not whole. Raises UserError for "cuda" without a GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cuda" and not gpus:
        raise UserError(
            "--device cuda: TensorFlow sees no GPU here; install tensorflow[and-cuda] on a machine "
            "with an NVIDIA GPU, or leave --device at auto"
        )
    if device == "cpu" or not gpus:
        tf.config.set_visible_devices([], "GPU")
        return f"CPU ({os.cpu_count()} cores)"
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return f"GPU ({tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'CUDA')})"


class PictureCache:
    """Decoded pictures as uint8 arrays, kept in memory up to `max_bytes`; any thread may ask.

    `reduce` is applied to each before it is kept. What no longer fits is decoded each time.
    """

    def __init__(self, reduce: Callable[[np.ndarray], np.ndarray], max_bytes: int):
        self._reduce = reduce
        self._free = max_bytes
        self._pictures: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getitem__(self, path: Path) -> np.ndarray:
        """The picture, (height, width, 3) uint8. Raises ImageError if it cannot be read."""
        picture = self._pictures.get(path)
        if picture is None:
            picture = self._reduce(read_image(path))
            with self._lock:
                if path not in self._pictures and picture.nbytes <= self._free:
                    self._free -= picture.nbytes
                    self._pictures[path] = picture
        return picture


class Batches:
    """The training and validation batches of one run.

    `training(first_epoch)` and `validation()` are tf.data datasets of (pixels, label): pixels
    (N, size, size, 3) float32 as the network wants them, label (N, 1) float32, 0 real, 1 fake.
    """

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        train: list[Sample],
        validate: list[Sample],
        workers: int,
        cache_bytes: int,
    ):
        self.steps = max(1, len(train) // recipe.batch_size)
        self._architecture, self._recipe = architecture, recipe
        self._train, self._validate = train, validate
        self._pictures = PictureCache(self._shrink, cache_bytes * 3 // 4)
        self._inputs = PictureCache(self._resize, cache_bytes // 4)
        self._pool = ThreadPoolExecutor(workers)

    def training(self, first_epoch: int) -> tf.data.Dataset:
        """The batches from `first_epoch` (0-based) to the recipe's last, one after another."""
        # tf.data runs a Python step one at a time when operations are deterministic, so the
        # pictures of a batch are shared out to threads inside the step.
        return self._dataset(
            tf.data.Dataset.range(first_epoch * self.steps, self._recipe.epochs * self.steps),
            self._training_batch,
        )

    def validation(self) -> tf.data.Dataset:
        """All validation pictures in order, as scoring would see them."""
        count = -(-len(self._validate) // self._recipe.batch_size)
        return self._dataset(tf.data.Dataset.range(count), self._validation_batch)

    def _dataset(self, numbers: tf.data.Dataset, batch: Callable) -> tf.data.Dataset:
        size, scaling = self._architecture.input_size, self._architecture.scaling

        def load(number):
            pixels, labels = tf.numpy_function(batch, [number], [tf.uint8, tf.float32])
            pixels.set_shape((None, size, size, 3))
            labels.set_shape((None, 1))
            return (tf.cast(pixels, tf.float32) - scaling.mean) / scaling.std, labels

        return numbers.map(load).prefetch(4)

    def _training_batch(self, step: np.int64) -> tuple[np.ndarray, np.ndarray]:
        epoch, position = divmod(int(step), self.steps)
        first = position * self._recipe.batch_size
        order = self._order(epoch)[first : first + self._recipe.batch_size]

        def picture(index: int) -> np.ndarray:
            random = np.random.default_rng((self._recipe.seed, epoch, int(index)))
            return augment(
                self._pictures[self._train[index].path],
                self._architecture.input_size,
                self._recipe.resize_filter,
                self._recipe.augmentation,
                random,
            )

        return self._stack(picture, order, [self._train[index] for index in order])

    @lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._recipe.seed, epoch)).permutation(len(self._train))

    def _validation_batch(self, number: np.int64) -> tuple[np.ndarray, np.ndarray]:
        first = int(number) * self._recipe.batch_size
        samples = self._validate[first : first + self._recipe.batch_size]
        return self._stack(lambda sample: self._inputs[sample.path], samples, samples)

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        # Training crops and resizes further: more than twice the input would be kept for nothing.
        scale = 2 * self._architecture.input_size / max(image.shape[:2])
        if scale >= 1:
            return image
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def _resize(self, image: np.ndarray) -> np.ndarray:
        return resize(image, self._architecture.input_size, self._recipe.resize_filter)

    def _stack(self, picture: Callable, items, samples: list[Sample]):
        labels = np.array([[sample.label] for sample in samples], np.float32)
        return np.stack(list(self._pool.map(picture, items))), labels


def train(
    architecture: Architecture,
    recipe: Recipe,
    batches: Batches,
    run: Path,
    resume: bool,
    start: Callable[[keras.Model], None] | None = None,
) -> keras.Model:
    """Train and return the network with the weights of its best epoch (validation AUC).

    `start` loads the weights to start from into the untrained network; None: from scratch.

    `run` is the folder of the training: `history.jsonl` (one line an epoch), `tensorboard/`, and
    `state/`, from which `resume` goes on.
    """
    keras.utils.set_random_seed(recipe.seed)
    tf.config.experimental.enable_op_determinism()
    model = architecture.build(dropout=recipe.dropout)
    if start:
        start(model)
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                recipe.learning_rate, decay_steps=recipe.epochs * batches.steps, alpha=0.01
            )
        ),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(num_thresholds=2000, from_logits=True, name="auc")],
    )
    early_stopping = keras.callbacks.EarlyStopping("val_auc", mode="max", patience=recipe.patience)
    state = TrainingState(run, early_stopping)
    first_epoch = state.load(model) if resume else 0
    if not state.finished:
        model.fit(
            batches.training(first_epoch),
            validation_data=batches.validation(),
            initial_epoch=first_epoch,
            epochs=recipe.epochs,
            steps_per_epoch=batches.steps,
            shuffle=False,  # the batches already are
            verbose=0,
            callbacks=[
                keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
                early_stopping,
                ProgressBar(recipe.epochs, recipe.batch_size),
                state,
            ],
        )
    model.load_weights(state.best_weights)
    return model


class TrainingState(keras.callbacks.Callback):
    """After each epoch, leaves all that training depends on in `run/state/`, whole or not at all.

    Keras' BackupAndRestore writes its files in place and forgets how long early stopping has been
    waiting, so a run killed at the wrong moment would not come back the same.
    """

    def __init__(self, run: Path, early_stopping: keras.callbacks.EarlyStopping):
        super().__init__()
        self._run = run
        self._folder = run / "state"
        self._early_stopping = early_stopping
        self._history: list[dict] = []
        self._early: dict = {}
        self.finished = False

    @property
    def best_weights(self) -> Path:
        return self._folder / "best.weights.h5"

    def load(self, model: keras.Model) -> int:
        """Bring `model`, its optimizer and early stopping back; return the next epoch (0-based)."""
        recover_folder(self._folder)
        for unfinished in self._run.glob(".state.*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if not self._folder.exists():  # killed before its first epoch was over
            return 0
        state = json.loads((self._folder / "state.json").read_text())
        model.optimizer.build(model.trainable_variables)
        model.load_weights(self._folder / "last.weights.h5")
        for variable, value in zip(_random_states(model), state["random_states"], strict=True):
            variable.assign(value)
        self._history, self._early = state["history"], state["early_stopping"]
        self.finished = state["finished"]
        self._write_history()  # killed just before, it would lack the last epoch
        return len(self._history)

    def on_train_begin(self, logs=None):
        for name, value in self._early.items():  # EarlyStopping has just reset itself
            setattr(self._early_stopping, name, value)

    def on_epoch_begin(self, epoch: int, logs=None):
        self._epoch_start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        logs = {name: float(value) for name, value in logs.items()}
        logs["seconds"] = round(time.perf_counter() - self._epoch_start, 1)
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._history.append({"epoch": epoch + 1, **logs, "learning_rate": rate})
        is_best = self._early_stopping.best_epoch == epoch
        self.finished = self.model.stop_training or epoch + 1 == self.params["epochs"]

        self._run.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".state.", dir=self._run))
        self.model.save_weights(new / "last.weights.h5")
        best = new / "last.weights.h5" if is_best else self.best_weights
        shutil.copyfile(best, new / "best.weights.h5")
        early = {name: getattr(self._early_stopping, name) for name in ("wait", "best_epoch")}
        early["best"] = float(self._early_stopping.best)
        state = {
            "history": self._history,
            "early_stopping": early,
            "random_states": [variable.numpy().tolist() for variable in _random_states(self.model)],
            "finished": self.finished,
        }
        (new / "state.json").write_text(json.dumps(state))
        replace_folder(new, self._folder)
        self._write_history()

    def _write_history(self):
        with atomic_write(self._run / "history.jsonl") as file:
            file.writelines(json.dumps(line) + "\n" for line in self._history)


def _random_states(model: keras.Model) -> list[keras.Variable]:
    """The variables from which dropout draws; Keras leaves them out of its weights files."""
    return [
        layer.seed_generator.state for layer in model.layers if hasattr(layer, "seed_generator")
    ]


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
    with (
        quiet_stderr(),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        model.export(path, format="onnx", verbose=False)


def train_detector(
    args: argparse.Namespace,
    architecture: Architecture,
    augmentation: Augmentation,
    dataset: Dataset,
    audit: dict,
    output: Path,
) -> None:
    """Train on an audited dataset as the script's arguments say, and write the detector folder."""
    for split, samples in (("train", dataset.train), ("validate", dataset.validate)):
        for label, name in enumerate(CLASS_NAMES):
            if not any(sample.label == label for sample in samples):
                raise UserError(
                    f"{dataset.root}: not one {name} picture to {split} with can be read; the "
                    "audit above says why."
                )
    recipe = Recipe(
        args.epochs,
        args.batch_size,
        args.learning_rate,
        args.patience,
        args.dropout,
        args.seed,
        augmentation,
        resize_filter="area",
    )
    start, load_start = starting_point(args.init, architecture)
    device = choose_device(args.device)
    print(f"Training {architecture.name} on {device}, start: {start}.", file=sys.stderr)
    settings = {
        "architecture": architecture.name,
        "start": start,
        **asdict(recipe),
        "fingerprint": fingerprint(dataset.train + dataset.validate),
    }
    arguments = asdict(recipe)
    arguments |= arguments.pop("augmentation")
    run = open_run(output, settings, args.resume)
    with atomic_write(run / "audit.json") as file:
        json.dump(audit, file, indent=1)
    batches = Batches(
        architecture, recipe, dataset.train, dataset.validate, args.workers, _memory() // 3
    )
    model = train(architecture, recipe, batches, run, args.resume, load_start)
    history = read_history(run)
    labels = [sample.label for sample in dataset.train]
    description = finish_training(
        finished_network(model, architecture),
        architecture,
        recipe.resize_filter,
        DEFAULT_MARGIN,
        dataset.validate,
        args.threshold_rule,
        {
            "start": start,
            "arguments": arguments,
            "data": dataset.root.resolve().name,
            "data_licence": args.data_licence,
            "fingerprint": settings["fingerprint"],
            "images": {"real": labels.count(REAL), "fake": labels.count(FAKE)},
            "epochs_run": len(history),
            "best_epoch": max(history, key=lambda line: line["val_auc"])["epoch"],
            "minutes": sum(line["seconds"] for line in history) / 60,
            "device": device,
        },
        run,
        output,
    )
    close_run(run)
    metrics = description["metrics"]
    print(
        f"{output}: validation AUC {metrics['auc']:.3f}; at the threshold "
        f"{metrics['recall_fake']:.1%} of the fakes found, {1 - metrics['recall_real']:.1%} of the "
        "real faces called fake."
    )


def finished_network(model: keras.Model, architecture: Architecture) -> Trained:
    """A trained Keras network as the last steps want it, without its optimizer."""
    network = architecture.build()
    network.set_weights(model.get_weights())
    scaling = architecture.scaling

    def logits(pixels: np.ndarray) -> np.ndarray:
        scaled = (pixels.astype(np.float32) - scaling.mean) / scaling.std
        return network(scaled.astype(np.float32), training=False).numpy()[:, 0]

    return Trained(
        logits,
        export=lambda path: export_graph(network, path),
        save_weights=lambda folder: network.save_weights(folder / WEIGHTS),
    )


def starting_point(
    init: str, architecture: Architecture
) -> tuple[str, Callable[[keras.Model], None] | None]:
    """What `--init` means: (a label for the model card, what loads the weights).

    "none" is from scratch; otherwise a detector folder of the same architecture, or one of
    MesoNet's published .h5 files. Raises UserError for anything else.
    """
    if init == "none":
        return "scratch", None
    path = Path(init)
    if path.suffix == ".h5":
        from models.meso import load_published_weights

        name, published = published_file(path)
        _require_same(published, architecture, path)
        return f"published {name}", lambda model: load_published_weights(model, path)
    if not path.exists():
        raise UserError(f"--init {init}: there is no such file or folder; `none` is from scratch.")
    description = check_folder(path)
    _require_same(description["architecture"], architecture, path)
    return f"detector {description['name']}", lambda model: model.load_weights(path / WEIGHTS)


def _memory() -> int:
    """Bytes of memory in this machine; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return 8 << 30


def _require_same(found: str, architecture: Architecture, path: Path) -> None:
    if found != architecture.name:
        raise UserError(f"--init {path}: this is a {found}, not a {architecture.name}.")
