"""Go on training a detector with a new kind of fake, without forgetting the old kinds.

Pictures of the earlier data are replayed among the new ones (Robins: "Catastrophic Forgetting,
Rehearsal and Pseudorehearsal", Connection Science 1995). Before and after are measured on both, and
a detector that forgot does not take the place of the old one.
"""

import argparse
import json
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.data.audit import audited_dataset
from pipeline.data.dataset import (
    Dataset,
    Sample,
    load_dataset,
    load_samples,
    missing_class,
    split_by_group,
)
from pipeline.detectors.calibration import DEFAULT_RULE, is_rule
from pipeline.detectors.detector import Detector, load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.detectors.versions import (
    copy_detector,
    current_version,
    keep_version,
    next_version,
    use_version,
    versions_of,
)
from pipeline.evaluation.metrics import evaluate_with_auc_interval
from pipeline.evaluation.precision import FEWEST_FACES, check_precisions_apart
from pipeline.feeding.engine import Engine, Plan, is_first_process
from pipeline.foreign import hub
from pipeline.training.finishing import predict
from pipeline.training.for_hub import push_detector
from pipeline.training.recipes import AS_TRAINED
from pipeline.training.training import TrainingOptions, engine_of, seed_after, train_on

REPLAYED = 0.3  # of the pictures that training sees, unless told otherwise
VALIDATE_FRACTION = 0.2  # of new data that does not say how to split
# A probe is fitted to the end, and would fit a few new pictures at any price. So it sees more of
# the earlier ones and each of the few new ones several times, and is held to what it was.
PROBE = {"epochs": 3, "weight_decay": 0.5}
REPLAYED_TO_A_PROBE = 0.8
FEWEST_NEW_OF_A_PROBE = 400
# Where a detector does not say how it was trained.
_UNLESS_TOLD = {"tuning": "full", "learning_rate": 1e-4, "layer_decay": None}
FIGURES = {"auc": "AUC", "recall_fake": "fakes found", "recall_real": "real passed"}


@dataclass(frozen=True)
class _Old:
    """The earlier data: what may be replayed, and what forgetting is measured on."""

    train: list[Sample]
    validate: list[Sample]


