"""Hugging Face's Trainer for networks that tell real from fake: data, loss, optimizer."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainingArguments

from models import PixelScaling
from pipeline.evaluation.metrics import auc
from pipeline.feeding.batches import Batches
from pipeline.feeding.engine import world_size
from pipeline.torch_engine.device import uses_bf16
from pipeline.torch_engine.progress import Progress, require_numbers
from pipeline.torch_engine.recipe import TorchRecipe
from pipeline.torch_engine.tuning import keep_statistics, parameter_groups
from pipeline.torch_engine.weights import owned


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
        step = batches.batch_size * world_size() * accumulation
        pictures = len(batches.epochs)
        whole = pictures // step * step  # no step of an epoch is smaller than the others
        self._length = whole or pictures

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for number in self._batches.order(self.epoch)[: self._length].tolist():
            yield self.epoch, number


class ClassifierTrainer(Trainer):
    """Trains a Classifier on Batches, with checkpoints in `run`, on a chosen device."""

    def __init__(
        self,
        classifier: Classifier,
        recipe: TorchRecipe,
        batches: Batches,
        scaling: PixelScaling,
        run: Path,
        device: str,
    ):
        self._recipe, self._batches = recipe, batches
        self.order = _Order(batches, recipe.gradient_accumulation)
        self.progress = Progress(self, recipe, run)
        deterministic = device == "cuda"  # on a CPU all that is used here is deterministic anyway
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
                bf16=uses_bf16(recipe.precision, device),
                use_cpu=device == "cpu",  # or processes would not join
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
            if world_size() > 1:  # each process has seen other pictures since the last forward pass
                for statistic in self.model.buffers():
                    torch.distributed.broadcast(statistic, src=0)
            return super().evaluate(*arguments, **named)


def _figures(prediction: transformers.EvalPrediction) -> dict[str, float]:
    logits, labels = prediction.predictions[:, 0], prediction.label_ids[:, 0]
    require_numbers(logits)
    return {"auc": auc(labels, logits), "accuracy": float(np.mean((logits > 0) == labels))}
