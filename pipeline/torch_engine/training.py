"""Train a torch network with Hugging Face's Trainer: data, callbacks, resume, several processes.

Every picture is a function of the seed, the epoch and its number, and a checkpoint holds everything
else that training depends on. So a run that was killed and resumed ends with the same weights, bit
for bit on one machine, as one that nobody touched.

Several GPUs or machines: start the script with torchrun or `accelerate launch`; each process takes
its part of every step.
"""

import contextlib
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from models import Architecture
from pipeline.data.dataset import Dataset
from pipeline.feeding.batches import Batches, Share
from pipeline.feeding.engine import Plan, StartingPoint, Trained, is_first_process, world_size
from pipeline.torch_engine.device import chosen, in_words, uses_bf16
from pipeline.torch_engine.export import finished
from pipeline.torch_engine.probe import head_layer, train_probe
from pipeline.torch_engine.progress import BEST
from pipeline.torch_engine.recipe import TorchRecipe
from pipeline.torch_engine.trainer import Classifier, ClassifierTrainer
from pipeline.torch_engine.tuning import tune
from pipeline.torch_engine.weights import starting_point


class TorchEngine:
    """Trains torch networks; see engine.Engine. Each process has one device."""

    recipe_type = TorchRecipe

    def __init__(self, device: str = "auto"):
        self._device = chosen(device)

    def device_in_words(self) -> str:
        return in_words(self._device)

    def devices(self) -> int:
        return world_size()

    def starting_point(
        self, init: str, architecture: Architecture, fake_labels: Sequence[str] = ()
    ) -> StartingPoint:
        return starting_point(init, architecture, fake_labels)

    def train(
        self, plan: Plan, dataset: Dataset, run: Path, *, resume: bool, workers: int
    ) -> Trained:
        """As engine.Engine.train; the best weights so far are `run`/best.safetensors."""
        architecture, recipe, start = plan.architecture, plan.recipe, plan.start
        transformers.logging.set_verbosity_error()
        torch.manual_seed(recipe.seed)
        network = architecture.build(dropout=recipe.dropout)
        if recipe.tuning == "probe":  # whose head is held to its start
            for value in head_layer(network, architecture).parameters():
                nn.init.zeros_(value)
        if start.load:
            start.load(network)
        adapter = start.adapter if recipe.adapter == "continue" else None
        tuned = tune(network, architecture, recipe.parts, adapter)
        classifier = Classifier(tuned.to(memory_format=torch.channels_last), recipe.tuning)
        # Accelerate takes each process's own part out of it.
        share = Share(world_size=world_size())
        batches = partial(Batches, architecture, dataset=dataset, workers=workers, share=share)
        _say_what_learns(classifier, recipe, self._device)
        if recipe.tuning == "probe":
            batches = partial(batches, cache_bytes=0)  # each picture is needed once a view
            train_probe(classifier, architecture, recipe, batches, run, self._device)
        else:
            trainer = ClassifierTrainer(
                classifier, recipe, batches(recipe), architecture.scaling, run, self._device
            )
            _train(trainer, resume)
        if is_first_process():
            classifier.load_state_dict(load_file(run / BEST))
        return finished(classifier.cpu().network, architecture)


def _train(trainer: ClassifierTrainer, resume: bool) -> None:
    checkpoint = trainer.progress.find_checkpoint() if resume else None
    if not trainer.progress.finished:
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, contextlib.closing(trainer.progress):
            trainer.train(resume_from_checkpoint=checkpoint)


def _say_what_learns(classifier: Classifier, recipe: TorchRecipe, device: str) -> None:
    if is_first_process():
        sizes = [
            (value.numel(), value.requires_grad)
            for name, value in classifier.named_parameters()
            if ".original_module." not in name  # peft learns a copy instead
        ]
        learning = sum(size for size, learns in sizes if learns)
        total = sum(size for size, _ in sizes)
        precision = "bf16" if uses_bf16(recipe.precision, device) else "fp32"
        print(
            f"Tuning {recipe.tuning}: {learning:,} of {total:,} parameters learn "
            f"({learning / total:.2%}), {precision}.",
            file=sys.stderr,
        )
