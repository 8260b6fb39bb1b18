"""TensorFlow and torch are never both in one process, whatever program it is."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY
from tests.shared import SHARED, needs_shared
from tests.test_explanation import detector_folder
from tests.tiny_dataset import make_dataset
from tests.web_service import serving

pytestmark = pytest.mark.usefixtures("own_cache")
RECOMMENDED = REPOSITORY / "weights" / "efficientnet_lite0"

# Read by every Python program as it starts. Where an import is refused no part of it is imported.
NOTE_IMPORTS = """
import os, sys
seen = set()
def note(event, arguments):
    name, dot, _ = arguments[0].partition(".") if event == "import" else ("", "", "")
    if dot and name in ("tensorflow", "torch") and name not in seen:
        seen.add(name)
        with open(os.path.join(os.path.dirname(__file__), str(os.getpid())), "a") as file:
            print(name, file=file)
sys.addaudithook(note)
"""


@pytest.fixture
def frameworks(tmp_path, monkeypatch):
    """Has what is started from now on note what it imports; a function that gives the frameworks
    of each process that has any."""
    folder = tmp_path / "imports"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NOTE_IMPORTS)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)

    def frameworks() -> list[list[str]]:
        noted = [path for path in folder.iterdir() if path.name.isdigit()]
        return sorted(sorted(path.read_text().split()) for path in noted)

    return frameworks


def run(*command: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("faces"), train=8, validate=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "framework"),
    [
        ("train_meso.py", [], "tensorflow"),
        pytest.param(
            "train_vit.py",
            ["--architecture", "vit_tiny_patch16_224", "--init", "none"],
            "torch",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_training_has_the_framework_of_its_network(
    script, options, framework, data, frameworks, tmp_path
):
    arguments = ["--data", data, "--epochs", 1, "--batch-size", 4, "--output", tmp_path / "out"]
    run(script, *arguments, *options)
    assert frameworks() == [[framework]]


@pytest.mark.slow
def test_heat_maps_of_both_kinds_of_networks_have_torch_alone(frameworks, tmp_path):
    both = [detector_folder(tmp_path / "xception", "xception"), RECOMMENDED]
    weights = [argument for folder in both for argument in ("--weights", folder)]
    arguments = [FACE_SAMPLE, *weights, "--explain", tmp_path / "why"]
    run("infer_xception_efficientnet.py", *arguments)
    assert frameworks() == [["torch"]]
    assert len(list((tmp_path / "why").iterdir())) == 2


@pytest.mark.slow
@needs_shared
def test_a_comparison_with_published_weights_keeps_them_apart(
    data, frameworks, tmp_path, monkeypatch
):
    """Theirs are imported with TensorFlow, in a process of their own; the mistakes of both
    detectors are explained."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    detectors = [SHARED / "mesonet" / "Meso4_DF.h5", RECOMMENDED]
    arguments = [*detectors, "--data", data / "validate", "--grid-sample", 0]
    run("compare_models.py", *arguments, "--output", tmp_path / "reports")
    assert frameworks() == [["tensorflow"], ["torch"]]


def test_the_page_explains_with_torch_alone(frameworks, tmp_path):
    with serving(tmp_path) as running:
        assert frameworks() == []
        for model in (DETECTOR.name, RECOMMENDED.name):
            answer = httpx.post(
                f"{running.address}/api/score",
                files={"files": (FACE_SAMPLE.name, FACE_SAMPLE.read_bytes())},
                data={"model": model, "explain": "1"},
                timeout=900,
            )
            [photo] = answer.json()["photos"]
            assert len(photo["heat_maps"]) == 1
    assert frameworks() == [["torch"]]
