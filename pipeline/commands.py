"""What all scripts share: their arguments, their exit codes, and the scoring command itself."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError


def run(main: Callable[[], int | None], after_stop: str = "") -> None:
    """Run a script's main() and exit: with its number, 2 with a sentence on standard error for a
    UserError, 130 after Ctrl-C, with `after_stop` to say how to go on. What a user did never ends
    in a traceback."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"\nStopped. {after_stop}".rstrip(), file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `infer_… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    # Threads that still read a slow disk or hold a compiled graph need not be waited for.
    sys.stderr.flush()
    os._exit(code)


def script_parser(script_docstring: str) -> argparse.ArgumentParser:
    """A parser whose --help is the script's docstring, as it is written, before the arguments."""
    return argparse.ArgumentParser(
        description=script_docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def scoring_parser(script_docstring: str, default_weights: str) -> argparse.ArgumentParser:
    """The arguments of every infer_<model>.py."""
    arguments = script_parser(script_docstring)
    arguments.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a photo, a folder (searched with all its sub-folders), a pattern, or - for a list "
        "of paths on standard input",
    )
    arguments.add_argument(
        "--weights",
        type=Path,
        default=Path(default_weights),
        metavar="DIR",
        help=f"detector folder, or a published MesoNet .h5 file (default: {default_weights})",
    )
    arguments.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the rows to a .csv, .jsonl or .parquet file instead of showing them",
    )
    arguments.add_argument(
        "--continue",
        dest="resume",
        action="store_true",
        help="go on with an interrupted --output: only what is missing or failed is scored",
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
        help="call a face fake from this fake_probability on (default: the detector's own)",
    )
    arguments.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments.add_argument("--batch-size", type=positive_int, default=32, metavar="N")
    return arguments


def score_photos(args: argparse.Namespace, architecture: str) -> int:
    """The scoring command: score `args.paths` with a detector of `architecture`.

    Returns 0, or 1 where some photos could not be scored. Raises UserError.
    """
    from pipeline.inputs import find_photos
    from pipeline.rows import Summary, open_output
    from pipeline.scoring import Scorer

    detector = open_detector(args.weights, architecture)
    scorer = Scorer(detector, args.face, args.threshold, args.device, args.batch_size)
    with open_output(args.output, args.resume, detector.name) as output:
        photos = find_photos(args.paths)
        summary = Summary()
        try:
            for rows in scorer.score(photo for photo in photos if photo.path not in output.done):
                output.write(rows)
                summary.add(rows)
        finally:
            print(summary.line(photos.skipped), file=sys.stderr)
    if not summary.photos and not output.done:
        raise UserError(f"{' '.join(args.paths)}: there are no photos here.")
    return 1 if summary.errors else 0


def open_detector(path: Path, architecture: str | None = None):
    """The detector in a detector folder or a published .h5 file, which must be of `architecture`.

    None: of any. Raises UserError, also with how to get weights.
    """
    from pipeline.detector import load_detector
    from pipeline.published import import_published, published_file

    if path.suffix == ".h5":
        _require(architecture, published_file(path)[1], path)  # before an import takes seconds
        return import_published(path)
    detector = load_detector(path)
    _require(architecture, detector.architecture.name, path)
    return detector


def _require(architecture: str | None, found: str, path: Path) -> None:
    if architecture not in (None, found):
        raise UserError(
            f"{path}: this is a {found} detector and this script scores with {architecture}: use "
            "the script named after it."
        )


def training_arguments(
    script_docstring: str, recipes: dict[str, dict], arguments: list[str] | None = None
) -> argparse.Namespace:
    """Parse the command line of a train_<model>.py.

    `recipes` is architecture → its recipe: what each of its settings is unless the user says
    otherwise. A setting becomes an option where `_SETTINGS` has it; `init` is where to start.
    The first architecture is the default. The result's `recipe` holds the settings.
    """
    from pipeline.calibration import DEFAULT_RULE, RULES

    parser = script_parser(script_docstring)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path("dataset"),
        metavar="DIR|CSV",
        help="train|validate/real|fake, or a CSV file path,label[,generator][,group][,split]",
    )
    add("--output", type=Path, metavar="DIR", help="the detector folder to write")
    default, *others = recipes
    if others:
        add("--architecture", choices=tuple(recipes), default=default)
    else:
        parser.set_defaults(architecture=default)
    add("--init", metavar="PATH|imagenet|none", help=_INIT)
    for name, setting in _SETTINGS.items():
        defaults = {architecture: recipe.get(name) for architecture, recipe in recipes.items()}
        if any(name in recipe for recipe in recipes.values()):
            said = " or ".join(dict.fromkeys(str(value) for value in defaults.values()))
            text = f"{setting.get('help', '')} (default: {said})".strip()
            add(f"--{name.replace('_', '-')}", **setting | {"help": text})
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--resume", action="store_true", help="go on with an interrupted training")
    add(
        "--workers", type=positive_int, default=os.cpu_count(), help="threads that prepare pictures"
    )
    add("--threshold-rule", default=DEFAULT_RULE, metavar="RULE", help=RULES.replace("%", "%%"))
    add(
        "--show-augmentation",
        type=Path,
        metavar="FILE.png",
        help="write a sheet of augmented training pictures to look at, and stop",
    )
    add(
        "--data-licence",
        default="Not stated by whoever trained this detector: ask before you use it.",
        metavar="TEXT",
        help="the terms of the training data, for the model card",
    )
    args = parser.parse_args(arguments)
    args.recipe = dict(recipes[args.architecture])
    start = args.recipe.pop("init")
    args.init = start if args.init is None else args.init
    for name in _SETTINGS:
        given = getattr(args, name, None)
        if given is not None and name not in args.recipe:
            parser.error(f"--{name.replace('_', '-')} is no setting of {args.architecture}")
        if given is not None:
            args.recipe[name] = given
    return args


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return value


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
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
    "head_epochs": {"type": int, "help": "first epochs, in which only the head is trained"},
    "head_learning_rate": {"type": positive_float, "help": "in these epochs"},
    "patience": {"type": positive_int, "help": "epochs without a better validation AUC"},
    "target_accuracy": {"type": probability, "help": "stop at this validation accuracy"},
    "dropout": {"type": probability},
    "seed": {"type": int},
    "precision": {"choices": ("auto", "fp32", "bf16"), "help": "auto: bf16 where it is faster"},
}
