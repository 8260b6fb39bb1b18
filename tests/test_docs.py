"""README.md and docs/: short enough, nothing that is not there, no command that does not parse."""

import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from manage_detectors import COMMANDS
from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
FOLDERS = "benchmarks|docs|models|notebooks|pipeline|samples|static|templates|tests"
# Made by what the page tells to run, or fetched: such paths need not be here.
MADE = re.compile(r"tests?/\*$|test/")
OTHER_PROGRAMS = {"pip", "pytest", "venv", "ruff"}


def named(pages: list[Path]) -> list:
    return [pytest.param(page, id=page.name) for page in pages]


def links(page: Path) -> list[str]:
    """The relative links of a page, without their anchors."""
    found = re.findall(r"\]\(<?([^)>\s]+)>?\)", page.read_text("utf-8"))
    return [unquote(link.partition("#")[0]) for link in found if not re.match(r"\w+:|#", link)]


def paths(text: str) -> set[str]:
    """What a text names of this repository: files in its folders, and Python files anywhere."""
    in_folders = re.findall(rf"(?<![\w/.*-])(?:{FOLDERS})/[\w.*/-]*", text.replace("\\_", "_"))
    python_files = re.findall(r"(?<![\w/.*-])[\w*]+\.py\b", text)
    return {path.rstrip(".") for path in in_folders + python_files if not MADE.match(path)}


def is_there(path: str) -> bool:
    folders = (REPOSITORY, REPOSITORY / "pipeline", REPOSITORY / "benchmarks")
    return any(any(folder.glob(path)) for folder in folders)


def commands(text: str) -> Iterator[str]:
    """The commands in the indented and fenced blocks and in the code spans of a page.

    In a block, what stands behind two spaces or more is a remark on the command.
    """
    text = re.sub(r" *\\\n *", " ", text)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += [line[4:] for line in text.splitlines() if line.startswith("    ")]
    yield from (re.split(r"\s{2,}|\s+→", line.strip())[0] for line in lines)
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        yield " ".join(span.split())


def calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """Of each command that runs a script of ours: the script, or -m and its module, and the flags.

    >>> list(calls("    torchrun --nnodes 2 train_vit.py --data dataset/"))
    [('train_vit.py', ['--data'])]
    """
    for command in commands(text):
        try:
            words = shlex.split(command)
        except ValueError:  # prose with an apostrophe, or a pattern
            continue
        for number, word in enumerate(words):
            script = None
            if word == "-m" and "python" in words[number - 1] and number + 1 < len(words):
                script = words[number + 1]
                if script in OTHER_PROGRAMS:
                    break
            elif re.fullmatch(r"(benchmarks/)?\w+\.py", word) and (number or is_there(word)):
                script = word
            if script:
                rest = words[number + 1 :]
                rest = rest[: rest.index("|")] if "|" in rest else rest
                yield script, [word.partition("=")[0] for word in rest if re.match("--[a-z]", word)]
                break


def shown_flags() -> dict[str, dict[str, set[str]]]:
    """Script → flag → the pages that show it."""
    shown: dict[str, dict[str, set[str]]] = {}
    for page in PAGES:
        for script, flags in calls(page.read_text("utf-8")):
            for flag in ["--help", *flags]:
                shown.setdefault(script, {}).setdefault(flag, set()).add(page.name)
    return shown


@functools.cache
def help_of(script: str) -> str:
    name, *rest = script.split()
    if name.endswith(".py"):
        [path] = [p for p in (REPOSITORY / name, REPOSITORY / "benchmarks" / name) if p.exists()]
        command = [str(path), *rest]
    else:
        command = ["-m", script]
    ran = subprocess.run(
        [sys.executable, *command, "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def knows(script: str, flag: str) -> bool:
    return bool(re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", options_of(script)))


def options_of(script: str) -> str:
    """The part of its --help that argparse writes: the text before it may show other programs.

    With that of its commands, where a script has several.
    """
    usage, _, options = help_of(script).partition("\noptions:")
    commands = COMMANDS if script == "manage_detectors.py" else ()
    below = [options_of(f"{script} {name}") for name in commands]
    return "\n".join([usage.split("\n\n")[0], options, *below])


def test_the_readme_is_one_page():
    assert len(README.read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", named(PAGES))
def test_every_link_leads_somewhere(page):
    assert not [link for link in links(page) if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", named(PAGES))
def test_every_path_is_there(page):
    assert not sorted(path for path in paths(page.read_text("utf-8")) if not is_there(path))


def test_the_readme_leads_to_every_page():
    assert {page.resolve() for page in PAGES[1:]} <= {
        (README.parent / link).resolve() for link in links(README)
    }


def test_the_tree_names_every_script_and_room():
    tree = README.read_text("utf-8").partition("## Where things are")[2].partition("\n## ")[0]
    patterns = {name for name in paths(tree) if name.endswith(".py")}
    scripts = {path.name for path in REPOSITORY.glob("*.py")}
    assert {path.name for name in patterns for path in REPOSITORY.glob(name)} == scripts
    rooms = {path.name for path in (REPOSITORY / "pipeline").iterdir() if any(path.glob("*.py"))}
    if rooms:
        named = re.findall(r"^ {6}((?:\w+/ +)+)", tree, re.MULTILINE)
        assert {room for line in named for room in re.findall(r"\w+", line)} == rooms


@pytest.mark.parametrize("script", sorted(shown_flags()))
def test_every_command_parses(script):
    wrong = {
        flag: pages for flag, pages in shown_flags()[script].items() if not knows(script, flag)
    }
    assert not wrong


def test_every_make_target_is_there():
    targets = set(
        re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    )
    asked = {
        word
        for page in PAGES
        for command in commands(page.read_text("utf-8"))
        if (word := re.sub(r"^make (\w+).*|.*", r"\1", command))
    }
    assert {"demo", "web"} <= asked <= targets


def test_wrong_pages_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "See [there](missing.md#part), pipeline/missing.py and `missing_too.py`.\n\n"
        "    find . | python infer_meso4.py - --no-such-flag        finds --face none\n"
        "    torchrun --nnodes 2 train_vit.py --data \\\n        dataset/ --epoch 3\n"
    )
    text = page.read_text()
    assert links(page) == ["missing.md"]
    assert {path for path in paths(text) if not is_there(path)} == {
        "pipeline/missing.py",
        "missing_too.py",
    }
    found = dict(calls(text))
    assert found["infer_meso4.py"] == ["--no-such-flag"]
    assert found["train_vit.py"] == ["--data", "--epoch"]
    assert knows("infer_meso4.py", "--face") and not knows("infer_meso4.py", "--no-such-flag")
    assert not knows("infer_meso4.py", "--fac"), "an abbreviation"


@pytest.mark.parametrize("tool", ["codespell", "vulture"])
def test_nothing_is_misspelt_and_nothing_is_dead(tool):
    ran = subprocess.run(
        [Path(sys.executable).with_name(tool)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
