"""TensorFlow and torch are never both in one process, whatever program it is."""

import os
import re
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


def frameworks_of(*command: object) -> set[str]:
    """Which of the two a Python program has imported when it ends well, by its own account."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *map(str, command)],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, re.sub(r"import time:.*\n", "", done.stderr)
    return imported(done.stderr)


def imported(profile: str) -> set[str]:
    """The frameworks in what Python's option importtime writes. Their modules count, not their own
    names: these stand there also where an import was refused."""
    return set(re.findall(r"^import time:.*\| +(tensorflow|torch)\.", profile, re.MULTILINE))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("faces"), train=8, validate=8)


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
def test_a_training_has_the_framework_of_its_network(script, options, framework, data, tmp_path):
    arguments = ["--data", data, "--epochs", 1, "--batch-size", 4, "--output", tmp_path / "out"]
    assert frameworks_of(script, *arguments, *options) == {framework}


@pytest.mark.slow
def test_heat_maps_of_both_kinds_of_networks_have_torch_alone(tmp_path):
    both = [detector_folder(tmp_path / "xception", "xception"), RECOMMENDED]
    weights = [argument for folder in both for argument in ("--weights", folder)]
    arguments = [FACE_SAMPLE, *weights, "--explain", tmp_path / "why"]
    assert frameworks_of("infer_xception_efficientnet.py", *arguments) == {"torch"}
    assert len(list((tmp_path / "why").iterdir())) == 2


@needs_shared
def test_a_comparison_with_published_weights_has_torch_alone(data, tmp_path):
    """Theirs are imported with TensorFlow; the mistakes of both detectors are explained."""
    detectors = [SHARED / "mesonet" / "Meso4_DF.h5", RECOMMENDED]
    arguments = [*detectors, "--data", data / "validate", "--grid-sample", 0]
    arguments += ["--output", tmp_path / "reports"]
    assert frameworks_of("compare_models.py", *arguments) == {"torch"}


def test_the_page_explains_with_torch_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with serving(tmp_path) as running:
        for model in (DETECTOR.name, RECOMMENDED.name):
            answer = httpx.post(
                f"{running.address}/api/score",
                files={"files": (FACE_SAMPLE.name, FACE_SAMPLE.read_bytes())},
                data={"model": model, "explain": "1"},
                timeout=900,
            )
            [photo] = answer.json()["photos"]
            assert len(photo["heat_maps"]) == 1
        log = running.log()
    assert imported(log) == {"torch"}
