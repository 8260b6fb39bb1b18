"""Fit the head of a frozen network: a logistic regression on features that are computed once.

The backbone sees each picture a few times, not in each of many epochs: first as it is, then, in
each further epoch, changed at random. After each epoch the head is fitted to all views so far, by
L-BFGS to the end, for the problem is convex. The penalty, `weight_decay`, acts on the weights of
standardized features, and holds them to those of the starting point: to 0 where that has no head.

Features are kept in the folder of the training, as float16, so that a killed run goes on.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from models import Architecture
from pipeline.common.files import atomic_write
from pipeline.evaluation.metrics import auc
from pipeline.feeding.augmentation import NO_AUGMENTATION
from pipeline.feeding.batches import Batches
from pipeline.feeding.sampling import Epochs
from pipeline.torch_engine.device import uses_bf16
from pipeline.torch_engine.progress import BEST, require_numbers
from pipeline.torch_engine.recipe import TorchRecipe
from pipeline.torch_engine.regression import Views, fit, parts
from pipeline.torch_engine.trainer import Classifier
from pipeline.torch_engine.weights import owned

_PICTURES_KEPT_AT_ONCE = 512  # what a kill loses, at most


def head_layer(network: nn.Module, architecture: Architecture) -> nn.Linear:
    """The linear layer that turns features into the logit."""
    layers = (network.get_submodule(name) for name in architecture.module.HEAD)
    return next(layer for layer in layers if isinstance(layer, nn.Linear))


def train_probe(
    classifier: Classifier,
    architecture: Architecture,
    recipe: TorchRecipe,
    batches: Callable[[TorchRecipe], Batches],
    run: Path,
    device: str,
) -> None:
    """Fit the classifier's head and write it all to `run`/best.safetensors.

    `batches` makes the pictures of a recipe.
    """
    backbone = Backbone(classifier, head_layer(classifier.network, architecture), recipe, device)
    unchanged, changed = batches(replace(recipe, augmentation=NO_AUGMENTATION)), batches(recipe)
    labels = np.array([sample.label for sample in unchanged.validate], np.float32)
    features = partial(features_of, backbone=backbone, architecture=architecture)
    validation = features(run / "features-validate", len(labels), unchanged.as_scored)
    numbers, weights = _pictures(changed.epochs)
    targets = np.array([changed.epochs.pictures[number].label for number in numbers], np.float32)
    targets += recipe.label_smoothing * (0.5 - targets)
    views = []
    for epoch in range(recipe.epochs):
        shown = partial((changed if epoch else unchanged).augmented, epoch)
        pictures = lambda rows, shown=shown: shown(numbers[rows])  # noqa: E731
        views.append(features(run / f"features-{epoch + 1}", len(numbers), pictures))
    start = time.perf_counter()
    loss = fit(
        backbone.head,
        Views([view.rows for view in views], targets, weights[:, None]),
        recipe.weight_decay,
    )
    seconds = time.perf_counter() - start + sum(part.seconds for part in (*views, validation))
    logits = np.concatenate([backbone.logits(part) for part in parts(validation.rows)])
    require_numbers(logits)
    line = {
        "epoch": 1,
        "loss": loss,
        "val_loss": float(np.mean(np.logaddexp(0, logits) - labels * logits)),
        "val_auc": auc(labels, logits),
        "val_accuracy": float(np.mean((logits > 0) == labels)),
        "seconds": round(seconds, 1),
        "learning_rate": 0.0,
    }
    with atomic_write(run / "history.jsonl") as file:
        file.write(json.dumps(line) + "\n")
    with atomic_write(run / BEST, "wb") as file:
        file.write(save(owned(classifier.state_dict())))


class Backbone:
    """The network up to its head. What the head is given is caught on its way."""

    def __init__(self, classifier: Classifier, head: nn.Linear, recipe: TorchRecipe, device: str):
        self.classifier, self.head, self._device = classifier.eval().to(device), head, device
        self._bf16 = uses_bf16(recipe.precision, device)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """(N, 3, size, size), scaled → (N, features) float16."""
        caught = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
                self.classifier(pixels.to(self._device, memory_format=torch.channels_last))
        finally:
            hook.remove()
        features = caught[0].float().cpu().numpy()
        require_numbers(features)
        return features.clip(-65504, 65504).astype(np.float16)

    @torch.inference_mode()
    def logits(self, features: torch.Tensor) -> np.ndarray:
        """(N, features) float32 → (N,)."""
        return self.head(features.to(self._device))[:, 0].cpu().numpy()


@dataclass(frozen=True)
class Features:
    rows: np.ndarray  # (N, features) float16
    seconds: float  # that it took to compute them, in all runs together


def _pictures(epochs: Epochs) -> tuple[np.ndarray, np.ndarray]:
    """Those that any epoch may show, and how often one does on average."""
    often = epochs.frequencies()
    numbers = np.flatnonzero(often)
    return numbers, often[numbers].astype(np.float32)


def features_of(
    path: Path,
    count: int,
    pictures: Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]],
    backbone: Backbone,
    architecture: Architecture,
) -> Features:
    """The features of `count` pictures, mapped from `path`.npy. Those that are not there yet are
    computed of `pictures`: rows → (N, size, size, 3) uint8 and what does not matter here."""
    file, noted = path.with_suffix(".npy"), path.with_suffix(".json")
    done = json.loads(noted.read_text()) if noted.exists() else {"rows": 0, "seconds": 0.0}
    if done["rows"] == count:
        return Features(np.load(file, mmap_mode="r"), done["seconds"])
    start = time.perf_counter() - done["seconds"]
    mode, shape = "r+" if done["rows"] else "w+", (count, backbone.head.in_features)
    features = np.lib.format.open_memmap(file, mode, np.float16, shape)
    with tqdm(total=count, initial=done["rows"], desc=path.name, unit=" images") as bar:
        for first in range(done["rows"], count, _PICTURES_KEPT_AT_ONCE):
            last = min(first + _PICTURES_KEPT_AT_ONCE, count)
            for rows in np.array_split(np.arange(first, last), -(-(last - first) // 32)):
                pixels = torch.from_numpy(architecture.scaling(pictures(rows)[0]))
                features[rows] = backbone(pixels.permute(0, 3, 1, 2))
                bar.update(len(rows))
            features.flush()
            done = {"rows": last, "seconds": round(time.perf_counter() - start, 1)}
            with atomic_write(noted) as note:
                json.dump(done, note)
    return Features(features, done["seconds"])
