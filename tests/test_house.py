"""The rules of the house: who may import whom, scripts that stay tables of contents, style."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from models import ARCHITECTURES, KerasNetworks, TorchNetworks

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(REPOSITORY.glob("*.py"))
MODULES = sorted((REPOSITORY / "models").glob("*.py")) + sorted(
    (REPOSITORY / "pipeline").glob("*.py")
)
# pipeline modules that train, audit, draw or command a cluster; scoring a photo needs none of them
TRAINING_ONLY = {
    "audit",
    "batches",
    "comparison",
    "comparison_entries",
    "comparison_figures",
    "comparison_mistakes",
    "comparison_record",
    "comparison_report",
    "comparison_scores",
    "cluster",
    "cluster_listing",
    "engine",
    "finishing",
    "hub",
    "hugging_face",
    "incremental",
    "keras_backend",
    "keras_callbacks",
    "keras_export",
    "keras_training",
    "keras_weights",
    "leaks",
    "metrics",
    "model_index",
    "precision",
    "published",
    "report",
    "shares",
    "torch_average",
    "torch_device",
    "torch_export",
    "torch_progress",
    "torch_recipe",
    "torch_trainer",
    "torch_training",
    "torch_weights",
    "training",
    "tuning",
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_never_go_back_up(path):
    scripts = {script.stem for script in SCRIPTS}
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & scripts
    if path.parent.name == "models":
        assert not {name for name in names if name.split(".")[0] in ("pipeline", "runpy")}


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
    [path for path in MODULES if path.parent.name == "pipeline" and path.stem not in TRAINING_ONLY],
    ids=lambda path: path.name,
)
def test_what_scoring_imports_is_lean(path):
    names = imported(path, top_level_only=True)
    assert not {name.split(".")[0] for name in names} & HEAVY
    assert not {f"pipeline.{name}" for name in TRAINING_ONLY - {"published"}} & names


def test_style():
    for arguments in (["check", "."], ["format", "--check", "."]):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert ruff.returncode == 0, ruff.stdout + ruff.stderr


@pytest.mark.parametrize("engine", ["keras_training.KerasEngine", "torch_training.TorchEngine"])
def test_each_engine_offers_what_the_protocol_says(engine):
    """Compared as source, since no process should import both frameworks for it."""
    file, name = engine.split(".")
    promised = methods_of("engine", "Engine")
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
