"""What a Keras training leaves behind after each epoch, and what it shows meanwhile."""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write, recover_folder, replace_folder
from pipeline.feeding.engine import Recipe, is_first_process, rank
from pipeline.keras_engine import backend as keras_backend

keras_backend.choose()
import keras  # noqa: E402 - only now, on the backend that was chosen

with keras_backend.alone():  # it imports torch, for functions that are not called here
    from tensorboardX import SummaryWriter


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
        self._board = SummaryWriter(str(run / "tensorboard")) if is_first_process() else None

    @property
    def best_weights(self) -> Path:
        return self._folder / "best.weights.h5"

    def find(self) -> int:
        """Read how far the training of this run is; return the next epoch (0-based)."""
        state = keras_backend.broadcast_object_from_rank0(
            self._read() if is_first_process() else None
        )
        if state is None:  # killed before its first epoch was over
            return 0
        self._history, self._early = state["history"], state["early_stopping"]
        self.finished = state["finished"]
        if is_first_process():
            self._write_history()  # killed just before, it would lack the last epoch
        return len(self._history)

    def load(self, model: keras.Model) -> None:
        """Bring a network, with its optimizer once it is compiled, back to where `find` found it;
        in the first of several processes."""
        if model.compiled:
            model.optimizer.build(model.trainable_variables)
        if is_first_process():
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
        self.model.stop_training = keras_backend.broadcast_object_from_rank0(
            self.model.stop_training
        )
        logs["seconds"] = round(time.perf_counter() - self._epoch_start, 1)
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._history.append({"epoch": epoch + 1, **logs, "learning_rate": rate})
        self._early = {name: getattr(self._early_stopping, name) for name in ("wait", "best_epoch")}
        self._early["best"] = float(self._early_stopping.best)
        self.finished = self.model.stop_training or epoch + 1 == self._recipe.epochs
        if is_first_process():
            self._save(is_best=self._early_stopping.best_epoch == epoch)
            for name, value in self._history[-1].items():
                self._board.add_scalar(name, value, epoch + 1)
            if self.finished:
                self._board.close()  # its own thread writes, for which the end does not wait

    def _seed_dropout(self):
        # It draws from these variables, but on torch for the most part from torch's own source.
        layers = [layer for layer in self.model.layers if hasattr(layer, "seed_generator")]
        source = np.random.SeedSequence((self._recipe.seed, self._epoch, rank()))
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
