"""Training from the command line to the detector folder, killed at its worst moments and resumed.

The reference training has fakes that are no different from its real pictures, so that its
validation AUC goes up and down by chance: on any machine it stops early, after its best epoch.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models import ARCHITECTURES
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.data.dataset import load_dataset
from pipeline.detectors.detector import check_folder, load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.evaluation.metrics import auc
from pipeline.evaluation.shares import wilson
from pipeline.feeding.batches import Batches
from pipeline.feeding.engine import Plan
from pipeline.photos.images import read_image
from pipeline.photos.inputs import find_photos
from pipeline.scoring.scoring import Scorer
from pipeline.training.runs import read_history
from tests.conftest import DETECTOR
from tests.shared import SHARED, needs_shared
from tests.tiny_dataset import make_dataset
from tests.tiny_keras import SETTINGS

REPOSITORY = Path(__file__).resolve().parent.parent
MESO4 = ARCHITECTURES["meso4"]
EPOCHS, PATIENCE, STEPS = 40, 2, 3  # it stops long before, or the AUC would rise 20 times

pytestmark = pytest.mark.usefixtures("own_cache")

# Runs train_meso.py and kills it after the n-th time that something has happened.
KILLED = """
import os, signal, sys
from pathlib import Path

moment, number, output = sys.argv[1], int(sys.argv[2]), sys.argv[sys.argv.index("--output") + 1]
sys.argv[:3] = ["train_meso.py"]

import train_meso
from pipeline.common import command_line
from pipeline.keras_engine import callbacks as keras_callbacks
from pipeline.keras_engine import training as keras_training
from pipeline.training import training

def kill_after(owner, name, counts=lambda *arguments: True, first=lambda *arguments: None):
    original, calls = getattr(owner, name), []
    def replacement(*arguments, **named):
        result = original(*arguments, **named)
        calls.extend([name] if counts(*arguments) else [])
        if len(calls) == number:
            first(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, replacement)

def moves(name):
    return lambda old, new: Path(old).name == name

