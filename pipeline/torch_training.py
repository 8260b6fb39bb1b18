"""Train a torch network with Hugging Face's Trainer: data, callbacks, resume, several processes.

Every picture is a function of the seed, the epoch and its number, and a checkpoint holds everything
else that training depends on. So a run that was killed and resumed ends with the same weights, bit
for bit on one machine, as one that nobody touched.

Several GPUs or machines: start the script with torchrun or `accelerate launch`; each process takes
its part of every step.
"""

import contextlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tensorboardX import SummaryWriter
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from models import Architecture, PixelScaling
from pipeline import dataset as data
from pipeline.batches import Batches
from pipeline.errors import UserError
from pipeline.files import atomic_write, sync_files
from pipeline.finishing import Trained
from pipeline.metrics import auc
from pipeline.processor import has_bf16
from pipeline.torch_average import MovingAverage
from pipeline.torch_export import finished
from pipeline.torch_weights import owned, starting_point  # noqa: F401 - part of the engine
from pipeline.training import Recipe as CommonRecipe
from pipeline.training import StartingPoint, is_first_process
from pipeline.tuning import Tuning, keep_statistics, parameter_groups, tune

SECONDS_BETWEEN_CHECKPOINTS = 600  # within an epoch; there is one at each epoch's end, too

_COMPLETE = "complete.json"  # the last file of a checkpoint
_AVERAGE = "average.safetensors"  # in a checkpoint
_BEST = "best.safetensors"
_device = "auto"


@dataclass(frozen=True)
class Recipe(CommonRecipe):
    """What shapes the trained weights of a torch network.

    A step takes `batch_size` × `gradient_accumulation` pictures on each device. `ema` is the decay
    of the weights' moving average, which is then what is validated and kept; 0: none. The
    learning rate rises for the share `warmup` of all steps and then falls as a cosine.
    """

    tuning: str = "full"
    weight_decay: float = 0.05
    warmup: float = 0.05
    gradient_accumulation: int = 1
    layer_decay: float | None = None
    ema: float = 0.0
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ()
    adapter: str = "new"  # or "continue": go on with the adapter of the detector to start from

    def check(self, architecture: Architecture) -> None:
        """Raise UserError where LoRA would find nothing to adapt."""
        if self.tuning == "lora":
            with torch.device("meta"):  # no memory, no time
                tune(architecture.build(), architecture, self.parts)

    @property
    def parts(self) -> Tuning:
        """Which parameters learn."""
        return Tuning(
            self.tuning, self.lora_rank, self.lora_alpha, self.lora_dropout, self.lora_targets
        )


def use(device: str) -> None:
    """Train on `device`: "auto", "cpu" or "cuda". Raises UserError where it is not there."""
    global _device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no NVIDIA GPU here; install a torch built for CUDA on a "
            "machine that has one, or leave --device at auto"
        )
    _device = device


def device_in_words() -> str:
    """Where training happens, as `use` set it."""
    several = f"{devices()} × " if devices() > 1 else ""
    if _uses_cuda():
        return f"{several}GPU ({torch.cuda.get_device_name()})"
    if _uses_mps():
        return "Apple GPU"
    return f"{several}CPU ({os.cpu_count()} cores)"


def devices() -> int:
    """How many devices share each step: a process each."""
    return int(os.environ.get("WORLD_SIZE", 1))


