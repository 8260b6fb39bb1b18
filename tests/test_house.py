"""The rules of the house: who may import whom, scripts that stay tables of contents, style."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from models import ARCHITECTURES, KerasNetworks, TorchNetworks

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(REPOSITORY.glob("*.py"))
PIPELINE = REPOSITORY / "pipeline"
MODULES = sorted((REPOSITORY / "models").glob("*.py")) + sorted(PIPELINE.rglob("*.py"))
# Each room of pipeline/, and the rooms that it uses: all of them above it.
ARROWS = {
    "common": "",
    "origin": "",
    "decoding": "common",
    "photos": "common origin decoding",
    "videos": "common photos",
    "detectors": "common",
    "foreign": "common detectors",
    "data": "common photos videos",
    "evaluation": "common photos detectors data",
    "feeding": "common photos detectors data",
    "keras_engine": "common detectors foreign data feeding",
    "torch_engine": "common detectors foreign data evaluation feeding",
    "training": "common photos detectors foreign data evaluation feeding keras_engine torch_engine",
    "rows": "common origin photos detectors",
    "scoring": "common origin photos videos detectors foreign evaluation keras_engine torch_engine "
    "rows",
    "comparison": "common photos detectors foreign data evaluation training scoring",
    "requests": "common detectors rows",
    "service": "common photos videos detectors rows scoring requests",
}
MOST_FILES = 13  # in a room
MOST_LINES = 400  # in a file
# pipeline modules that train, audit, draw or command a cluster; scoring a photo needs none of them
TRAINING_ONLY = {
    "comparison.comparison",
    "comparison.entries",
    "comparison.figures",
    "comparison.mistakes",
    "comparison.record",
    "comparison.report",
    "comparison.scores",
    "data.audit",
    "data.leaks",
    "detectors.graph_weights",
    "evaluation.metrics",
    "evaluation.model_card",
    "evaluation.model_index",
    "evaluation.precision",
    "feeding.batches",
    "feeding.engine",
    "foreign.hub",
    "foreign.hugging_face",
    "foreign.library_formats",
    "keras_engine.backend",
    "keras_engine.callbacks",
    "keras_engine.export",
    "keras_engine.state",
    "keras_engine.training",
    "keras_engine.weights",
    "scoring.cluster",
    "scoring.cluster_listing",
    "scoring.importing",
    "torch_engine.average",
    "torch_engine.clip",
    "torch_engine.device",
    "torch_engine.export",
    "torch_engine.probe",
    "torch_engine.progress",
    "torch_engine.recipe",
    "torch_engine.regression",
    "torch_engine.trainer",
    "torch_engine.training",
    "torch_engine.tuning",
    "torch_engine.weights",
    "training.finishing",
    "training.for_hub",
    "training.incremental",
    "training.shrinking",
    "training.training",
}
HEAVY = {
    "av",
    "huggingface_hub",
    "imagehash",
    "keras",
    "markdown",
    "matplotlib",
    "peft",
    "pyarrow",
    "ray",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "timm",
    "torch",
    "transformers",
}


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports; with `top_level_only` not those imported in functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    """pipeline/rows/files.py → rows.files"""
    return ".".join(path.relative_to(PIPELINE).with_suffix("").parts)


def uses(path: Path) -> set[str]:
    """The modules of pipeline/ that a file imports or names in a string, as `python -m` and
    importlib take it: {"rows.files", …}."""
    there = {module_of(module) for module in PIPELINE.rglob("*.py")}
    constants = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    names = {name.removeprefix("pipeline.") for name in imported(path) | constants}
    return names & there - {module_of(path) if PIPELINE in path.parents else ""}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_never_go_back_up(path):
    scripts = {script.stem for script in SCRIPTS}
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & scripts
    if path.parent.name == "models":
        assert not {name for name in names if name.split(".")[0] in ("pipeline", "runpy")}


def test_each_room_uses_only_rooms_above_it():
    order = list(ARROWS)
    for room, above in ARROWS.items():
        assert not set(above.split()) - set(order[: order.index(room)])
    found = {room: set() for room in ARROWS}
    for path in PIPELINE.glob("*/*.py"):
        found[path.parent.name] |= {name.split(".")[0] for name in uses(path)} - {path.parent.name}
    assert found == {room: set(above.split()) for room, above in ARROWS.items()}
    assert {path.name for path in PIPELINE.glob("*.py")} == {"__init__.py"}


def test_no_files_of_a_room_import_each_other_in_a_circle():
    graph = {module_of(path): uses(path) for path in PIPELINE.glob("*/*.py")}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_rooms_and_files_stay_small():
    for room in ARROWS:
        files = [path for path in (PIPELINE / room).glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_FILES
        for path in files:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_tables_of_contents(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert lines[0].startswith('"""'), "a script opens with a docstring"
    assert f"python {path.name}" in ast.get_docstring(ast.parse("\n".join(lines)))
    others = {script.stem for script in SCRIPTS} - {path.stem}
    assert not {name.split(".")[0] for name in imported(path)} & others


@pytest.mark.parametrize(
    "path",
    [path for path in PIPELINE.glob("*/*.py") if module_of(path) not in TRAINING_ONLY],
    ids=module_of,
)
def test_what_scoring_imports_is_lean(path):
    names = imported(path, top_level_only=True)
    assert not {name.split(".")[0] for name in names} & HEAVY
    assert not {f"pipeline.{name}" for name in TRAINING_ONLY} & names


def test_style():
    for arguments in (["check", "."], ["format", "--check", "."]):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert ruff.returncode == 0, ruff.stdout + ruff.stderr


@pytest.mark.parametrize(
    "engine", ["keras_engine/training.KerasEngine", "torch_engine/training.TorchEngine"]
)
def test_each_engine_offers_what_the_protocol_says(engine):
    """Compared as source, since no process should import both frameworks for it."""
    file, name = engine.split(".")
    promised = methods_of("feeding/engine", "Engine")
    assert promised and promised.items() <= methods_of(file, name).items()
    assert "pipeline.training.training" not in imported(REPOSITORY / "pipeline" / f"{file}.py")


def methods_of(file: str, name: str) -> dict[str, str]:
    """The public methods of a class in pipeline/, each with its arguments as they are written."""
    tree = ast.parse((REPOSITORY / "pipeline" / f"{file}.py").read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {
        node.name: ast.unparse(node.args)
        for node in found.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_module_of_networks_offers_what_its_framework_needs(name):
    promised = {"keras": KerasNetworks, "torch": TorchNetworks}[ARCHITECTURES[name].framework]
    path = REPOSITORY / f"{ARCHITECTURES[name].builder.split(':')[0].replace('.', '/')}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assigned = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    defined |= {target.id for target in assigned if isinstance(target, ast.Name)}
    wanted = {member for member in vars(promised) if member[0] != "_"}
    assert wanted | set(promised.__annotations__) <= defined
