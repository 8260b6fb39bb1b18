"""Train a torch network with Hugging Face's Trainer: data, callbacks, resume, several processes.

Every picture is a function of the seed, the epoch and its number, and a checkpoint holds everything
else that training depends on. So a run that was killed and resumed ends with the same weights, bit
for bit on one machine, as one that nobody touched.

Several GPUs or machines: start the script with torchrun or `accelerate launch`; each process takes
its part of every step.
"""

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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from models import Architecture, PixelScaling
from pipeline import dataset as data
from pipeline.batches import Batches
from pipeline.errors import UserError
from pipeline.files import atomic_write, quiet_stderr
from pipeline.finishing import Trained
from pipeline.metrics import auc
from pipeline.torch_weights import WEIGHTS, starting_point  # noqa: F401 - part of the engine
from pipeline.training import Recipe as CommonRecipe
from pipeline.training import StartingPoint
from pipeline.tuning import Tuning, keep_statistics, parameter_groups, plain, save_adapter, tune

SECONDS_BETWEEN_CHECKPOINTS = 600  # within an epoch; there is one at each epoch's end, too

_COMPLETE = "complete.json"  # the last file of a checkpoint
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
    if _device != "cpu" and torch.backends.mps.is_available():
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
    lora = (recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, recipe.lora_targets)
    tuned = tune(network, architecture, Tuning(recipe.tuning, *lora), adapter)
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
    )
    trainer = _Trainer(classifier, recipe, batches, architecture.scaling, run)
    checkpoint = trainer.progress.find_checkpoint() if resume else None
    _say_what_learns(classifier, recipe)
    if not trainer.progress.finished:
        with warnings.catch_warnings(action="ignore"):
            trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        classifier.load_state_dict(load_file(run / "best.safetensors"))
    return _finished(classifier.cpu().network, architecture)


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
    """Training pictures by (epoch, index), or validation pictures by index, a batch at a time."""

    def __init__(self, batches: Batches, scaling: PixelScaling, training: bool):
        self._batches, self._scaling, self._training = batches, scaling, training

    def __len__(self) -> int:
        return len(self._batches.train if self._training else self._batches.validate)

    def __getitems__(self, keys: list) -> dict[str, torch.Tensor]:
        if self._training:
            epoch = keys[0][0]
            pixels, labels = self._batches.augmented(epoch, [index for _, index in keys])
        else:
            pixels, labels = self._batches.as_scored(keys)
        pixels = torch.from_numpy(self._scaling(pixels)).permute(0, 3, 1, 2)
        return {"pixels": pixels, "labels": torch.from_numpy(labels)}


class _Order(Sampler):
    """(epoch, index) of the training pictures in the order of the epoch, shared by all processes;
    accelerate hands every process its own batches of it."""

    def __init__(self, batches: Batches, accumulation: int):
        self._batches, self._epoch = batches, 0
        step = batches.batch_size * devices() * accumulation
        whole = len(batches.train) // step * step  # no step of an epoch is smaller than the others
        self._length = whole or len(batches.train)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in self._batches.order(self._epoch)[: self._length].tolist():
            yield self._epoch, index