def train(
    architecture: Architecture,
    recipe: Recipe,
    dataset: data.Dataset,
    start: StartingPoint,
    run: Path,
    resume: bool,
    workers: int,
    cache_bytes: int | None = None,
) -> Trained:
    """Train and return the network with the weights of its best epoch (validation AUC).

    `run` is the folder of the training: `history.jsonl` (one line an epoch), `tensorboard/`,
    `best.safetensors`, and the checkpoints from which `resume` goes on.
    """
    transformers.logging.set_verbosity_error()
    torch.manual_seed(recipe.seed)
    network = architecture.build(dropout=recipe.dropout)
    if start.load:
        start.load(network)
    adapter = start.adapter if recipe.adapter == "continue" else None
    tuned = tune(network, architecture, recipe.parts, adapter)
    classifier = Classifier(tuned.to(memory_format=torch.channels_last), recipe.tuning)
    batches = Batches(
        architecture,
        recipe.augmentation,
        recipe.resize_filter,
        recipe.seed,
        recipe.batch_size,
        dataset.train,
        dataset.validate,
        workers,
        cache_bytes,
        world=devices(),
        self_blended=recipe.self_blended,
        balance=recipe.balance,
        label_smoothing=recipe.label_smoothing,
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
    )
    trainer = _Trainer(classifier, recipe, batches, architecture.scaling, run)
    checkpoint = trainer.progress.find_checkpoint() if resume else None
    _say_what_learns(classifier, recipe)
    if not trainer.progress.finished:
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, contextlib.closing(trainer.progress):
            trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        classifier.load_state_dict(load_file(run / _BEST))
    return finished(classifier.cpu().network, architecture)


class Classifier(nn.Module):
    """A network with its loss, as Trainer wants it. pixels (N, 3, size, size) → logits (N, 1)."""

    def __init__(self, network: nn.Module, tuning: str):
        super().__init__()
        self.network, self._tuning = network, tuning

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
        logits = self.network(pixels).float()
        if labels is None:
            return {"logits": logits}
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        return {"loss": loss, "logits": logits}

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        keep_statistics(self.network, self._tuning)
        return self


class _Pictures(Dataset):
    """Training pictures by (epoch, number), or validation pictures by index, a batch at a time."""

    def __init__(self, batches: Batches, scaling: PixelScaling, training: bool):
        self._batches, self._scaling, self._training = batches, scaling, training

    def __len__(self) -> int:
        return len(self._batches.epochs if self._training else self._batches.validate)

    def __getitems__(self, keys: list) -> dict[str, torch.Tensor]:
        if self._training:
            epoch = keys[0][0]
            pixels, labels = self._batches.augmented(epoch, [number for _, number in keys])
        else:
            pixels, labels = self._batches.as_scored(keys)
        pixels = torch.from_numpy(self._scaling(pixels)).permute(0, 3, 1, 2)
        return {"pixels": pixels, "labels": torch.from_numpy(labels)}


class _Order(Sampler):
    """(epoch, number) of the training pictures in the order of the `epoch`, for all processes;
    accelerate hands every process its own batches of it."""

    def __init__(self, batches: Batches, accumulation: int):
        # Not by set_epoch(), which accelerate does not call through all that it wraps around this.
        self._batches, self.epoch = batches, 0
        step = batches.batch_size * devices() * accumulation
        pictures = len(batches.epochs)
        whole = pictures // step * step  # no step of an epoch is smaller than the others
        self._length = whole or pictures

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for number in self._batches.order(self.epoch)[: self._length].tolist():
            yield self.epoch, number