match moment:
    case "batch":
        kill_after(keras_callbacks.ProgressBar, "on_train_batch_end")
    case "half a weights file":
        halve = lambda model, path: os.truncate(path, os.path.getsize(path) // 2)
        kill_after(keras_training.keras.Model, "save_weights", first=halve)
    case "state set aside":
        kill_after(os, "rename", moves("state"))
    case "state replaced":
        kill_after(keras_callbacks, "replace_folder")
    case "detector set aside":
        kill_after(os, "rename", moves(Path(output).name))
    case "detector written":
        kill_after(training, "finish_training")

command_line.run(train_meso.main)
"""


def run_training(*arguments: object, killed: tuple[str, int] | None = None):
    """Run train_meso.py to its end, or until it is `killed` (moment, how many of them)."""
    script = ["-c", KILLED, *map(str, killed)] if killed else [str(REPOSITORY / "train_meso.py")]
    return subprocess.run(
        [sys.executable, *script, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pictures to train and to validate with, and among each a broken one."""
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder, train=24, validate=32, strength=0, names=("train", "val"))
    (folder / "train" / "real" / "torn.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "val" / "fake" / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def reference(own_cache, data, tmp_path_factory) -> SimpleNamespace:
    """A finished training: its `data`, `arguments`, `output`, `run`, `history`; what it said."""
    folder = tmp_path_factory.mktemp("reference")
    arguments = ["--data", data, "--epochs", EPOCHS, "--patience", PATIENCE, "--batch-size", 8]
    arguments += ["--learning-rate", 0.01, "--dropout", 0.2, "--workers", 2]
    output = folder / "weights" / "tiny"
    done = run_training(*arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    run = output.with_name("tiny.run")
    return SimpleNamespace(
        data=data,
        arguments=arguments,
        output=output,
        run=run,
        history=read_history(run),
        stdout=done.stdout,
        stderr=done.stderr,
    )


@pytest.fixture(scope="module")
def training():
    """The module pipeline.keras_engine.training, which takes TensorFlow's seconds to import."""
    from pipeline.keras_engine import training as keras_training

    return keras_training


def weights_of(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return arrays


def same_weights(first: Path, second: Path) -> bool:
    first, second = weights_of(first), weights_of(second)
    assert len(first) > 10
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def without_time(history: list[dict]) -> list[dict]:
    return [{name: line[name] for name in line if name != "seconds"} for line in history]


def validation_scores(folder: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The labels and fake_probabilities of the validation pictures, as scoring gives them."""
    labels, probabilities = [], []
    for label, name in enumerate(("real", "fake")):
        scorer = Scorer(load_detector(folder), face_mode="none")
        for [row] in scorer.score(find_photos([str(data / "val" / name)])):
            if row.verdict != "error":
                labels.append(label)
                probabilities.append(row.fake_probability)
    return np.array(labels), np.array(probabilities)


# ---- what a training leaves behind


@pytest.mark.slow
def test_training_stops_when_the_validation_auc_no_longer_rises(reference):
    aucs = [line["val_auc"] for line in reference.history]
    assert [line["epoch"] for line in reference.history] == [*range(1, len(aucs) + 1)]
    best = int(np.argmax(aucs))
    assert len(aucs) == best + 1 + PATIENCE < EPOCHS
    training = load_detector(reference.output).description["training"]
    assert (training["best_epoch"], training["epochs_run"]) == (best + 1, len(aucs))


@pytest.mark.slow
def test_the_detector_has_the_weights_of_the_best_epoch(reference):
    aucs = [line["val_auc"] for line in reference.history]
    written = weights_of(reference.output / "model.weights.h5")
    best, last = (  # with the optimizer's state, too
        weights_of(reference.run / "state" / f"{name}.weights.h5") for name in ("best", "last")
    )
    assert all(np.array_equal(best[name], weight) for name, weight in written.items())
    assert not all(np.array_equal(last[name], weight) for name, weight in written.items())
    labels, probabilities = validation_scores(reference.output, reference.data)
    assert len(labels) == 32
    scored = auc(labels, probabilities)
    assert scored == pytest.approx(max(aucs), abs=2e-3)
    metrics = load_detector(reference.output).description["metrics"]
    assert scored == pytest.approx(metrics["auc"], abs=1e-9)
    assert metrics["images"] == {"real": 16, "fake": 16}


@pytest.mark.slow
def test_every_section_of_the_description_is_there(reference):
    description = check_folder(reference.output)
    assert description["format"] == 1
    assert (description["name"], description["architecture"]) == ("tiny", "meso4")
    assert description["input"] == {
        "size": 256,
        "mean": [0, 0, 0],
        "std": [255, 255, 255],
        "layout": "NHWC",
        "resize": "area",
    }
    assert description["face"]["mode"] == "auto"
    assert description["face"]["margin"] > 1
    calibration, metrics = description["calibration"], description["metrics"]
    assert set(calibration) == {"temperature", "threshold", "uncertain_from", "rule", "images"}
    assert 0 <= calibration["uncertain_from"] <= calibration["threshold"] <= 1
    names = {"auc", "ap", "eer", "accuracy", "recall_real", "recall_fake", "ece", "ece_before"}
    assert all(0 <= metrics[name] <= 1 for name in names)
    low, high = metrics["auc_95"]
    assert low <= metrics["auc"] <= high
    training = description["training"]
    assert training["start"] == "scratch"
    given = {"epochs": EPOCHS, "batch_size": 8, "learning_rate": 0.01, "patience": 2, "seed": 0}
    assert given.items() <= training["arguments"].items()
    assert training["images"] == {"real": 12, "fake": 12}
    assert len(training["fingerprint"]) == 64
    assert {"tensorflow", "keras", "numpy", "openvino"} <= set(training["libraries"])
    assert all(training[name] for name in ("date", "python", "device", "data_licence", "minutes"))
    assert description["export"]["faces"] == 32
    assert 0 <= description["export"]["largest_difference"] <= 1e-4


@pytest.mark.slow
def test_every_file_is_there_and_as_listed(reference):
    listed = load_detector(reference.output).description["files"]
    found = {path.name for path in reference.output.iterdir()}
    assert found == set(listed) | {"detector.json"}
    assert set(listed) == {
        "model.onnx",
        "model.weights.h5",
        "history.jsonl",
        "README.md",
        "roc.png",
        "reliability.png",
    }
    for name, checksum in listed.items():
        assert sha256_of(reference.output / name) == checksum
    for name in ("roc.png", "reliability.png"):
        with Image.open(reference.output / name) as figure:
            assert min(figure.size) >= 400
            assert len(figure.convert("RGB").getcolors(1 << 20)) > 10
    assert (reference.output / "history.jsonl").read_text().count("\n") == len(reference.history)
    assert read_history(reference.output) == reference.history
    assert {"loss", "auc", "val_loss", "val_auc", "seconds", "learning_rate"} <= set(
        reference.history[0]
    )


@pytest.mark.slow
def test_the_model_card_tells_the_measured_figures(reference):
    card = (reference.output / "README.md").read_text(encoding="utf-8")
    description = load_detector(reference.output).description
    assert f"{description['metrics']['auc']:.3f}" in card
    assert "12 real and 12 fake pictures" in " ".join(card.split())
    metrics = description["metrics"]
    for of_class in ("real", "fake"):
        images = metrics["images"][of_class]
        share = wilson(round(metrics[f"recall_{of_class}"] * images), images)
        assert f"{share.value:.1%} (95 % interval {share.low:.1%}–{share.high:.1%}, Wilson)" in card
    assert "roc.png" in card and "reliability.png" in card
    assert f"the best was epoch {description['training']['best_epoch']}" in card
    assert "{" not in card


@pytest.mark.slow
def test_tensorboard_gets_events(reference):
    events = EventAccumulator(str(reference.run / "tensorboard"))
    events.Reload()
    for name in ("loss", "auc", "val_loss", "val_auc", "learning_rate"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == pytest.approx({line["epoch"]: line[name] for line in reference.history})


@pytest.mark.slow
def test_unreadable_pictures_are_named_and_left_out(reference):
    assert "train/real/torn.jpg: " in reference.stderr
    assert "val/fake/empty.png: " in reference.stderr
    assert "2 pictures cannot be read" in reference.stderr
    audit = json.loads((reference.run / "audit.json").read_text())
    assert [found["path"] for found in audit["unreadable"]] == [
        "train/real/torn.jpg",
        "val/fake/empty.png",
    ]
    description = load_detector(reference.output).description
    assert description["training"]["images"] == {"real": 12, "fake": 12}
    assert description["metrics"]["images"] == {"real": 16, "fake": 16}


@pytest.mark.slow
def test_the_result_is_said_in_one_line(reference):
    assert reference.stdout.count("\n") == 1
    assert reference.stdout.startswith(f"{reference.output}: validation AUC 0.")
    assert "Traceback" not in reference.stderr
    assert "Warning:" not in reference.stderr
    assert "oneDNN" not in reference.stderr and "InitializeLog" not in reference.stderr


@pytest.mark.slow
def test_the_detector_scores_from_the_command_line(reference, infer, tmp_path):
    rows = tmp_path / "rows.jsonl"
    folder = reference.data / "val" / "real"
    done = infer(folder, "--weights", reference.output, "--face", "none", "--output", rows)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(rows) == 16
    assert {row["model"] for row in rows} == {"tiny"}
    labels, expected = validation_scores(reference.output, reference.data)
    scored = [row["fake_probability"] for row in rows]
    np.testing.assert_allclose(scored, expected[labels == 0], atol=1e-6)


@pytest.mark.slow
def test_the_weights_file_and_the_graph_are_the_same_network(reference, training):
    model = MESO4.build()
    model.load_weights(reference.output / "model.weights.h5")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)
    expected = model(pixels / np.float32(255), training=False).numpy()[:, 0]
    graph = Runtime(reference.output / "model.onnx", MESO4)
    np.testing.assert_allclose(graph.logits(pixels), expected, atol=1e-4)
    np.testing.assert_allclose(graph.logits(pixels[:1]), expected[:1], atol=1e-4)


# ---- the same bits again


@pytest.mark.slow
def test_the_same_seed_gives_the_same_detector(reference, tmp_path):
    output = tmp_path / "twin"
    done = run_training(*reference.arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    assert without_time(read_history(output)) == without_time(reference.history)
    for name in ("run/state/last.weights.h5", "run/state/best.weights.h5"):
        twin, other = (Path(f"{folder}.{name}") for folder in (output, reference.output))
        assert same_weights(twin, other)
    assert same_weights(output / "model.weights.h5", reference.output / "model.weights.h5")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)
    logits, expected = (
        Runtime(folder / "model.onnx", MESO4).logits(pixels)
        for folder in (output, reference.output)
    )
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.slow
def test_another_seed_gives_another_network(training, tmp_path):
    data = make_dataset(tmp_path / "data", train=8, validate=8)
    weights = []
    for seed in (0, 1):
        recipe = training.KerasRecipe(**SETTINGS | {"epochs": 1, "seed": seed})
        plan = Plan(MESO4, recipe, training.starting_point("none", MESO4))
        batches = Batches(MESO4, recipe, load_dataset(data), workers=2)
        model = training.fit(plan, batches, tmp_path / str(seed), resume=False)
        weights.append(np.concatenate([array.ravel() for array in model.get_weights()]))
    assert np.mean(weights[0] != weights[1]) > 0.5


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_with_the_same_bits(reference, tmp_path):
    """One training, killed at a worse moment each time; all the while the old detector is there."""
    output = tmp_path / "weights" / "again"
    shutil.copytree(reference.output, output)
    run = output.with_name("again.run")
    epochs = len(reference.history)
    for moment, number, whole_epochs in [
        ("batch", 2, 0),  # in the first epoch
        ("half a weights file", 1, 0),  # of the first epoch
        ("batch", STEPS + 2, 1),  # in the middle of the second epoch
        ("state set aside", 1, 1),  # between the two renames
        ("state replaced", epochs - 2, epochs - 1),  # early stopping is about to stop
        ("state replaced", 1, epochs),  # training is over, history.jsonl one line behind
        ("detector set aside", 1, epochs),  # the old detector has no name at this moment
        ("detector written", 1, epochs),
    ]:
        resume = ["--resume"] if run.exists() else []
        arguments = [*reference.arguments, "--output", output, *resume]
        done = run_training(*arguments, killed=(moment, number))
        assert done.returncode == -signal.SIGKILL, f"{moment}: {done.stderr}"
        state = run / "state" / "state.json"
        if moment == "state set aside":
            assert not state.exists()
            state = run / ".state.previous" / "state.json"
        history = json.loads(state.read_text())["history"] if whole_epochs else []
        assert len(history) == whole_epochs, moment
        assert without_time(history) == without_time(reference.history[:whole_epochs]), moment
        name = "again" if moment == "detector written" else "tiny"
        assert load_detector(output).name == name, moment

    done = run_training(*reference.arguments, "--output", output, "--resume")
    assert done.returncode == 0, done.stderr
    assert without_time(read_history(output)) == without_time(reference.history)
    assert load_detector(output).name == "again"
    for name in ("last.weights.h5", "best.weights.h5"):
        assert same_weights(run / "state" / name, reference.run / "state" / name)
    assert same_weights(output / "model.weights.h5", reference.output / "model.weights.h5")
    assert sorted(os.listdir(run)) == sorted(os.listdir(reference.run))


@pytest.mark.slow
def test_a_detector_trains_without_a_single_fake_killed_and_resumed(tmp_path):
    data = make_dataset(tmp_path / "data", train=24, validate=16)
    shutil.rmtree(data / "train" / "fake")
    arguments = ["--data", data, "--epochs", 2, "--batch-size", 8, "--workers", 2]
    arguments += ["--self-blended", 1, "--mixup", 0.4, "--label-smoothing", 0.1]
    arguments += ["--augmentation", "soften=0.5"]
    expected, output = tmp_path / "expected", tmp_path / "killed"
    done = run_training(*arguments, "--output", expected)
    assert done.returncode == 0, done.stderr
    assert "12 real (12) and 12 fake (12 self-blended)" in done.stderr
    training = load_detector(expected).description["training"]
    assert training["images"] == {"real": 12, "fake": 0}
    assert "saw none of these kinds" in (expected / "README.md").read_text()
    asked = {"self_blended": 1.0, "mixup": 0.4, "label_smoothing": 0.1, "soften": 0.5, "jpeg": 0.2}
    assert asked.items() <= training["arguments"].items()

    done = run_training(*arguments, "--output", output, killed=("batch", 5))
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = run_training(*arguments, "--mixup", 0.3, "--output", output, "--resume")
    assert done.returncode == 2
    assert re.search(r"\bmixup\b.* 0\.4\b.* 0\.3\b", done.stderr)
    done = run_training(*arguments, "--output", output, "--resume")
    assert done.returncode == 0, done.stderr
    histories = [without_time(read_history(folder)) for folder in (output, expected)]
    assert histories[0] == histories[1]
    assert all(0 <= line["auc"] <= 1 and line["loss"] < 5 for line in histories[0])
    assert same_weights(output / "model.weights.h5", expected / "model.weights.h5")


@pytest.mark.slow
def test_an_unfinished_training_is_resumed_or_refused(reference, tmp_path):
    output = tmp_path / "weights" / "new"
    arguments = [*reference.arguments, "--output", output]
    done = run_training(*arguments, "--resume", killed=("batch", 1))
    assert done.returncode == -signal.SIGKILL
    assert "nothing to resume" in done.stderr
    assert not output.exists()

    done = run_training(*arguments)
    assert done.returncode == 2
    assert "new.run " in done.stderr and "--resume" in done.stderr

    done = run_training(*arguments, "--resume", "--seed", 5, "--dropout", 0.4)
    assert done.returncode == 2
    assert re.search(r"\bseed\b[^,;]* 0\b.* 5\b", done.stderr)
    assert re.search(r"\bdropout\b.* 0\.2\b.* 0\.4\b", done.stderr)
    assert "Traceback" not in done.stderr


# ---- arguments


def train_here(monkeypatch, *arguments: object) -> None:
    """train_meso.py's main() in this process; what a user did wrong is raised."""
    import train_meso

    monkeypatch.setattr(sys, "argv", ["train_meso.py", *map(str, arguments)])
    train_meso.main()


@pytest.mark.slow
def test_training_goes_on_from_a_detector_folder(reference, training, monkeypatch, tmp_path):
    output = tmp_path / "on"
    data = make_dataset(tmp_path / "data", train=8, validate=8)
    arguments = ["--data", data, "--epochs", 1, "--learning-rate", 1e-9, "--batch-size", 8]
    train_here(monkeypatch, *arguments, "--output", output, "--init", reference.output)
    assert load_detector(output).description["training"]["start"] == "detector tiny (scratch)"
    before, after = (
        weights_of(folder / "model.weights.h5") for folder in (reference.output, output)
    )
    for name, array in before.items():
        if array.ndim > 1:  # a step of 1e-9 moves the kernels by no more
            np.testing.assert_allclose(after[name], array, atol=1e-7)


@needs_shared
def test_training_starts_from_published_weights(training):
    path = SHARED / "mesonet" / "Meso4_DF.h5"
    start = training.starting_point(str(path), MESO4)
    assert start.label == "published Meso4_DF"
    model = MESO4.build()
    start.load(model)
    published = [array for array in weights_of(path).values() if array.shape == (16, 1)]
    np.testing.assert_array_equal(model.layers[-1].get_weights()[0], -published[0])


def test_a_start_of_another_kind_is_refused(data, monkeypatch, tmp_path, capfd):
    arguments = ["--data", data, "--output", tmp_path / "out"]
    for init, sentence in (
        (DETECTOR, "this is a meso4, not a mesoinception4"),
        (tmp_path / "absent", "there is no such file or folder"),
        (tmp_path, "there is no detector here"),
        (tmp_path / "absent.h5", "this file cannot be read"),
        (DETECTOR / "model.weights.h5", "model.weights.h5: not the weights of a mesoinception4"),
        ("imagenet", "nobody has trained mesoinception4 on ImageNet"),
    ):
        with pytest.raises(UserError, match=sentence):
            train_here(monkeypatch, *arguments, "--init", init, "--architecture", "mesoinception4")
    assert list(tmp_path.iterdir()) == []
    assert "Fingerprint" not in capfd.readouterr().err, "the audit takes long: not before this"


@needs_shared
def test_published_weights_of_another_architecture_are_refused(training):
    path = SHARED / "mesonet" / "MesoInception_F2F.h5"
    with pytest.raises(UserError, match="this is a mesoinception4, not a meso4"):
        training.starting_point(str(path), MESO4)


def test_cuda_without_a_gpu_is_refused(data, training, monkeypatch, tmp_path, capfd):
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"--device cuda: neither TensorFlow nor torch sees a GPU"):
        train_here(
            monkeypatch,
            *("--data", data, "--output", tmp_path / "out", "--device", "cuda"),
        )
    assert list(tmp_path.iterdir()) == []
    assert "Fingerprint" not in capfd.readouterr().err, "the audit takes long: not before this"


def test_a_class_without_a_readable_picture_is_refused(monkeypatch, tmp_path):
    data = make_dataset(tmp_path / "data", train=4, validate=4)
    for picture in (data / "train" / "fake").iterdir():
        picture.write_bytes(b"torn")
    with pytest.raises(UserError, match="not one fake picture to train with can be read"):
        train_here(monkeypatch, "--data", data, "--output", tmp_path / "out")
    assert not (tmp_path / "out.run").exists()


def test_fakes_to_train_on_may_lack_where_forgeries_take_their_place(monkeypatch, tmp_path):
    data = make_dataset(tmp_path / "data", train=4, validate=4)
    shutil.rmtree(data / "train" / "fake")
    arguments = ["--data", data, "--show-augmentation", tmp_path / "sheet.png"]
    for fraction in (0, 0.5):
        with pytest.raises(UserError, match="no fake pictures to train with"):
            train_here(monkeypatch, *arguments, "--self-blended", fraction)
    train_here(monkeypatch, *arguments, "--self-blended", 1)
    assert read_image(tmp_path / "sheet.png").shape == (4 * 256, 8 * 256, 3)
    shutil.rmtree(data / "validate" / "fake")
    with pytest.raises(UserError, match="no fake pictures to validate with"):
        train_here(monkeypatch, *arguments, "--self-blended", 1)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--augmentation", "soften=2", "2 does not lie between 0 and 1"),
        ("--augmentation", "soften", "write NAME=PROBABILITY"),
        ("--augmentation", "soft=0.1", "there is no change 'soft'; there are flip, crop"),
        ("--mixup", "-1", "is below zero"),
        ("--cutmix", "-1", "is below zero"),
        ("--self-blended", "1.1", "does not lie between 0 and 1"),
        ("--balance", "kind", "invalid choice"),
    ],
)
def test_settings_that_cannot_be_are_refused(monkeypatch, capsys, option, value, sentence):
    with pytest.raises(SystemExit) as refused:
        train_here(monkeypatch, f"{option}={value}")
    assert refused.value.code == 2
    assert sentence in capsys.readouterr().err


def test_two_ways_of_mixing_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit) as refused:
        train_here(monkeypatch, "--mixup=0.2", "--cutmix=1")
    assert refused.value.code == 2
    assert "--mixup and --cutmix mix the same pictures" in capsys.readouterr().err