class _Trainer(Trainer):
    def __init__(
        self,
        classifier: Classifier,
        recipe: Recipe,
        batches: Batches,
        scaling: PixelScaling,
        run: Path,
    ):
        self._recipe, self._batches, self._scaling = recipe, batches, scaling
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
                use_cpu=_device == "cpu",
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
            ),
            train_dataset=_Pictures(batches, scaling, training=True),
            eval_dataset=_Pictures(batches, scaling, training=False),
            data_collator=lambda batch: batch,
            compute_metrics=_figures,
            callbacks=[self.progress],
        )
        self.remove_callback(transformers.PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        order = _Order(self._batches, self._recipe.gradient_accumulation)
        loader = DataLoader(
            self.train_dataset,
            batch_size=self._batches.batch_size,
            sampler=order,
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
        super()._save(output_dir, _owned(state_dict or self.model.state_dict()))

    def evaluate(self, *arguments, **named) -> dict:
        with self.progress.averaged_weights():
            return super().evaluate(*arguments, **named)


class _Progress(TrainerCallback):
    """What Trainer does not do: the progress bar, history.jsonl, the best weights, their moving
    average, stopping, and checkpoints that are known to be whole."""

    def __init__(self, trainer: Trainer, recipe: Recipe, run: Path):
        self._trainer, self._recipe, self._run = trainer, recipe, run
        self._history: list[dict] = []
        self._average: AveragedModel | None = None
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
        """The newest whole checkpoint of this run, and its history; others are removed."""
        whole = []
        for folder in self._run.glob("checkpoint-*"):
            if (folder / _COMPLETE).exists():
                whole.append((int(folder.name.rpartition("-")[2]), folder))
            elif self._is_first:
                shutil.rmtree(folder, ignore_errors=True)
        if not whole:
            return None
        self._checkpoint = max(whole)[1]
        self._history = json.loads((self._checkpoint / _COMPLETE).read_text())["history"]
        self._write_history()
        return str(self._checkpoint)

    def averaged_weights(self):
        return _swapped(self._trainer.model, self._average)

    def on_train_begin(self, args, state, control, **named):
        if self._recipe.ema:
            self._average = AveragedModel(
                self._trainer.model, multi_avg_fn=get_ema_multi_avg_fn(self._recipe.ema)
            )
            if self._checkpoint:
                self._average.load_state_dict(load_file(self._checkpoint / "average.safetensors"))
        if self._is_first:
            self._board = SummaryWriter(str(self._run / "tensorboard"))
        self._saved = time.monotonic()

    def on_epoch_begin(self, args, state, control, **named):
        self._start = time.perf_counter()
        if self._is_first:
            epoch = len(self._history) + 1
            per_step = args.per_device_train_batch_size * devices()
            per_step *= args.gradient_accumulation_steps
            steps = state.max_steps // int(args.num_train_epochs)
            self._bar = tqdm(
                total=steps * per_step,
                initial=state.global_step % steps * per_step,
                desc=f"epoch {epoch}/{self._recipe.epochs}",
                unit=" images",
                file=sys.stderr,
            )
            self._per_step = per_step

    def on_step_end(self, args, state, control, **named):
        if self._average:
            self._average.update_parameters(self._trainer.model)
        if self._bar:
            self._bar.update(self._per_step)
            done = state.global_step - self._trainer._globalstep_last_logged
            if state.global_step % 10 == 0 and done:
                loss = float(self._trainer._tr_loss) / done
                last = self._history[-1]["val_auc"] if self._history else float("nan")
                self._bar.set_postfix(loss=f"{loss:.3f}", auc=f"{last:.3f}")
        if self._time_to_save(state.global_step, args.device):
            control.should_save = True

    def on_log(self, args, state, control, logs=None, **named):
        self._logs |= logs

    def on_evaluate(self, args, state, control, metrics=None, **named):
        line = {
            "epoch": len(self._history) + 1,
            "loss": self._logs.get("loss", float("nan")),
            **{f"val_{name}": metrics[f"eval_{name}"] for name in ("loss", "auc", "accuracy")},
            "seconds": round(time.perf_counter() - self._start, 1),
            "learning_rate": max(group["lr"] for group in self._trainer.optimizer.param_groups),
        }
        if not np.isfinite(line["val_loss"]):
            raise UserError(
                f"epoch {line['epoch']}: the loss is no longer a number; try a lower "
                "--learning-rate, or --precision fp32"
            )
        best = max((earlier["val_auc"] for earlier in self._history), default=-1)
        self._history.append(line)
        if line["val_auc"] > best:
            self._keep_best()
        if self._is_first:
            for name, value in line.items():
                self._board.add_scalar(name, value, line["epoch"])
            self._board.flush()
            said = {name: value for name, value in line.items() if name.startswith("val_")}
            self._bar.set_postfix({name: f"{value:.4f}" for name, value in said.items()})
            self._bar.close()
        control.should_training_stop = self.finished

    def on_save(self, args, state, control, **named):
        self._saved = time.monotonic()
        if not self._is_first:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._average:
            save_file(_owned(self._average.state_dict()), folder / "average.safetensors")
        with atomic_write(folder / _COMPLETE) as file:
            json.dump({"history": self._history}, file)
        self._write_history()

    def _time_to_save(self, step: int, device: torch.device) -> bool:
        late = time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if devices() == 1 or step % 20:
            return late and devices() == 1
        decision = torch.tensor(late, device=device)  # all processes save together
        torch.distributed.broadcast(decision, src=0)
        return bool(decision)

    @property
    def _is_first(self) -> bool:
        return int(os.environ.get("RANK", 0)) == 0

    def _keep_best(self) -> None:
        # Called between evaluation and its end, when the weights are those that were evaluated.
        state = self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)
        if self._is_first:
            new = self._run / ".best.safetensors"
            save_file(_owned(state), new)
            os.replace(new, self._run / "best.safetensors")

    def _write_history(self) -> None:
        if self._is_first:
            with atomic_write(self._run / "history.jsonl") as file:
                file.writelines(json.dumps(line) + "\n" for line in self._history)


class _swapped:
    """Within the block, a model has the averaged weights; after it, its own again."""

    def __init__(self, model: nn.Module, average: AveragedModel | None):
        self._pairs = []
        if average is not None:
            self._pairs = list(zip(model.parameters(), average.module.parameters(), strict=True))

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for own, averaged in self._pairs:
            kept = own.clone()
            own.copy_(averaged)
            averaged.copy_(kept)


def uses_bf16(precision: str) -> bool:
    """Whether "auto", "fp32" or "bf16" means bfloat16 here: "auto" where the processor has it."""
    if precision != "auto":
        return precision == "bf16"
    if _uses_cuda():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def export_graph(network: nn.Module, size: int, path: Path) -> None:
    """Write the network as ONNX: `pixels` (N, 3, size, size) float32 → `logits` (N, 1) float32."""
    with quiet_stderr(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 3, size, size),),
            path,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _finished(tuned: nn.Module, architecture: Architecture) -> Trained:
    """A trained network as the last steps want it, its adapter merged."""
    network = plain(tuned, architecture).eval()

    @torch.inference_mode()
    def logits(pixels: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy(architecture.scaling(pixels)).permute(0, 3, 1, 2)
        return network(scaled).float().numpy()[:, 0]

    def save_weights(folder: Path) -> None:
        save_file(_owned(network.state_dict()), folder / WEIGHTS)
        save_adapter(tuned, folder)

    return Trained(
        logits,
        export=lambda path: export_graph(network, architecture.input_size, path),
        save_weights=save_weights,
        libraries=("torch", "timm", "transformers", "peft", "accelerate"),
    )


def _figures(prediction: transformers.EvalPrediction) -> dict[str, float]:
    logits, labels = prediction.predictions[:, 0], prediction.label_ids[:, 0]
    return {"auc": auc(labels, logits), "accuracy": float(np.mean((logits > 0) == labels))}


def _owned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that safetensors can write: contiguous, and none a view of another."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _say_what_learns(classifier: Classifier, recipe: Recipe) -> None:
    sizes = [(value.numel(), value.requires_grad) for value in classifier.parameters()]
    learning = sum(size for size, learns in sizes if learns)
    total = sum(size for size, _ in sizes)
    if int(os.environ.get("RANK", 0)) == 0:
        precision = "bf16" if uses_bf16(recipe.precision) else "fp32"
        print(
            f"Tuning {recipe.tuning}: {learning:,} of {total:,} parameters learn "
            f"({learning / total:.2%}), {precision}.",
            file=sys.stderr,
        )


def _uses_cuda() -> bool:
    return _device != "cpu" and torch.cuda.is_available()