class _Trainer(Trainer):
    def __init__(
        self,
        classifier: Classifier,
        recipe: Recipe,
        batches: Batches,
        scaling: PixelScaling,
        run: Path,
    ):
        self._recipe, self._batches = recipe, batches
        self.order = _Order(batches, recipe.gradient_accumulation)
        self.progress = _Progress(self, recipe, run)
        deterministic = _uses_cuda()  # on a CPU all that is used here is deterministic anyway
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        super().__init__(
            model=classifier,
            args=TrainingArguments(
                output_dir=str(run),
                num_train_epochs=recipe.epochs,
                per_device_train_batch_size=batches.batch_size,
                per_device_eval_batch_size=batches.batch_size,
                gradient_accumulation_steps=recipe.gradient_accumulation,
                learning_rate=recipe.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=recipe.warmup,  # below 1 it is a share of all steps
                seed=recipe.seed,
                bf16=uses_bf16(recipe.precision),
                use_cpu=not _uses_cuda() and not _uses_mps(),  # or processes would not join
                eval_strategy="epoch",
                save_strategy="epoch",
                logging_strategy="epoch",
                logging_nan_inf_filter=False,
                save_total_limit=2,
                remove_unused_columns=False,
                label_names=["labels"],
                disable_tqdm=True,
                report_to="none",
                dataloader_pin_memory=deterministic,
                ddp_find_unused_parameters=False,
            ),
            train_dataset=_Pictures(batches, scaling, training=True),
            eval_dataset=_Pictures(batches, scaling, training=False),
            data_collator=lambda batch: batch,
            compute_metrics=_figures,
            callbacks=[self.progress],
        )
        self.remove_callback(transformers.PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.train_dataset,
            batch_size=self._batches.batch_size,
            sampler=self.order,
            drop_last=True,
            collate_fn=self.data_collator,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            recipe = self._recipe
            network = self.model.network if model is None else model
            groups = parameter_groups(
                network, recipe.weight_decay, recipe.learning_rate, recipe.layer_decay
            )
            self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, owned(state_dict or self.model.state_dict()))

    def evaluate(self, *arguments, **named) -> dict:
        with self.progress.averaged_weights():
            if devices() > 1:  # each process has seen other pictures since the last forward pass
                for statistic in self.model.buffers():
                    torch.distributed.broadcast(statistic, src=0)
            return super().evaluate(*arguments, **named)


class _Progress(TrainerCallback):
    """What Trainer does not do: the progress bar, history.jsonl, the best weights, their moving
    average, stopping, and checkpoints that are known to be whole."""

    def __init__(self, trainer: Trainer, recipe: Recipe, run: Path):
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
            self._per_step = args.per_device_train_batch_size * devices()
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
                _require_numbers(loss)
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
        if devices() == 1:
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
            new = self._run / f".{_BEST}"
            save_file(owned(state), new)
            sync_files([new])
            os.replace(new, self._run / _BEST)

    def _write_history(self) -> None:
        if is_first_process():
            with atomic_write(self._run / "history.jsonl") as file:
                file.writelines(json.dumps(line) + "\n" for line in self._history)


def uses_bf16(precision: str) -> bool:
    """Whether "auto", "fp32" or "bf16" means bfloat16 here: "auto" where the processor has it."""
    if precision != "auto":
        return precision == "bf16"
    if _uses_cuda():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_bf16(_torch_has_bf16)


def _torch_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _figures(prediction: transformers.EvalPrediction) -> dict[str, float]:
    logits, labels = prediction.predictions[:, 0], prediction.label_ids[:, 0]
    _require_numbers(logits)
    return {"auc": auc(labels, logits), "accuracy": float(np.mean((logits > 0) == labels))}


def _require_numbers(values: np.ndarray | float) -> None:
    if not np.isfinite(values).all():
        raise UserError(
            "The network's outputs are no longer numbers: start anew with a lower --learning-rate, "
            "or with --precision fp32."
        )


def _say_what_learns(classifier: Classifier, recipe: Recipe) -> None:
    if is_first_process():
        sizes = [
            (value.numel(), value.requires_grad)
            for name, value in classifier.named_parameters()
            if ".original_module." not in name  # peft learns a copy instead
        ]
        learning = sum(size for size, learns in sizes if learns)
        total = sum(size for size, _ in sizes)
        precision = "bf16" if uses_bf16(recipe.precision) else "fp32"
        print(
            f"Tuning {recipe.tuning}: {learning:,} of {total:,} parameters learn "
            f"({learning / total:.2%}), {precision}.",
            file=sys.stderr,
        )


def _uses_cuda() -> bool:
    return _device != "cpu" and torch.cuda.is_available()


def _uses_mps() -> bool:
    return _device != "cpu" and not _uses_cuda() and torch.backends.mps.is_available()
