"""What all scripts share: their arguments, their exit codes, and the scoring command itself."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import UserError
from pipeline.fake_class import FakeLabels, add_option, say_fake_class
from pipeline.out_of_memory import is_out_of_memory, out_of_memory_in_words
from pipeline.streams import accept_any_text

HOW_TO_GO_ON = "With --output and --continue the next run goes on from here."  # of scoring


def run(
    main: Callable[[], int | None], after_stop: str = "", requirements: str = "requirements.txt"
) -> None:
    """Run a script's main() and exit: with its number; with 2 and a sentence on standard error for
    a UserError, a package that is not installed (`requirements` has it), or too little memory; with
    130 after Ctrl-C, with `after_stop` to say how to go on. What a user did never ends in a
    traceback."""
    accept_any_text()
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        code = 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "models", "pipeline"):
            raise
        print(
            f"{Path(sys.argv[0]).name}: this needs {package}, which is not installed here: "
            f"pip install -r {requirements}",
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:
        print(f"\nStopped. {after_stop}".rstrip(), file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `infer_… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"{Path(sys.argv[0]).name}: {out_of_memory_in_words(error)}", file=sys.stderr)
        code = 2
    # Threads that still read a slow disk or hold a compiled graph need not be waited for.
    sys.stderr.flush()
    os._exit(code)


def script_parser(script_docstring: str) -> argparse.ArgumentParser:
    """A parser whose --help is the script's docstring, as it is written, before the arguments."""
    return argparse.ArgumentParser(
        description=script_docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


@dataclass(frozen=True)
class Network:
    """What a scoring script scores with: any of `architectures`, the first being the usual one.

    `training` is the script, with its arguments, that trains that one.
    """

    architectures: tuple[str, ...]
    training: str


def scoring_parser(script_docstring: str, *networks: Network) -> argparse.ArgumentParser:
    """The arguments of every infer_<model>.py, which scores with the `networks`."""
    arguments = script_parser(script_docstring)
    arguments.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a photo or video, a folder (searched with all its sub-folders), a pattern, or - for "
        "a list of paths on standard input",
    )
    default = " and ".join(
        _any_of([f"weights/{name}" for name in network.architectures]) for network in networks
    )
    twice = "; given twice, both score" if len(networks) > 1 else ""
    arguments.add_argument(
        "--weights",
        type=Path,
        action="append",
        metavar="DIR",
        help=f"detector folder, or published weights{twice} (default: {default})",
    )
    add_option(arguments)
    arguments.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the rows to a .csv, .jsonl or .parquet file, or a page for the browser to an "
        ".html file, instead of showing them",
    )
    arguments.add_argument(
        "--continue",
        dest="resume",
        action="store_true",
        help="continue an interrupted --output: score only what is missing or failed",
    )
    arguments.add_argument(
        "--face",
        choices=("auto", "none"),
        help="auto: find the faces and cut them out; none: score whole pictures (default: as the "
        "detector was trained)",
    )
    arguments.add_argument(
        "--threshold",
        type=probability,
        metavar="T",
        help="call a face fake at or above this fake_probability (default: the detector's own)",
    )
    arguments.add_argument(
        "--explain",
        type=Path,
        metavar="DIR",
        help="write a picture of each face with a heat map of what suggests a fake, and a timeline "
        "of each video, into this folder (needs requirements.txt)",
    )
    frames = arguments.add_mutually_exclusive_group()
    frames.add_argument(
        "--frames",
        type=positive_int,
        default=32,
        metavar="N",
        help="number of frames of a video to look at, evenly spaced (default: 32)",
    )
    frames.add_argument(
        "--every",
        type=positive_float,
        metavar="SECONDS",
        help="look at one frame of a video every SECONDS",
    )
    arguments.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments.add_argument("--batch-size", type=positive_int, default=8, metavar="N")
    return arguments


def score_photos(args: argparse.Namespace, *networks: Network) -> int:
    """The scoring command: score `args.paths` with a detector of each of the `networks`.

    Returns 0, or 1 where some photos could not be scored. Raises UserError.
    """
    from pipeline.frames import Sampling, with_frames
    from pipeline.inputs import find_photos
    from pipeline.memory import keep_freed_memory
    from pipeline.row_files import open_output
    from pipeline.row_table import Summary
    from pipeline.rows import COMPARED_FIELDS, FIELDS
    from pipeline.scoring import Scorer
    from pipeline.video import join

    keep_freed_memory()
    detectors = open_detectors(args.weights, networks, args.fake_labels)
    heat_maps = None
    if args.explain:
        from pipeline.explanation import HeatMapFolder  # which needs a training framework

        heat_maps = HeatMapFolder(args.explain, detectors)
    scorer = Scorer(
        *detectors,
        face_mode=args.face,
        threshold=args.threshold,
        device=args.device,
        batch_size=args.batch_size,
    )
    models = [detector.name for detector in detectors]
    fields = COMPARED_FIELDS if len(networks) > 1 else FIELDS
    with open_output(args.output, models, args.resume, fields, scorer.settings) as output:
        photos = find_photos(args.paths)
        summary = Summary(models)
        try:
            missing = (photo for photo in photos if photo.path not in output.done)
            pictures = output.watch(with_frames(missing, Sampling(args.frames, args.every)))
            for scored in join(scorer.look(pictures), scorer.verdict):
                if heat_maps:  # before the rows: --continue takes what has rows to be finished
                    heat_maps.write(scored)
                output.write(scored.rows)
                summary.add(scored.rows)
        finally:
            print(summary.line(photos.skipped), file=sys.stderr)
    if not summary.photos and not summary.videos and not output.done:
        raise UserError(f"{' '.join(args.paths)}: there are no photos or videos here.")
    return 1 if summary.errors else 0