def test_showing_the_augmentation_trains_nothing(data, monkeypatch, tmp_path):
    sheet = tmp_path / "sheet.png"
    train_here(
        monkeypatch,
        *("--data", data, "--output", tmp_path / "out", "--show-augmentation", sheet),
    )
    pixels = read_image(sheet)
    assert pixels.shape == (8 * 256, 8 * 256, 3)
    as_scored, changed = pixels[:256, :256], pixels[:256, 256:512]
    assert np.abs(as_scored.astype(int) - changed).mean() > 1
    assert list(tmp_path.iterdir()) == [sheet]


# ---- feeding the network


def test_batches_are_scaled_ahead_of_the_network_and_in_another_thread(training):
    made = []

    def batch(number: int):
        made.append((number, threading.current_thread()))
        return np.full((2, 4, 4, 3), number, np.uint8), np.zeros((2, 1), np.float32)

    sequence = training._Sequence(batch, 6, MESO4.scaling, first=10)
    assert len(sequence) == 6
    for _ in range(2):  # Keras looks at the first batches, and starts again
        for number in range(6):
            pixels, _ = sequence[number]
            np.testing.assert_array_equal(pixels, np.float32(10 + number) / np.float32(255))
            if number == 0:
                sequence._thread.submit(lambda: None).result()
                assert {made_number for made_number, _ in made} >= {10, 11, 12, 13}
    assert threading.main_thread() not in {thread for _, thread in made}
    assert max(number for number, _ in made) == 15
