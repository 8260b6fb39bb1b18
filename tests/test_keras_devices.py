"""Keras networks on several devices, in several processes, and on Keras' torch backend.

Two devices or processes that take half a batch each must come to where one comes with the whole
batch. Sums are added up in another order there (here that makes 3e-8), and Adam divides small
gradients by their own size: the weights must agree to TOLERANCE, after 9 steps that moved them by
some 1e-3.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from models import ARCHITECTURES
from pipeline.detectors.detector import load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.photos.inputs import find_photos
from pipeline.scoring.scoring import Scorer
from pipeline.training.runs import read_history
from tests.conftest import DETECTOR, REPOSITORY
from tests.test_training import KILLED, same_weights, without_time
from tests.tiny_dataset import make_dataset
from tests.tiny_keras import fingerprints

MESO4 = ARCHITECTURES["meso4"]
TOLERANCE = 1e-5
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# No dropout: devices that draw each for themselves drop other things than one for all.
SETTINGS = {"epochs": 3, "head_epochs": 1, "dropout": 0.0}
STEPS = 3

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


def run(command: tuple, *arguments: object, backend: str = "", **variables: str):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    environment.pop("KERAS_BACKEND", None)
    if backend:
        environment["KERAS_BACKEND"] = backend
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def train_tiny(data: Path, run_folder: Path, command=(sys.executable,), backend="", **settings):
    done = run(
        (*command, "-m", "tests.tiny_keras"),
        *(data, run_folder, json.dumps(SETTINGS | settings)),
        backend=backend,
    )
    assert done.returncode == 0 or "killed" in settings, done.stderr
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("faces"), train=24, validate=16)


def last_weights(run_folder: Path) -> dict[str, np.ndarray]:
    """Those of the network after the last epoch, without its optimizer's."""
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(run_folder / "state" / "last.weights.h5") as file:
        file["layers"].visititems(
            lambda name, item: (
                arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    assert len(arrays) > 10
    return arrays


def largest_difference(first: Path, second: Path) -> float:
    first, second = last_weights(first), last_weights(second)
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def pictures_of(folder: Path, device: int, data: Path) -> list[list[int]]:
    """The indices of the pictures that a device was trained with, a list an epoch."""
    known = np.array(fingerprints(data))
    seen = json.loads((folder / f"seen.{device}").read_text())
    indices = [int(np.abs(known - one).argmin()) for one in seen]
    assert np.abs(known[indices] - seen).max() < 10 < np.diff(np.sort(known)).min()
    each = len(indices) // SETTINGS["epochs"]
    return [indices[first : first + each] for first in range(0, len(indices), each)]


def assert_shared_without_overlap(two: Path, one: Path, data: Path) -> None:
    """Two devices have seen together in each epoch what one has, and neither what the other has."""
    for first, second, alone in zip(
        *(pictures_of(*seen, data) for seen in ((two, 0), (two, 1), (one, 0))), strict=True
    ):
        assert len(first) == len(second) == len(alone) / 2 == 12
        assert not set(first) & set(second)
        assert set(first) | set(second) == set(alone) == set(range(24))


def test_two_devices_of_one_process_come_to_where_one_comes(data, tmp_path):
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert train_tiny(data, one, batch_size=8).stdout == f"1 on CPU ({os.cpu_count()} cores)\n"
    done = train_tiny(data, two, batch_size=4, cpus=2)
    assert done.stdout == f"2 on CPU ({os.cpu_count()} cores as 2 devices)\n"
    assert_shared_without_overlap(two.parent, one.parent, data)
    assert 0 <= largest_difference(one, two) < TOLERANCE
    other = tmp_path / "other" / "run"
    train_tiny(data, other, batch_size=4)
    assert largest_difference(one, other) > 10 * TOLERANCE, "any batch would do"


def test_two_processes_come_to_where_one_comes(data, tmp_path):
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    done = train_tiny(data, one / "run", backend="torch", batch_size=8)
    assert done.stdout == f"1 on CPU ({os.cpu_count()} cores), Keras on torch\n"
    done = train_tiny(data, two / "run.{rank}", TORCHRUN, batch_size=4)
    said = f"2 on 2 processes, each on CPU ({os.cpu_count()} cores), Keras on torch\n"
    assert done.stdout == 2 * said
    assert_shared_without_overlap(two, one, data)
    assert 0 <= largest_difference(one / "run", two / "run.0") < TOLERANCE
    assert sorted(path.name for path in two.iterdir()) == ["run.0", "seen.0", "seen.1"]
    assert done.stderr.count("epoch 1/3:   0%") == 1

    for settings in ({"killed_at": "epoch", "killed": 1}, {"killed_at": "batch", "killed": 4}):
        done = train_tiny(
            data, again / "run.{rank}", TORCHRUN, batch_size=4, resume=True, **settings
        )
        assert done.returncode != 0 and "Signal 9 (SIGKILL)" in done.stderr, done.stderr
    done = train_tiny(data, again / "run.{rank}", TORCHRUN, batch_size=4, resume=True)
    assert done.returncode == 0, done.stderr
    assert without_time(read_history(again / "run.0")) == without_time(read_history(two / "run.0"))
    for name in ("last.weights.h5", "best.weights.h5"):
        assert same_weights(*(folder / "run.0" / "state" / name for folder in (two, again)))


def test_one_command_trains_in_two_processes(data, tmp_path):
    output = tmp_path / "weights" / "two"
    arguments = ["--data", data, "--output", output, "--epochs", 1, "--batch-size", 4]
    done = run((*TORCHRUN, "train_meso.py"), *arguments, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    for sentence in ("Fingerprint: ", "Training meso4 on 2 processes, each on CPU"):
        assert done.stderr.count(sentence) == 1
    training = load_detector(output).description["training"]
    assert training["device"].startswith("2 processes, each on CPU")
    [line] = read_history(output)
    assert 0 <= line["val_auc"] <= 1


def test_tensorflow_is_refused_for_several_processes(data, tmp_path):
    arguments = ["--data", data, "--output", tmp_path / "out"]
    done = run((sys.executable, "train_meso.py"), *arguments, backend="tensorflow", WORLD_SIZE="2")
    assert done.returncode == 2
    assert done.stderr.startswith("train_meso.py: KERAS_BACKEND=tensorflow: several processes")
    assert list(tmp_path.iterdir()) == []


def test_another_backend_is_refused(data, tmp_path):
    done = run((sys.executable, "train_meso.py"), "--data", data, backend="jax")
    assert done.returncode == 2
    assert "KERAS_BACKEND=jax: networks are trained on tensorflow or torch" in done.stderr


# Keras on torch


@pytest.fixture(scope="module")
def on_torch(own_cache, data, tmp_path_factory) -> Path:
    """The folder of a detector that the usual command has trained on Keras' torch backend, killed
    and resumed, and beside it `whole`, of one that was not."""
    folder = tmp_path_factory.mktemp("torch")
    arguments = ["--data", data, "--init", DETECTOR, "--epochs", 3, "--batch-size", 8]
    arguments += ["--dropout", 0.2, "--workers", 1]
    done = run(
        (sys.executable, "train_meso.py"), *arguments, "--output", folder / "whole", backend="torch"
    )
    assert done.returncode == 0, done.stderr
    assert "Training meso4 on CPU" in done.stderr and "Keras on torch" in done.stderr
    assert "Warning" not in done.stderr
    output = folder / "killed"
    for killed, rest in ((("batch", STEPS + 1), ()), (("state replaced", 1), ("--resume",))):
        command = (sys.executable, "-c", KILLED, *map(str, killed))
        done = run(command, *arguments, "--output", output, *rest, backend="torch")
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = run(
        (sys.executable, "train_meso.py"),
        *(*arguments, "--output", output, "--resume"),
        backend="torch",
    )
    assert done.returncode == 0, done.stderr
    return output


def test_resumed_on_torch_it_ends_with_the_same_bits(on_torch):
    whole = on_torch.with_name("whole")
    assert len(read_history(whole)) == 3
    assert without_time(read_history(whole)) == without_time(read_history(on_torch))
    for name in (".run/state/last.weights.h5", "/model.weights.h5"):
        assert same_weights(Path(f"{whole}{name}"), Path(f"{on_torch}{name}"))


def test_a_detector_trained_on_torch_scores(on_torch, data):
    detector = load_detector(on_torch)
    assert {"torch", "keras"} <= set(detector.description["training"]["libraries"])
    assert detector.description["export"]["faces"] == 16
    rows = []
    for name in ("real", "fake"):
        scorer = Scorer(load_detector(on_torch), face_mode="none")
        rows += [row for [row] in scorer.score(find_photos([str(data / "validate" / name)]))]
    assert len(rows) == 16
    assert all(0 <= row.fake_probability <= 1 for row in rows)


def test_each_backend_loads_what_the_other_has_written(on_torch):
    """The shipped detector was trained on TensorFlow; this process computes with TensorFlow."""
    program = """
import sys
import numpy as np
from pipeline.keras_engine import training as keras_training
from models import ARCHITECTURES
model = ARCHITECTURES["meso4"].build()
model.load_weights(sys.argv[1])
pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)
logits = model.predict_on_batch(ARCHITECTURES["meso4"].scaling(pixels))[:, 0]
print(keras_training.keras.backend.backend(), *(float(logit) for logit in logits))
"""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)
    for folder, backend in ((DETECTOR, "torch"), (on_torch, "tensorflow")):
        done = run((sys.executable, "-c", program), folder / "model.weights.h5", backend=backend)
        name, *logits = done.stdout.split()
        assert name == backend, done.stderr
        expected = Runtime(folder / "model.onnx", MESO4).logits(pixels)
        np.testing.assert_allclose([float(logit) for logit in logits], expected, atol=1e-3)


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_bfloat16_trains_a_detector_that_computes_in_32_bits(backend, data, tmp_path):
    """The exported graph agrees to 1e-4 with the network, or there would be no detector."""
    arguments = ["--data", data, "--output", tmp_path / "out", "--init", DETECTOR, "--epochs", 1]
    done = run(
        (sys.executable, "train_meso.py"),
        *(*arguments, "--precision", "bf16", "--batch-size", 8),
        backend=backend,
    )
    assert done.returncode == 0, done.stderr
    assert (
        load_detector(tmp_path / "out").description["training"]["arguments"]["precision"] == "bf16"
    )