def open_detectors(
    weights: list[Path] | None, networks: Sequence[Network], fake_labels: Sequence[str] = ()
) -> list:
    """The detectors to score with, at most one of each network, in the order of the networks.

    `weights` are detector folders or published weights; None: what there is in weights/. Of their
    classes, those named in `fake_labels` mean fake. A network that is left out is named on standard
    error. Raises UserError where no network has a detector or one has two, where two have the same
    name, where `fake_labels` fit none, and as open_detector does.
    """
    architectures = [name for network in networks for name in network.architectures]
    detectors = {}
    labels = FakeLabels(fake_labels)
    for path in installed_detectors(networks) if weights is None else weights:
        detector = open_detector(path, architectures, labels)
        [network] = (n for n in networks if detector.architecture.name in n.architectures)
        if network in detectors:
            raise UserError(
                f"{path} is the second {_any_of(network.architectures)} detector: name only one."
            )
        detectors[network] = detector
    labels.require_used()
    if weights is not None:
        for network in networks:
            if network not in detectors:
                which = _any_of(network.architectures)
                print(f"--weights names no {which} detector: scoring without.", file=sys.stderr)
    chosen = [detectors[network] for network in networks if network in detectors]
    if len({detector.name for detector in chosen}) < len(chosen):
        raise UserError(
            f"Both detectors are named {chosen[0].name}, so their rows could not be told apart: "
            "change `name` in the detector.json of one."
        )
    return chosen


def installed_detectors(networks: Sequence[Network]) -> list[Path]:
    """The detector folders in weights/: of each network the first of its architectures there is.

    Says on standard error which they are, where others were possible, and how to get what is
    missing; raises UserError where all is.
    """
    from pipeline.detector import WEIGHTS
    from pipeline.files import recover_folder

    found, missing = [], []
    for network in networks:
        folders = [WEIGHTS / architecture for architecture in network.architectures]
        for folder in folders:
            recover_folder(folder)
        there = [folder for folder in folders if (folder / "detector.json").exists()]
        found += there[:1]
        if not there:
            missing.append(
                f"{folders[0]}: there is no detector here: train one with "
                f"`python {network.training}`, or download one with "
                f"`python download_weights.py {folders[0].name}`."
            )
    if not found:
        raise UserError("\n".join(missing))
    for sentence in missing:
        print(sentence, file=sys.stderr)
    if sum(len(network.architectures) for network in networks) > 1:
        print(f"Scoring with {' and '.join(map(str, found))}.", file=sys.stderr)
    return found


def open_detector(
    path: Path, architectures: Sequence[str] = (), fake_labels: FakeLabels | None = None
):
    """The detector in a detector folder, on the hub (hf-hub:owner/name) or made of published
    weights, of one of these architectures.

    None of them: of any. `fake_labels`: see import_published; what counts as fake in imported
    weights is said on standard error. Raises UserError, also with how to get weights.
    """
    from pipeline.detector import load_detector
    from pipeline.published import import_published, is_published

    if str(path).startswith("hf-hub:"):
        path = _from_the_hub(str(path))
    if is_published(path):
        detector = import_published(path, architectures, fake_labels)
    else:
        detector = load_detector(path)
    say_fake_class(path, detector.description)
    if architectures and detector.architecture.name not in architectures:
        raise UserError(
            f"{path}: this is a {detector.architecture.name} detector and this script scores with "
            f"{_any_of(architectures)}: use the script named after it."
        )
    return detector


def _from_the_hub(name: str) -> Path:
    try:
        from pipeline.hub import HUB, download
    except ImportError:
        raise UserError(
            f"--weights {name}: fetching from the hub needs one package more: pip install "
            "huggingface_hub"
        ) from None
    return download(name.removeprefix(HUB), "--weights")


def _any_of(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


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
        default=0.3,
        metavar="SHARE",
        help="share of the training pictures taken from --replay's train/ (default: 0.3)",
    )
    add(
        "--margin",
        type=probability,
        default=0.02,
        help="how far the AUC on the old data may fall (default: 0.02)",
    )
    add("--output", type=Path, metavar="DIR", help="the detector folder to write, if not the same")
    _add_training_options(parser, [recipe])
    args = parser.parse_args(arguments)
    if args.replay_fraction == 1:
        parser.error("--replay-fraction 1 would leave no room for new pictures")
    args.recipe = _chosen_settings(parser, args, recipe, "incremental training")
    if args.recipe.get("self_blended") == 1:
        parser.error("--self-blended 1 would leave no room for new fakes")
    return args


def _add_training_options(parser: argparse.ArgumentParser, recipes: list[dict]) -> None:
    from pipeline.calibration import DEFAULT_RULE, RULES
    from pipeline.machine import usable_cores

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
        help="upload the finished detector folder to the Hugging Face hub",
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


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return value


def _changes(text: str) -> dict[str, float]:
    """NAME=PROBABILITY,… of augmentation.Augmentation."""
    from pipeline.augmentation import Augmentation

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


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below zero")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is below zero or no number")
    return value


_INIT = (
    "start from the weights of a detector folder; from a file or folder of another project; from "
    "ImageNet's weights; or from scratch (none)"
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
