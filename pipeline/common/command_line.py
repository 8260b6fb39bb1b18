"""What all scripts share: how they end, their parsers, and the checks of what is typed."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.out_of_memory import is_out_of_memory, out_of_memory_in_words
from pipeline.common.streams import accept_any_text


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


def script_parser(script_docstring: str, command: str = "") -> argparse.ArgumentParser:
    """A parser whose --help is the script's docstring, as it is written, before the arguments.

    `command`: the one of manage_detectors.py's that it parses.
    """
    return argparse.ArgumentParser(
        prog=f"manage_detectors.py {command}" if command else None,
        description=script_docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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
