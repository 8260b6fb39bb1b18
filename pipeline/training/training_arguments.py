"""The command lines of train_<model>.py and incremental_train_vit.py."""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.common.command_line import (
    not_negative,
    positive_float,
    positive_int,
    probability,
    script_parser,
    whole_number,
)
from pipeline.common.machine import usable_cores
from pipeline.detectors.fake_class import add_option


def training_arguments(
    script_docstring: str, recipes: dict[str, dict], arguments: list[str] | None = None
) -> argparse.Namespace:
    """Parse the command line of a train_<model>.py.

    `recipes` is architecture → its recipe: what each of its settings is unless the user says
    otherwise. A setting becomes an option where `_SETTINGS` has it; `init` is where to start.
    The first architecture is the default. The result's `recipe` holds the settings.
    """
    parser = script_parser(script_docstring)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("dataset"),
        metavar="DIR|CSV",
        help="train|validate/real|fake, or a CSV file path,label[,generator][,group][,split]",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="the detector folder to write")
    default, *others = recipes
    if others:
        parser.add_argument("--architecture", choices=tuple(recipes), default=default)
    else:
        parser.set_defaults(architecture=default)
    parser.add_argument("--init", metavar="PATH|imagenet|none", help=_INIT)
    add_option(parser, "--init")
    _add_training_options(parser, list(recipes.values()))
    parser.add_argument(
        "--show-augmentation",
        type=Path,
        metavar="FILE.png",
        help="write a sheet of augmented training pictures to this file, and stop",
    )
    args = parser.parse_args(arguments)
    args.recipe = _chosen_settings(parser, args, recipes[args.architecture], args.architecture)
    start = args.recipe.pop("init")
    args.init = start if args.init is None else args.init
    return args


def incremental_arguments(
    script_docstring: str, recipe: dict, arguments: list[str] | None = None
) -> argparse.Namespace:
    """Parse the command line of incremental_train_vit.py; see training_arguments."""
    parser = script_parser(script_docstring)
    add = parser.add_argument
    add(
        "--from",
        dest="start",
        type=Path,
        required=True,
        metavar="DIR",
        help="the detector folder to continue from",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--new-data",
        type=Path,
        metavar="DIR|CSV",
        help="train|validate/real|fake, or real|fake, of which a fifth is used for validation",
    )
    what.add_argument("--use", type=positive_int, metavar="N", help="only put version N in use")
    what.add_argument("--versions", action="store_true", help="only list the versions")
    add("--replay", type=Path, metavar="DIR|CSV", help="the data that it was trained on")
    add(
        "--replay-fraction",
        type=probability,
        metavar="SHARE",
        help="share of the training pictures taken from --replay's train/ (default: 0.3, for a "
        "probe 0.8)",
    )
    add(
        "--margin",
        type=probability,
        default=0.02,
        help="how far the AUC on the old data may fall (default: 0.02)",
    )
    add("--output", type=Path, metavar="DIR", help="the detector folder to write, if not the same")
    _add_training_options(parser, [recipe])
    parser.set_defaults(threshold_rule=None)  # that of the detector
    args = parser.parse_args(arguments)
    if args.replay_fraction == 1:
        parser.error("--replay-fraction 1 would leave no room for new pictures")
    args.recipe = _chosen_settings(parser, args, recipe, "incremental training")
    if args.recipe.get("self_blended") == 1:
        parser.error("--self-blended 1 would leave no room for new fakes")
    return args


def _add_training_options(parser: argparse.ArgumentParser, recipes: list[dict]) -> None:
    from pipeline.detectors.calibration import DEFAULT_RULE, RULES

    add = parser.add_argument
    for name, setting in _SETTINGS.items():
        defaults = dict.fromkeys(
            "none" if recipe[name] in (None, ()) else str(recipe[name])
            for recipe in recipes
            if name in recipe
        )
        if defaults:
            text = f"{setting.get('help', '')} (default: {' or '.join(defaults)})".strip()
            add(f"--{name.replace('_', '-')}", **setting | {"help": text.replace("%", "%%")})
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--resume", action="store_true", help="continue an interrupted training")
    add(
        "--workers",
        type=positive_int,
        default=usable_cores(),
        help="number of threads that prepare pictures",
    )
    add("--threshold-rule", default=DEFAULT_RULE, metavar="RULE", help=RULES.replace("%", "%%"))
    add(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload the finished detector folder to the Hugging Face hub, as `manage_detectors.py "
        "for-hub` writes it",
    )
    add(
        "--data-licence",
        default="Not stated by whoever trained this detector: ask before you use it.",
        metavar="TEXT",
        help="the terms of the training data, for the model card",
    )


