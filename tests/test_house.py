"""The rules of the house: who may import whom, scripts that stay tables of contents, style."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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
    "comparison_record",
    "comparison_report",
    "comparison_scores",
    "cluster",
    "cluster_listing",
    "finishing",
    "hub",
    "hugging_face",
    "incremental",
    "keras_backend",
    "keras_training",
    "metrics",
    "precision",
    "published",
    "report",
    "torch_average",
    "torch_export",
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
        assert not {name for name in names if name.split(".")[0] == "pipeline"}


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
