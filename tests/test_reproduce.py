"""Training the shipped detector again: what counts as worse, what is refused, and going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import reproduce
from pipeline.common.errors import UserError
from pipeline.training.runs import read_history
from tests.conftest import REPOSITORY
from tests.test_comparison import write_greys
from tests.tiny_dataset import make_dataset
from tests.tiny_detectors import make_detector

ROWS = [
    reproduce.Row("dfdc", "auc", 0.935, 0.916),
    reproduce.Row("dfdc", "recall_fake", 0.8, 0.95),
    reproduce.Row("utkface", "recall_real", 0.592, 0.491),
]


def test_only_what_is_worse_by_more_than_the_tolerance_counts():
    assert [row.is_worse for row in ROWS] == [False, False, True]
    assert reproduce.Row("dfdc", "auc", 0.935, 0.914).is_worse
    assert reproduce.as_table(ROWS).splitlines()[2:] == [
        "| dfdc, AUC | 0.935 | 0.916 | −0.020 |",
        "| dfdc, fakes found | 80.0% | 95.0% | −10.0% |",
        "| utkface, real passed | 59.2% | **49.1%** | −10.0% |",
    ]


@pytest.fixture
def data(tmp_path) -> Path:
    """Faces that need not be trained on, with a test set of both classes and one of real ones."""
    folder = tmp_path / "faces"
    for split in ("train", "validate"):
        (folder / split).mkdir(parents=True)
    write_greys(folder / "test" / "greys" / "real", [10, 60, 110])
    write_greys(folder / "test" / "greys" / "fake", [150, 200, 250])
    write_greys(folder / "test" / "real_only" / "real", [30, 90])
    return folder


@pytest.fixture
def shipped(tmp_path, own_cache, monkeypatch) -> Path:
    monkeypatch.setattr(reproduce, "WEIGHTS", tmp_path / "shipped")
    folder = tmp_path / "shipped" / "efficientnet_lite0"
    return make_detector(folder, "efficientnet_lite0", 8, 0, 16)


def test_a_detector_as_good_passes_and_a_worse_one_does_not(data, shipped, tmp_path, capsys):
    arguments = ["--data", str(data), "--output", str(tmp_path / "out")]
    again = shutil.copytree(shipped, tmp_path / "out" / shipped.name)
    assert reproduce.main(arguments) == 0
    said = capsys.readouterr()
    assert "| greys, AUC | 1.000 | 1.000 | −0.020 |" in said.out
    assert "| real_only, real passed | 100.0% | 100.0% | −10.0% |" in said.out
    assert "real_only, AUC" not in said.out and "trained on" not in said.err

    make_detector(again, "efficientnet_lite0", -8, 0, 16)
    path = again / "detector.json"
    described = json.loads(path.read_text()) | {"training": {"fingerprint": "of other faces"}}
    path.write_text(json.dumps(described))
    assert reproduce.main(arguments) == 1
    said = capsys.readouterr()
    assert "| greys, AUC | 1.000 | **0.000** | −0.020 |" in said.out
    assert "tolerance: greys, AUC; greys, real passed; greys, fakes found; real_only" in said.out
    assert "is not what the shipped detector was trained on" in said.err

    with pytest.raises(UserError, match="was trained by another command"):
        reproduce.main([*arguments, "--epochs", "3"])


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_faces_that_are_not_there_are_refused(data, missing, tmp_path):
    shutil.rmtree(data / missing)
    done = started("--data", data, "--output", tmp_path / "out")
    _, said = done.communicate()
    assert done.returncode == 2
    assert "there is no such folder. Name labelled faces" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_make_passes_the_folder_on():
    make = ["make", "--dry-run", "reproduce", "FACES=some faces", "NETWORK=meso4"]
    done = subprocess.run(make, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert 'benchmarks/reproduce.py --network meso4 --data "some faces"' in done.stdout


def test_every_shipped_network_can_be_trained_again():
    shipped = {path.parent.name for path in (REPOSITORY / "weights").glob("*/detector.json")}
    assert set(reproduce.NETWORKS) == shipped


@pytest.mark.parametrize("name", reproduce.NETWORKS)
def test_every_stage_is_a_command_that_parses(name, tmp_path, monkeypatch):
    """Each goes on from the one before, and the last one writes the detector folder itself."""
    commands = []
    monkeypatch.setattr(reproduce.forgetting, "train", lambda command: commands.append(command))
    monkeypatch.setattr(
        reproduce.weight_average, "main", lambda options: commands.append(["average", *options])
    )
    network = reproduce.NETWORKS[name]
    reproduce.train(network, tmp_path / "faces", None, tmp_path / name)
    assert len(commands) == len(network.stages) and commands[-1][-1] in (tmp_path / name,)
    for number, command in enumerate(commands):
        if network.stages[number].start == reproduce.PREVIOUS:
            assert str(commands[number - 1][-1]) in command
        if command[0] != "average":
            arguments = [sys.executable, *map(str, command), "--help"]
            done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_short_try_goes_on_after_an_interruption(own_cache, tmp_path):
    data = make_dataset(tmp_path / "faces", train=32, validate=4)
    for number, path in enumerate(sorted(data.rglob("*.*"))):  # the last stage balances sources
        path.rename(path.with_name(f"{path.parent.name}{number % 2}_{number:03}{path.suffix}"))
    shutil.copytree(data / "validate", data / "test" / "tiny")
    arguments = ["--data", data, "--output", tmp_path / "out", "--epochs", 2]
    detector = tmp_path / "out" / "efficientnet_lite0"
    history = detector.with_name("efficientnet_lite0-1.run") / "history.jsonl"
    process = started(*arguments)
    while process.poll() is None and not history.exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode == 130 and not detector.exists(), (
        "stopped after the first of two epochs"
    )
    [first] = read_history(history.parent)

    process = started(*arguments)
    said, complaint = process.communicate()
    lines = said.splitlines()
    assert process.returncode == ("**" in said), complaint
    assert [line.split(" | ")[0] for line in lines[2:5]] == [
        f"| tiny, {figure}" for figure in ("AUC", "real passed", "fakes found")
    ]
    stages = [detector.with_name(f"efficientnet_lite0-{number}") for number in range(1, 6)]
    assert read_history(stages[0])[0] == first, "the first epoch was not trained again"
    starts = ("ImageNet", *stages[:3], stages[2], stages[4])  # the fifth is an average
    for stage, start in zip((*stages, detector), starts, strict=True):
        training = json.loads((stage / "detector.json").read_text())["training"]
        expected = start if start == "ImageNet" else f"detector {start.name} (ImageNet)"
        assert training["epochs_run"] == 2 and training["start"] == expected
    assert training["arguments"]["self_blended"] == 0.15, "as the last stage has it"
    training = json.loads((stages[4] / "detector.json").read_text())["training"]
    parts = [(part["name"], part["share"]) for part in training["averaged"]]
    assert parts == [(stages[0].name, 0.25), (stages[3].name, 0.75)]


def started(*arguments: object) -> subprocess.Popen:
    """The command in a process group of its own, which Ctrl-C reaches as a whole."""
    return subprocess.Popen(
        [sys.executable, "benchmarks/reproduce.py", *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