def _chosen_settings(
    parser: argparse.ArgumentParser, args: argparse.Namespace, recipe: dict, what: str
) -> dict:
    """The recipe with the user's changes."""
    given = {name: getattr(args, name, None) for name in _SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in recipe:
            parser.error(f"--{name.replace('_', '-')} is no setting of {what}")
    if "augmentation" in given:
        given["augmentation"] = replace(recipe["augmentation"], **given["augmentation"])
    chosen = recipe | given
    if chosen.get("mixup") and chosen.get("cutmix"):
        parser.error("--mixup and --cutmix mix the same pictures: choose one of them")
    return chosen


def _changes(text: str) -> dict[str, float]:
    """NAME=PROBABILITY,… of augmentation.Augmentation."""
    from pipeline.feeding.augmentation import Augmentation

    changes = {}
    for change in text.split(","):
        name, _, value = change.partition("=")
        if name not in Augmentation.__dataclass_fields__:
            known = ", ".join(Augmentation.__dataclass_fields__)
            raise argparse.ArgumentTypeError(f"there is no change {name!r}; there are {known}")
        try:
            changes[name] = probability(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{change}: write NAME=PROBABILITY") from None
    return changes


def _blocks(text: str) -> tuple[int, ...]:
    try:
        blocks = {int(number) for number in text.split(",")}
    except ValueError:
        blocks = set()
    if not blocks or not blocks <= set(range(1, 13)):
        raise argparse.ArgumentTypeError("write numbers from 1 to 12, like 7,8,9,10,11,12")
    return tuple(sorted(blocks))


_INIT = (
    "start from the weights of a detector folder; from a file or folder of another project; from "
    "ImageNet's weights, or CLIP's (clip); or from scratch (none)"
)


# What a recipe may hold and the command line may change; one that a recipe lacks is no option.
_SETTINGS: dict[str, dict] = {
    "epochs": {"type": positive_int},
    "batch_size": {"type": positive_int, "help": "pictures a step, on each device"},
    "learning_rate": {"type": positive_float},
    "head_epochs": {
        "type": whole_number,
        "help": "first epochs, in which only the head is trained; none from scratch",
    },
    "head_learning_rate": {"type": positive_float, "help": "in these epochs"},
    "patience": {"type": positive_int, "help": "epochs without a better validation AUC"},
    "target_accuracy": {"type": probability, "help": "stop at this validation accuracy"},
    "dropout": {"type": probability},
    "seed": {"type": int, "help": "of all chance; after a detector's training, the next one"},
    "augmentation": {
        "type": _changes,
        "metavar": "NAME=P,…",
        "help": "how often pictures are changed in which ways; what is not named stays",
    },
    "self_blended": {
        "type": probability,
        "metavar": "FRACTION",
        "help": "of the fakes of an epoch, made on the fly from real pictures; 1: train without a "
        "single fake (validate/ needs some)",
    },
    "balance": {
        "choices": ("none", "class", "generator"),
        "help": "show as many real as fake pictures, or within a class as many of each generator "
        "(folder, CSV column, or start of the file name)",
    },
    "label_smoothing": {"type": probability, "help": "0.1: learn 0.05 and 0.95 for real and fake"},
    "mixup": {
        "type": not_negative,
        "metavar": "ALPHA",
        "help": "mix pictures by shares from Beta(ALPHA, ALPHA); 0: not at all",
    },
    "cutmix": {
        "type": not_negative,
        "metavar": "ALPHA",
        "help": "the same by pasting a part of one into the other; not along with --mixup",
    },
    "alike": {
        "choices": ("none", "group"),
        "help": "group: a picture and its forgeries are cut and saved alike, so that nothing but "
        "the forgery tells them apart",
    },
    "resolution": {
        "type": positive_int,
        "metavar": "PIXELS",
        "help": "train on pictures shrunk to this side, which is faster; go on from the result at "
        "full size with --init",
    },
    "blocks": {
        "type": _blocks,
        "metavar": "N,…",
        "help": "of vit_clip, 1 to 12: what comes out of these is what its head sees",
    },
    "teacher": {
        "metavar": "DIR",
        "help": "a detector folder, of any framework: its opinion of each changed picture is "
        "learned beside the label",
    },
    "tuning": {
        "choices": ("full", "lora", "norm", "probe"),
        "help": "which parameters learn: all, LoRA's, the normalization's, the head's",
    },
    "gradient_accumulation": {"type": positive_int, "help": "batches to a step"},
    "layer_decay": {"type": probability, "help": "learning rate of each layer, of the next one's"},
    "weight_decay": {"type": not_negative},
    "warmup": {"type": probability, "help": "share of the steps in which the rate rises"},
    "ema": {"type": probability, "help": "decay of the weights' moving average; 0: none"},
    "lora_rank": {"type": positive_int},
    "lora_alpha": {"type": positive_int},
    "lora_dropout": {"type": probability},
    "lora_targets": {
        "type": lambda names: tuple(names.split(",")),
        "metavar": "NAME,…",
        "help": "ends of the names of the layers to adapt; none: those of the network's own choice",
    },
    "adapter": {
        "choices": ("continue", "new"),
        "help": "with LoRA: go on with the detector's adapter, or put a new one on top",
    },
    "precision": {"choices": ("auto", "fp32", "bf16"), "help": "auto: bf16 where it is faster"},
}
