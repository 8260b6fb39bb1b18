"""The scripts' flags, frozen in flags.txt: whoever changes one shall mean to.

python tests/test_flags.py      writes the flags of today into flags.txt
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FROZEN = Path(__file__).with_name("flags.txt")
MANAGE = ("recalibrate", "precision", "shrink", "average", "card", "for-hub", "release")
COMMANDS = [path.name for path in sorted(REPOSITORY.glob("*.py"))]
COMMANDS += [f"manage_detectors.py {name}" for name in MANAGE]


def flags_of(command: str) -> str:
    """The command and its flags, in the order of --help: "infer_vit.py --weights --output …"."""
    shown = subprocess.run(
        [sys.executable, *command.split(), "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=120,
    ).stdout
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)
    return " ".join([command, *dict.fromkeys(options)])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_are_those_that_are_frozen(command):
    frozen = FROZEN.read_text(encoding="utf-8").splitlines()
    assert flags_of(command) in frozen, "python tests/test_flags.py freezes them anew"


def test_nothing_is_frozen_of_scripts_that_are_gone():
    frozen = FROZEN.read_text(encoding="utf-8").splitlines()
    assert [line.partition(" --")[0] for line in frozen] == COMMANDS


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{flags_of(command)}\n" for command in COMMANDS), encoding="utf-8")
