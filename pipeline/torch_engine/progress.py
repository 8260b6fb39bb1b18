"""What a torch training leaves behind, and what it shows meanwhile: checkpoints, history, a bar."""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tensorboardX import SummaryWriter
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write, sync_files
from pipeline.feeding.engine import is_first_process, world_size
from pipeline.torch_engine.average import MovingAverage
from pipeline.torch_engine.recipe import TorchRecipe
from pipeline.torch_engine.weights import owned

SECONDS_BETWEEN_CHECKPOINTS = 600  # within an epoch; there is one at each epoch's end, too
BEST = "best.safetensors"  # in the folder of the training

_COMPLETE = "complete.json"  # the last file of a checkpoint
_AVERAGE = "average.safetensors"  # in a checkpoint


class Progress(TrainerCallback):
    """What Trainer does not do: the progress bar, history.jsonl, the best weights, their moving
    average, stopping, and checkpoints that are known to be whole."""

    def __init__(self, trainer: Trainer, recipe: TorchRecipe, run: Path):
        self._trainer, self._recipe, self._run = trainer, recipe, run
        self._history: list[dict] = []
        self._average: MovingAverage | None = None
        self._checkpoint: Path | None = None
        self._logs: dict = {}
        self._board = self._bar = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train: all epochs are over, or it was time to stop."""
        if not self._history:
            return False
        aucs = [line["val_auc"] for line in self._history]
        waited = len(aucs) - 1 - int(np.argmax(aucs))
        target = self._recipe.target_accuracy
        reached = target is not None and self._history[-1]["val_accuracy"] >= target
        over = len(aucs) >= self._recipe.epochs
        return over or reached or waited >= self._recipe.patience

    def find_checkpoint(self) -> str | None:
        """The newest whole checkpoint of this run, with its history; the others are removed."""
        folders = list(self._run.glob("checkpoint-*"))
        whole = [folder for folder in folders if (folder / _COMPLETE).exists()]
        newest = max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
        if is_first_process():
            for folder in folders:
                if folder != newest:
                    shutil.rmtree(folder, ignore_errors=True)
        if newest is None:
            return None
        self._checkpoint = newest
        self._history = self._noted()["history"]
        self._write_history()
        return str(newest)

    def close(self) -> None:
        """End the line of the progress bar, wherever it is, and TensorBoard's log."""
        if self._bar:
            self._bar.close()
        if self._board:
            self._board.close()  # its own thread writes, for which the end does not wait

    def averaged_weights(self) -> contextlib.AbstractContextManager:
        return self._average.in_use() if self._average else contextlib.nullcontext()

    def on_train_begin(self, args, state, control, **named):
        if self._recipe.ema:
            self._average = MovingAverage(self._trainer.model, self._recipe.ema)
        if self._checkpoint:
            if self._average:
                self._average.load(self._checkpoint / _AVERAGE)
            # Trainer starts the mean loss of an epoch anew.
            self._trainer._tr_loss += self._noted()["losses"][args.process_index]
            self._trainer._globalstep_last_logged = self._noted()["loss_from_step"]
        if is_first_process():
            self._board = SummaryWriter(str(self._run / "tensorboard"))
        self._saved = time.monotonic()

    def on_epoch_begin(self, args, state, control, **named):
        self._start = time.perf_counter()
        self._steps = state.max_steps // self._recipe.epochs
        self._trainer.order.epoch = len(self._history)
        if is_first_process():
            self._per_step = args.per_device_train_batch_size * world_size()
            self._per_step *= args.gradient_accumulation_steps
            self._bar = tqdm(
                total=self._steps * self._per_step,
                initial=state.global_step % self._steps * self._per_step,
                desc=f"epoch {len(self._history) + 1}/{self._recipe.epochs}",
                unit=" images",
                file=sys.stderr,
            )

    def on_step_end(self, args, state, control, **named):
        if self._average:
            self._average.update(state.global_step)
        if self._bar:
            self._bar.update(self._per_step)
            done = state.global_step - self._trainer._globalstep_last_logged
            if state.global_step % 10 == 0:
                loss = float(self._trainer._tr_loss) / done
                require_numbers(loss)
                last = self._history[-1]["val_auc"] if self._history else float("nan")
                self._bar.set_postfix(loss=f"{loss:.3f}", auc=f"{last:.3f}")
        if self._time_to_save(state.global_step, args.device):
            control.should_save = True

    def on_log(self, args, state, control, logs=None, **named):
        self._logs |= logs

    def on_evaluate(self, args, state, control, metrics=None, **named):
        line = {
            "epoch": len(self._history) + 1,
            "loss": self._logs["loss"],
            **{f"val_{name}": metrics[f"eval_{name}"] for name in ("loss", "auc", "accuracy")},
            "seconds": round(time.perf_counter() - self._start, 1),
            "learning_rate": max(group["lr"] for group in self._trainer.optimizer.param_groups),
        }
        best = max((earlier["val_auc"] for earlier in self._history), default=-1)
        self._history.append(line)
        if line["val_auc"] > best:
            self._keep_best()
        if is_first_process():
            for name, value in line.items():
                self._board.add_scalar(name, value, line["epoch"])
            self._board.flush()
            said = {name: value for name, value in line.items() if name.startswith("val_")}
            self._bar.set_postfix({name: f"{value:.4f}" for name, value in said.items()})
            self._bar.close()
        control.should_training_stop = self.finished

    def on_save(self, args, state, control, **named):
        self._saved = time.monotonic()
        # Waits for all processes, each of which has written its random state by now.
        losses = self._trainer.accelerator.gather(self._trainer._tr_loss.reshape(1)).tolist()
        if not is_first_process():
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._average:
            self._average.save(folder / _AVERAGE)
        sync_files(folder.iterdir())
        with atomic_write(folder / _COMPLETE) as file:
            noted = {"history": self._history, "losses": losses}
            noted["loss_from_step"] = self._trainer._globalstep_last_logged
            json.dump(noted, file)
        self._write_history()

    def _noted(self) -> dict:
        return json.loads((self._checkpoint / _COMPLETE).read_text(encoding="utf-8"))

    def _time_to_save(self, step: int, device: torch.device) -> bool:
        if step % self._steps == 0:  # the epoch is over: not before its validation
            return False
        late = time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if world_size() == 1:
            return late
        if step % 20:
            return False
        decision = torch.tensor(late, device=device)  # all processes save together
        torch.distributed.broadcast(decision, src=0)
        return bool(decision)

    def _keep_best(self) -> None:
        # Called between evaluation and its end, when the weights are those that were evaluated.
        state = self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)
        if is_first_process():
            new = self._run / f".{BEST}"
            save_file(owned(state), new)
            sync_files([new])
            os.replace(new, self._run / BEST)

    def _write_history(self) -> None:
        if is_first_process():
            with atomic_write(self._run / "history.jsonl") as file:
                file.writelines(json.dumps(line) + "\n" for line in self._history)


def require_numbers(values: np.ndarray | float) -> None:
    """Raise UserError where a network's outputs or its loss are not finite."""
    if not np.isfinite(values).all():
        raise UserError(
            "The network's outputs are no longer numbers: start anew with a lower --learning-rate, "
            "or with --precision fp32."
        )
