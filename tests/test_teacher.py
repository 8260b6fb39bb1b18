"""--teacher: a detector's opinion of each changed picture is learned beside its label."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import train_vit
from models import ARCHITECTURES
from pipeline.common.errors import UserError
from pipeline.data.dataset import load_dataset
from pipeline.detectors.detector import GRAPH, load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.feeding.batches import Batches
from pipeline.feeding.teacher import SHARE, TEMPERATURE, Teacher
from pipeline.photos.images import resize
from pipeline.torch_engine.recipe import TorchRecipe
from pipeline.torch_engine.weights import WEIGHTS
from tests import tiny_timm
from tests.conftest import DETECTOR
from tests.tiny_dataset import make_dataset

tiny_timm.register()

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), train=24, validate=16)


def recipe(**changes: object) -> TorchRecipe:
    settings = {name: value for name, value in train_vit.RECIPE.items() if name != "init"}
    return TorchRecipe(**settings | {"precision": "fp32"} | changes)


def train(data: Path, output: Path, *options: object) -> None:
    arguments = ["--data", data, "--output", output, "--architecture", "tiny_vit", "--init", "none"]
    arguments += ["--precision", "fp32", "--epochs", 1, "--batch-size", 8, "--workers", 1, *options]
    sys.argv = ["train_vit.py", *map(str, arguments)]
    train_vit.main()


def test_a_label_is_partly_the_softened_opinion_of_the_changed_picture(data):
    """Meso4, a Keras network of 256 pixels, teaches what sees 64."""
    dataset, numbers = load_dataset(data), [3, 0, 5, 11]
    plain = Batches(ARCHITECTURES["tiny_vit"], recipe(), dataset, workers=2)
    taught = Batches(ARCHITECTURES["tiny_vit"], recipe(teacher=str(DETECTOR)), dataset, workers=2)
    pixels, labels = plain.augmented(4, numbers)
    same_pixels, soft = taught.augmented(4, numbers)
    assert np.array_equal(pixels, same_pixels)
    detector = load_detector(DETECTOR)
    seen = np.stack([resize(picture, 256, detector.resize_filter) for picture in pixels])
    logits = Runtime(DETECTOR / GRAPH, detector.architecture).logits(seen)
    opinion = 1 / (1 + np.exp(-logits / detector.calibration.temperature / TEMPERATURE))
    np.testing.assert_allclose(soft[:, 0], (1 - SHARE) * labels[:, 0] + SHARE * opinion, atol=1e-5)
    assert soft.dtype == np.float32 and soft.shape == (4, 1)


def test_the_description_names_the_teacher_and_no_path(data, tmp_path):
    train(data, tmp_path / "pupil", "--teacher", DETECTOR)
    text = (tmp_path / "pupil" / "detector.json").read_text()
    training = json.loads(text)["training"]
    graph = json.loads((DETECTOR / "detector.json").read_text())["files"][GRAPH]
    assert training["teacher"] == {"name": "meso4", "sha256": graph}
    assert str(DETECTOR) not in text
    assert "| teacher | meso4 |" in (tmp_path / "pupil" / "README.md").read_text()
    assert "teacher" not in json.loads((DETECTOR / "detector.json").read_text())["training"]


def test_a_training_is_resumed_with_the_same_teacher_only(data, tmp_path):
    train(data, tmp_path / "pupil", "--teacher", DETECTOR)
    weights = load_file(tmp_path / "pupil" / WEIGHTS)
    with pytest.raises(UserError, match="teacher"):
        train(data, tmp_path / "pupil", "--resume")
    train(data, tmp_path / "pupil", "--resume", "--teacher", DETECTOR)
    again = load_file(tmp_path / "pupil" / WEIGHTS)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


def test_what_is_no_detector_is_refused_by_its_name(data, tmp_path):
    with pytest.raises(UserError, match=r"--teacher.*nobody"):
        train(data, tmp_path / "pupil", "--teacher", tmp_path / "nobody")
    with pytest.raises(UserError, match=r"--teacher.*probe"):
        train(data, tmp_path / "pupil", "--teacher", DETECTOR, "--tuning", "probe")


def test_any_number_of_pictures_gets_its_labels():
    teacher, random = Teacher(DETECTOR), np.random.default_rng(0)
    pixels = random.integers(0, 256, (70, 64, 64, 3), np.uint8)
    labels = random.integers(0, 2, (70, 1)).astype(np.float32)
    soft = teacher(pixels, labels)
    assert soft.shape == (70, 1)
    assert (np.abs(soft - labels) <= SHARE).all()
    np.testing.assert_allclose(soft[:5], teacher(pixels[:5], labels[:5]), atol=1e-4)