def train_further(args: argparse.Namespace) -> int:
    """Train as `incremental_arguments` says; 0, or 1 where the detector in use stays.

    The new detector becomes a version (see versions.py), with the table before/after beside it,
    and is put in use if its AUC on the old validation pictures fell by at most `args.margin`.
    """
    if args.push_to_hub:
        hub.require_token()
    family = args.output or args.start
    before = load_detector(args.start)
    engine = engine_of(before.architecture, args.device)
    settings = _settings(engine, args, before)
    is_probe = settings.get("tuning") == "probe"
    plan = Plan.of(engine, before.architecture, settings, str(args.start))

    new = new_dataset(args.new_data, plan.recipe.seed)
    old = _old_data(args.replay)
    times = -(-FEWEST_NEW_OF_A_PROBE // max(1, len(new.train))) if is_probe else 1
    fraction = args.replay_fraction
    if fraction is None:
        fraction = REPLAYED_TO_A_PROBE if is_probe else REPLAYED
    replayed = choose_replay(new.train * times, old.train, fraction, plan.recipe.seed)
    dataset = Dataset(args.new_data, new.train + replayed, new.validate + old.validate)
    _require_both_classes(dataset, old, args)
    dataset, audit = audited_dataset(dataset, args.workers)
    # What is measured after the training must be no more than what the audit has left.
    new = Dataset(new.root, _readable(new.train, dataset), _readable(new.validate, dataset))
    old = _Old(old.train, _readable(old.validate, dataset))
    replayed = _readable(replayed, dataset)
    dataset = replace(dataset, train=dataset.train + new.train * (times - 1))
    _require_both_classes(dataset, old, args)
    if is_first_process():
        print(f"{len(new.train)} new pictures and {len(replayed)} earlier ones.", file=sys.stderr)
        _keep(args.start, family)
    target = next_version(family)
    earlier_licence = before.description["training"].get("data_licence", "")
    rule = args.threshold_rule or before.calibration.rule
    options = replace(
        TrainingOptions.of(args),
        threshold_rule=rule if is_rule(rule) else DEFAULT_RULE,
        data_licence=f"{earlier_licence} New data: {args.data_licence}".strip(),
        name=family.name,
        notes={"new_images": len(new.train), "replayed_images": len(replayed), "times": times},
    )
    description = train_on(engine, plan, dataset, audit, target, options)
    if description is None:  # not the process that writes
        return 0
    if len(old.validate) >= FEWEST_FACES:
        check_precisions_apart(target, args.replay)
    after = load_detector(target)
    code = _accept(before, after, new, old, family, args.margin)
    if code == 0 and args.push_to_hub:
        print(f"Uploaded to {push_detector(family, args.push_to_hub)}.")
    return code


def list_versions(family: Path) -> int:
    """Print the versions of a detector with their validation AUC and what was measured of each."""
    versions = versions_of(family)
    if not versions:
        raise UserError(f"{family}: no versions are kept; training further makes the first two.")
    in_use = current_version(family)
    for number, folder in versions.items():
        description = load_detector(folder).description
        training = description["training"]
        mark = "  in use" if number == in_use else ""
        print(
            f"version {number}: {training.get('date', 'no date')}, validation AUC "
            f"{description['metrics']['auc']:.3f}, start: {training['start']}{mark}"
        )
        results = folder.with_name(f"{folder.name}.json")
        if results.exists():
            print(as_table(json.loads(results.read_text(encoding="utf-8"))["results"]))
    return 0


def use(family: Path, number: int) -> int:
    """Put a version in use and say so."""
    use_version(family, number)
    print(f"{family} is now version {number}.")
    return 0


def new_dataset(root: Path, seed: int) -> Dataset:
    """The new data: train|validate/real|fake, or just real|fake or a CSV file, of which a fifth of
    the groups validates. One class may be absent."""
    if root.is_dir() and any((root / name).exists() for name in CLASS_NAMES):
        return Dataset(root, *split_by_group(load_samples(root), VALIDATE_FRACTION, seed))
    return load_dataset(root, both_classes=False)


def choose_replay(new: list[Sample], old: list[Sample], fraction: float, seed: int) -> list[Sample]:
    """Earlier pictures to train on among the new ones: `fraction` (0…1, less than 1) of them all.

    Drawn at random, so that both classes together are as even as can be. Where there are too few,
    all.
    """
    wanted = round(len(new) * fraction / (1 - fraction))
    new_of = [sum(sample.label == label for sample in new) for label in (REAL, FAKE)]
    of_class = [[sample for sample in old if sample.label == label] for label in (REAL, FAKE)]
    real = min(max((len(new) + wanted) // 2 - new_of[REAL], 0), wanted)
    generator = random.Random(seed)
    chosen = []
    for samples, count in zip(of_class, (real, wanted - real), strict=True):
        chosen += generator.sample(samples, min(count, len(samples)))
    return chosen


def measure(detector: Detector, samples: list[Sample]) -> dict:
    """A detector's figures on samples of both classes, as metrics.evaluate_with_auc_interval gives
    them."""
    logits = predict(
        Runtime.of(detector).logits,
        samples,
        detector.architecture,
        detector.resize_filter,
    )
    calibration = detector.calibration
    labels = np.array([sample.label for sample in samples])
    probabilities = calibration.probability(logits)
    return evaluate_with_auc_interval(labels, probabilities, calibration.threshold)


def _readable(samples: list[Sample], dataset: Dataset) -> list[Sample]:
    """Those that are still in an audited dataset."""
    readable = {sample.path for sample in dataset.train + dataset.validate}
    return [sample for sample in samples if sample.path in readable]


def _require_both_classes(dataset: Dataset, old: _Old, args: argparse.Namespace) -> None:
    """Raise UserError, before anything slow, where training or what is measured after it would
    know one class alone."""
    if args.replay is None:
        way = "add some, or name with --replay the data that the detector was trained on"
    else:
        way = f"add some to it or to {args.replay}, or replay more with --replay-fraction"
    missing, root = missing_class(dataset), dataset.root
    if missing is None and args.replay is not None:
        missing, root = missing_class(replace(dataset, validate=old.validate)), args.replay
        way = "add some"
    if missing:
        split, name = missing
        raise UserError(
            f"{root}: there is not one {name} picture that can be read to {split} with: {way}."
        )


def _accept(
    before: Detector, after: Detector, new: Dataset, old: _Old, family: Path, margin: float
) -> int:
    """Measure before and after, and put the new version in use unless it forgot; 0 where it is."""
    sets = {"new data": _with_both_classes(new.validate, old.validate)}
    if old.validate:
        sets = {"old data": old.validate, **sets}
    table = {
        name: {"before": measure(before, samples), "after": measure(after, samples)}
        for name, samples in sets.items()
        if samples
    }
    target = after.folder
    with atomic_write(target.with_name(f"{target.name}.json")) as file:
        json.dump({"from": before.name, "margin": margin, "results": table}, file, indent=1)
    print(as_table(table))

    number = int(target.name[1:])
    anyway = f"python incremental_train_vit.py --from {family} --use {number}"
    if "old data" not in table:
        print(
            f"{family} is left as it is: without --replay nobody knows what was forgotten. The new "
            f"detector is {target}; to use it: {anyway}"
        )
        return 1
    lost = table["old data"]["before"]["auc"] - table["old data"]["after"]["auc"]
    if lost > margin:
        print(
            f"{family} is left as it is: on the old data the AUC fell by {lost:.3f}, more than "
            f"{margin:g}. The new detector is {target}; to use it all the same: {anyway}"
        )
        return 1
    use_version(family, number)
    earlier = max(version for version in versions_of(family) if version < number)
    print(
        f"{family} is now version {number}; to go back: python incremental_train_vit.py --from "
        f"{family} --use {earlier}"
    )
    return 0


def as_table(table: dict) -> str:
    """The results before and after, as text."""
    head = f"{'':10}{'pictures':>12}" + "".join(f"{title:>20}" for title in FIGURES.values())
    lines = [head]
    for name, results in table.items():
        images = results["before"]["images"]
        line = f"{name:10}{images['real'] + images['fake']:>12,}"
        for figure in FIGURES:
            was, now = results["before"][figure], results["after"][figure]
            line += f"{f'{was:.3f} → {now:.3f}':>20}"
        lines.append(line)
    return "\n".join(lines)


def _settings(engine: Engine, args: argparse.Namespace, before: Detector) -> dict:
    """Those of the new training: as the user, the script, and the earlier training say."""
    settings = _known_to(engine, args.recipe, before)
    if settings.get("tuning") == "probe":
        settings |= {name: value for name, value in PROBE.items() if getattr(args, name) is None}
    if args.seed is None:
        settings["seed"] = seed_after(args.start)
    return settings


def _known_to(engine: Engine, settings: dict, before: Detector) -> dict:
    """The settings that the engine's recipe has; AS_TRAINED is what the detector's training had."""
    settings = {
        name: value
        for name, value in settings.items()
        if name in engine.recipe_type.__dataclass_fields__
    }
    settings["resize_filter"] = before.resize_filter
    earlier = _UNLESS_TOLD | before.description["training"].get("arguments", {})
    return {
        name: earlier[name] if value == AS_TRAINED else value for name, value in settings.items()
    }


def _old_data(root: Path | None) -> _Old:
    if root is None:
        return _Old([], [])
    dataset = load_dataset(root)
    return _Old(dataset.train, dataset.validate)


def _with_both_classes(new: list[Sample], old: list[Sample]) -> list[Sample]:
    """New validation pictures; a class that they lack is lent by the old ones. Empty if both do."""
    missing = {REAL, FAKE} - {sample.label for sample in new}
    samples = new + [sample for sample in old if sample.label in missing]
    return samples if len({sample.label for sample in samples}) == 2 else []


def _keep(start: Path, family: Path) -> None:
    """Note what training starts from as a version, so that one can go back to it."""
    if not family.exists():
        copy_detector(start, family)
    keep_version(family)
