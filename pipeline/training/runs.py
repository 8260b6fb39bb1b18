"""The folder of one training, `<output>.run/`: what it was asked, how far it is, its logs."""

import json
import shutil
import sys
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write


def open_run(output: Path, settings: dict, resume: bool, write: bool = True) -> Path:
    """Make the folder of a new training for the detector folder `output`, or find it again.

    `settings` is all that shapes the weights, JSON-able; a resumed training must have the same, but
    for those at 0 that it did not know yet.
    With `write` false, in a process that trains along with the one that writes, only its path.
    Raises UserError where it has not, and where an unfinished training would be overwritten.
    """
    run = output.with_name(f"{output.name}.run")
    if not write:
        return run
    path = run / "run.json"
    settings = json.loads(json.dumps(settings))  # as they will be read back
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        earlier, finished = dict(noted["settings"]), bool(noted["finished"])
    except FileNotFoundError:
        earlier, finished = None, True
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete {run} to start anew.") from error
    if resume and earlier is not None:
        # A setting that the program did not have then and that is off has changed nothing.
        new_and_off = {name for name in settings if name not in earlier and not settings[name]}
        both = (settings | earlier).keys() - new_and_off
        changed = sorted(name for name in both if settings.get(name) != earlier.get(name))
        if changed:
            listed = ", ".join(
                f"{name} (was {earlier.get(name)}, is {settings.get(name)})" for name in changed
            )
            raise UserError(
                f"{run}: this training was started with other settings: {listed}. Resume it with "
                "the same ones, or choose another --output."
            )
        return run
    if resume:
        print(f"{run}: nothing to resume yet; starting from the beginning.", file=sys.stderr)
    elif not finished:
        raise UserError(
            f"{run} holds an unfinished training: add --resume to go on with it, or delete that "
            "folder to start anew."
        )
    shutil.rmtree(run, ignore_errors=True)
    _write(path, settings, finished=False)
    return run


def close_run(run: Path) -> None:
    """Note that the training's detector folder has been written."""
    path = run / "run.json"
    _write(path, json.loads(path.read_text(encoding="utf-8"))["settings"], finished=True)


def read_history(run: Path) -> list[dict]:
    """The lines of history.jsonl in a run or detector folder, one an epoch."""
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _write(path: Path, settings: dict, finished: bool) -> None:
    with atomic_write(path) as file:
        json.dump({"settings": settings, "finished": finished}, file, indent=1)
