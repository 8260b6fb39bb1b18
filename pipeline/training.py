"""From a script's arguments to a detector folder, with whichever framework the network is built in.

An engine (keras_training, torch_training) trains; all before and after is here, once.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from models import ARCHITECTURES, Architecture
from pipeline import hub, keras_backend
from pipeline.audit import audited_dataset
from pipeline.augmentation import Augmentation, show_augmentation
from pipeline.dataset import CLASS_NAMES, FAKE, REAL, Dataset, fingerprint, load_dataset
from pipeline.detector import WEIGHTS
from pipeline.errors import UserError
from pipeline.faces import DEFAULT_MARGIN
from pipeline.files import atomic_write
from pipeline.finishing import code_revision, finish_training
from pipeline.machine import limit_libraries
from pipeline.memory import keep_freed_memory
from pipeline.out_of_memory import LEAST_TO_TRAIN, require_memory
from pipeline.precision import FEWEST_FACES, check_precisions_apart
from pipeline.runs import close_run, open_run, read_history
from pipeline.sampling import Epochs, say_composition
from pipeline.self_blending import SelfBlender


@dataclass(frozen=True)
class Recipe:
    """What shapes the trained weights, apart from the network and the data. Engines add to it."""

    epochs: int
    batch_size: int  # on each device
    learning_rate: float
    patience: int  # epochs without a better validation AUC before training stops
    dropout: float
    seed: int
    precision: str  # "auto", "fp32" or "bf16"
    target_accuracy: float | None  # training stops once the validation accuracy reaches it
    augmentation: Augmentation
    resize_filter: str
    self_blended: float = 0.0  # for these five see batches.Batches
    balance: str = "none"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def check(self, architecture: Architecture) -> None:
        """Raise UserError, at once, where this network cannot be trained so."""


@dataclass(frozen=True)
class StartingPoint:
    """What training starts from: a label for the model card, and what puts the weights into a
    network of the engine's kind; None: from scratch. `adapter` is the folder of a LoRA adapter
    that has been merged into the weights."""

    label: str
    load: Callable[[Any], None] | None
    adapter: Path | None = None


@dataclass(frozen=True)
class Plan:
    """How a network is to be trained: with which engine, by which recipe, from where."""

    engine: ModuleType
    architecture: Architecture
    recipe: Recipe
    start: StartingPoint

    @classmethod
    def of(
        cls,
        engine: ModuleType,
        architecture: Architecture,
        settings: dict,
        init: str,
        fake_labels: Sequence[str] = (),
    ) -> Self:
        """Of a recipe's settings and what `--init` and `--fake-label` name. Raises UserError where
        it cannot be."""
        recipe = engine.Recipe(**settings)
        recipe.check(architecture)
        return cls(
            engine, architecture, recipe, engine.starting_point(init, architecture, fake_labels)
        )


def train_detector(args: argparse.Namespace) -> dict | None:
    """Train as `commands.training_arguments` says and write the detector folder.

    Returns its description; None where only the augmentation was to be shown, and in all but the
    first of several processes. Raises UserError, before anything slow where that can be.
    """
    if args.push_to_hub:
        hub.require_token()
    architecture = ARCHITECTURES[args.architecture]
    output = args.output or WEIGHTS / architecture.name
    self_blended = args.recipe.get("self_blended", 0.0)
    without_fakes = self_blended == 1
    dataset = load_dataset(args.data, fakes_in_train=not without_fakes)
    if args.show_augmentation is None:
        engine = engine_of(architecture, args.device)
        if args.seed is None:
            args.recipe["seed"] = seed_after(args.init)
        plan = Plan.of(engine, architecture, args.recipe, args.init, args.fake_labels)
        _epochs(dataset, plan.recipe)  # may refuse
    with _only_the_first_process_speaks():
        if without_fakes:
            print("Training without fakes: any in train/ are left out.", file=sys.stderr)
        dataset, audit = audited_dataset(dataset, args.workers)
    _require_both_classes(dataset, fakes_in_train=not without_fakes)
    if args.show_augmentation:
        show_augmentation(
            dataset.train,
            architecture,
            args.recipe["augmentation"],
            args.recipe["seed"],
            args.show_augmentation,
            SelfBlender(architecture.input_size) if self_blended else None,
        )
        return None
    description = train_on(
        plan,
        dataset,
        audit,
        output,
        resume=args.resume,
        workers=args.workers,
        threshold_rule=args.threshold_rule,
        data_licence=args.data_licence,
    )
    if description and len(dataset.validate) >= FEWEST_FACES:
        check_precisions_apart(output, args.data)
    if description and args.push_to_hub:
        print(f"Uploaded to {hub.push(output, args.push_to_hub)}.")
    return description


def seed_after(start: str | Path) -> int:
    """The seed of a training for which none was given: 0, but after that of a detector folder the
    next one. With the same one a network would see the same pictures changed in the same ways
    again, and get them by heart."""
    try:
        description = json.loads((Path(start) / "detector.json").read_text(encoding="utf-8"))
        return 1 + int(description["training"]["arguments"]["seed"])
    except (OSError, ValueError, KeyError, TypeError):  # no detector, or none that we trained
        return 0


def train_on(
    plan: Plan,
    dataset: Dataset,
    audit: dict,
    output: Path,
    *,
    resume: bool,
    workers: int,
    threshold_rule: str,
    data_licence: str,
    notes: dict | None = None,
    name: str | None = None,
) -> dict | None:
    """Train on an audited dataset and write the detector folder `output`; as train_detector.

    `notes` are further entries for the section `training` of detector.json; `name` is the
    detector's name, by default that of its folder.
    """
    recipe, epochs = plan.recipe, _epochs(dataset, plan.recipe)
    revision = code_revision()
    settings = {
        "architecture": plan.architecture.name,
        "start": plan.start.label,
        "devices": plan.engine.devices(),
        **asdict(recipe),
        "fingerprint": fingerprint(dataset.train + dataset.validate),
    }
    run = open_run(output, settings, resume, write=is_first_process())
    if is_first_process():
        print(
            f"Training {plan.architecture.name} on {plan.engine.device_in_words()}, "
            f"start: {plan.start.label}.",
            file=sys.stderr,
        )
        if recipe.self_blended or recipe.balance != "none":
            say_composition(epochs)
        with atomic_write(run / "audit.json") as file:
            json.dump(audit, file, indent=1)
    trained = plan.engine.train(
        plan.architecture, recipe, dataset, plan.start, run, resume, workers
    )
    if not is_first_process():
        return None
    history = read_history(run)
    labels = [sample.label for sample in dataset.train]
    arguments = asdict(recipe)
    arguments |= arguments.pop("augmentation")
    description = finish_training(
        trained,
        plan.architecture,
        recipe.resize_filter,
        DEFAULT_MARGIN,
        dataset.validate,
        threshold_rule,
        {
            "start": plan.start.label,
            "arguments": arguments,
            "data": dataset.root.resolve().name,
            "data_licence": data_licence,
            "fingerprint": settings["fingerprint"],
            "images": {"real": labels.count(REAL), "fake": labels.count(FAKE)},
            "epochs_run": len(history),
            "best_epoch": max(history, key=lambda line: line["val_auc"])["epoch"],
            "minutes": sum(line["seconds"] for line in history) / 60,
            "device": plan.engine.device_in_words(),
            "code_revision": revision,
            **(notes or {}),
        },
        run,
        output,
        name or output.name,
    )
    close_run(run)
    metrics = description["metrics"]
    print(
        f"{output}: validation AUC {metrics['auc']:.3f}; at the threshold "
        f"{metrics['recall_fake']:.1%} of the fakes found, {1 - metrics['recall_real']:.1%} of the "
        "real faces called fake."
    )
    return description


def _epochs(dataset: Dataset, recipe: Recipe) -> Epochs:
    return Epochs(dataset.train, recipe.self_blended, recipe.balance, recipe.seed)


def engine_of(architecture: Architecture, device: str) -> ModuleType:
    """The module that trains networks of this architecture, set to use `device`.

    Imports its framework, which takes seconds. Raises UserError where the device is not there.
    """
    require_memory("training", LEAST_TO_TRAIN)
    keep_freed_memory()
    limit_libraries()
    if architecture.framework == "keras":
        keras_backend.choose(device)  # Keras cannot change it once it is imported
    engine = importlib.import_module(f"pipeline.{architecture.framework}_training")
    engine.use(device)
    return engine


def is_first_process() -> bool:
    """Whether this process is the one of all that train together which writes and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def _only_the_first_process_speaks() -> contextlib.AbstractContextManager:
    if is_first_process():
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(open(os.devnull, "w"))


def _require_both_classes(dataset: Dataset, fakes_in_train: bool) -> None:
    for split, samples in (("train", dataset.train), ("validate", dataset.validate)):
        for label, name in enumerate(CLASS_NAMES):
            wanted = fakes_in_train or (split, label) != ("train", FAKE)
            if wanted and not any(sample.label == label for sample in samples):
                raise UserError(
                    f"{dataset.root}: not one {name} picture to {split} with can be read; the "
                    "audit above says why."
                )
