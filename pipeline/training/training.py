"""From a script's arguments to a detector folder, with whichever framework the network is built in.

An engine (see engine.py) trains; all before and after is here, once.
"""

import argparse
import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from models import ARCHITECTURES, Architecture
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.common.labels import FAKE, REAL
from pipeline.common.machine import limit_libraries
from pipeline.common.memory import keep_freed_memory
from pipeline.common.out_of_memory import LEAST_TO_TRAIN, require_memory
from pipeline.common.program import code_revision
from pipeline.data.audit import audited_dataset
from pipeline.data.dataset import Dataset, fingerprint, load_dataset, missing_class
from pipeline.detectors.detector import WEIGHTS
from pipeline.evaluation.precision import FEWEST_FACES, check_precisions_apart
from pipeline.feeding.augmentation import show_augmentation
from pipeline.feeding.engine import Engine, Plan, Recipe, is_first_process
from pipeline.feeding.face_places import FacePlaces
from pipeline.feeding.sampling import Epochs, say_composition
from pipeline.feeding.self_blending import SelfBlender
from pipeline.feeding.teacher import teacher_of
from pipeline.foreign import hub
from pipeline.keras_engine import backend as keras_backend
from pipeline.photos.faces import DEFAULT_MARGIN
from pipeline.training.finishing import DetectorSpec, finish_training
from pipeline.training.for_hub import push_detector
from pipeline.training.runs import close_run, open_run, read_history


@dataclass(frozen=True)
class TrainingOptions:
    """What a training is asked for beside its plan.

    `threshold_rule` is one of calibration.RULES; `name` is the detector's, by default that of its
    folder; `notes` are further entries for the section `training` of detector.json.
    """

    resume: bool
    workers: int
    threshold_rule: str
    data_licence: str
    name: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """From what `training_arguments` gives."""
        return cls(args.resume, args.workers, args.threshold_rule, args.data_licence)


def train_detector(args: argparse.Namespace) -> dict | None:
    """Train as `training_arguments` says and write the detector folder.

    Returns its description; None where only the augmentation was to be shown, and in all but the
    first of several processes. Raises UserError, before anything slow where that can be.
    """
    if args.push_to_hub:
        hub.require_token()
    architecture = ARCHITECTURES[args.architecture]
    if blocks := args.recipe.pop("blocks", None):
        architecture = architecture.with_options(blocks=blocks)
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
    if lacking := missing_class(dataset, fakes_in_train=not without_fakes):
        split, name = lacking
        raise UserError(
            f"{dataset.root}: not one {name} picture to {split} with can be read; the audit above "
            "says why."
        )
    if args.show_augmentation:
        show_augmentation(
            dataset.train,
            architecture,
            args.recipe["augmentation"],
            args.recipe["seed"],
            args.show_augmentation,
            SelfBlender(architecture.input_size) if self_blended else None,
            FacePlaces() if args.recipe["augmentation"].margin else None,
        )
        return None
    description = train_on(engine, plan, dataset, audit, output, TrainingOptions.of(args))
    if description and len(dataset.validate) >= FEWEST_FACES:
        check_precisions_apart(output, args.data)
    if description and args.push_to_hub:
        print(f"Uploaded to {push_detector(output, args.push_to_hub)}.")
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
    engine: Engine,
    plan: Plan,
    dataset: Dataset,
    audit: dict,
    output: Path,
    options: TrainingOptions,
) -> dict | None:
    """Train on an audited dataset and write the detector folder `output`; as train_detector."""
    recipe, epochs = plan.recipe, _epochs(dataset, plan.recipe)
    revision, teacher = code_revision(), teacher_of(recipe.teacher)
    settings = {
        "architecture": plan.architecture.name,
        **dict(plan.architecture.options),
        "start": plan.start.label,
        "devices": engine.devices(),
        **asdict(recipe),
        "teacher": teacher,
        "fingerprint": fingerprint(dataset.train + dataset.validate),
    }
    run = open_run(output, settings, options.resume, write=is_first_process())
    if is_first_process():
        print(
            f"Training {plan.architecture.name} on {engine.device_in_words()}, "
            f"start: {plan.start.label}.",
            file=sys.stderr,
        )
        if recipe.self_blended or recipe.balance != "none":
            say_composition(epochs)
        with atomic_write(run / "audit.json") as file:
            json.dump(audit, file, indent=1)
    trained = engine.train(plan, dataset, run, resume=options.resume, workers=options.workers)
    if not is_first_process():
        return None
    history = read_history(run)
    labels = list({sample.path: sample.label for sample in dataset.train}.values())
    arguments = asdict(recipe)
    arguments |= arguments.pop("augmentation")
    if arguments.pop("teacher"):
        arguments["teacher"] = teacher["name"]
    spec = DetectorSpec(
        name=options.name or output.name,
        architecture=plan.architecture,
        resize_filter=recipe.resize_filter,
        margin=DEFAULT_MARGIN,
        training={
            "start": plan.start.label,
            "arguments": arguments,
            "data": dataset.root.resolve().name,
            "data_licence": options.data_licence,
            "fingerprint": settings["fingerprint"],
            "images": {"real": labels.count(REAL), "fake": labels.count(FAKE)},
            "epochs_run": len(history),
            "best_epoch": max(history, key=lambda line: line["val_auc"])["epoch"],
            "minutes": sum(line["seconds"] for line in history) / 60,
            "device": engine.device_in_words(),
            "code_revision": revision,
            **({"teacher": teacher} if teacher else {}),
            **options.notes,
        },
        history=run / "history.jsonl",
    )
    description = finish_training(trained, spec, dataset.validate, options.threshold_rule, output)
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


def engine_of(architecture: Architecture, device: str) -> Engine:
    """The engine that trains networks of this architecture on `device`.

    Imports its framework, which takes seconds. Raises UserError where the device is not there.
    """
    require_memory("training", LEAST_TO_TRAIN)
    keep_freed_memory()
    limit_libraries()
    if architecture.framework == "keras":
        keras_backend.choose(device)  # Keras cannot change it once it is imported
        from pipeline.keras_engine.training import KerasEngine

        return KerasEngine(device)
    from pipeline.torch_engine.training import TorchEngine

    return TorchEngine(device)


def _only_the_first_process_speaks() -> contextlib.AbstractContextManager:
    if is_first_process():
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(open(os.devnull, "w"))
