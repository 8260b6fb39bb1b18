"""A detector folder is whole, or it is refused with one sentence, or the one before is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from models import ARCHITECTURES
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.detectors.calibration import Calibration, calibrate
from pipeline.detectors.detector import (
    as_start,
    check_folder,
    describe_input,
    is_inside,
    load_detector,
    write_detector,
)

REPOSITORY = Path(__file__).resolve().parent.parent


def description(**changes) -> dict:
    return {
        "name": "tested",
        "architecture": "meso4",
        "input": describe_input(ARCHITECTURES["meso4"], "area"),
        "face": {"mode": "auto", "margin": 1.3},
        "calibration": {
            "temperature": 1.5,
            "threshold": 0.6,
            "uncertain_from": 0.4,
            "rule": "fpr=0.05",
        },
        "metrics": {"auc": 0.9},
        "training": {},
        **changes,
    }


def write(folder: Path, graph: bytes = b"a graph", **changes) -> Path:
    with write_detector(folder, description(**changes)) as new:
        (new / "model.onnx").write_bytes(graph)
        (new / "plots").mkdir()
        (new / "plots" / "roc.png").write_bytes(b"a plot")
    return folder


def edit(folder: Path, **changes) -> None:
    """Change detector.json by hand; a value of None deletes its key."""
    path = folder / "detector.json"
    stored = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in stored.items() if v is not None}))


def refusal(folder: Path) -> str:
    """The one sentence with which `folder` is refused."""
    with pytest.raises(UserError) as caught:
        load_detector(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(folder) in sentence
    return sentence


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "weights" / "tested")


def test_what_is_written_is_read(folder):
    detector = load_detector(folder)
    assert detector.name == "tested"
    assert detector.architecture == ARCHITECTURES["meso4"]
    assert (detector.resize_filter, detector.face_mode, detector.margin) == ("area", "auto", 1.3)
    assert detector.calibration == Calibration(1.5, 0.6, 0.4, "fpr=0.05")
    assert detector.graph.read_bytes() == b"a graph"
    assert detector.description["metrics"] == {"auc": 0.9}
    assert detector.description["format"] == 1
    assert detector.description["files"] == {
        "model.onnx": sha256_of(folder / "model.onnx"),
        "plots/roc.png": sha256_of(folder / "plots" / "roc.png"),
    }
    assert os.listdir(folder.parent) == ["tested"]


def test_what_is_noted_within_the_block_is_stored_too(tmp_path):
    noted = description()
    with write_detector(tmp_path / "tested", noted) as new:
        (new / "model.onnx").touch()
        noted["export"] = {"faces": 64}
    assert load_detector(tmp_path / "tested").description["export"] == {"faces": 64}


def test_the_current_folder_is_a_detector_folder_too(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert load_detector(Path(".")).name == "tested"


def test_a_detector_with_an_input_of_its_own(tmp_path):
    own = {
        "size": 128,
        "mean": [1.0, 2.0, 3.0],
        "std": [4.0, 5.0, 6.0],
        "layout": "NCHW",
        "resize": "nearest",
    }
    detector = load_detector(write(tmp_path / "tested", input=own))
    assert detector.architecture.input_size == 128
    assert detector.architecture.scaling.mean == (1.0, 2.0, 3.0)
    assert detector.architecture.scaling.std == (4.0, 5.0, 6.0)
    assert detector.architecture.layout == "NCHW"
    assert detector.resize_filter == "nearest"


@pytest.mark.parametrize("name", ["missing", "x" * 255, "x" * 300, "a/b/c", "ünï 写真"])
def test_a_missing_folder_is_refused(tmp_path, name):
    assert "download" in refusal(tmp_path / name)


def test_a_folder_without_detector_json_is_refused(tmp_path):
    assert "no detector.json" in refusal(tmp_path)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be read" in refusal(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"files": {"a": '])
def test_a_malformed_detector_json_is_refused(folder, content):
    (folder / "detector.json").write_bytes(content)
    assert "train or download the detector again" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["format", "name", "architecture", "input", "face", "calibration", "files"]
)
@pytest.mark.parametrize("value", [None, [], {"nonsense": 1}, 3])
def test_a_section_that_is_missing_or_something_else_is_refused(folder, name, value):
    edit(folder, **{name: value})
    assert "again" in refusal(folder)


@pytest.mark.parametrize("key", ["temperature", "threshold", "uncertain_from", "rule"])
def test_a_calibration_that_lacks_something_is_refused(folder, key):
    calibration = description()["calibration"]
    del calibration[key]
    edit(folder, calibration=calibration)
    assert key in refusal(folder)


NO_NUMBERS = [float("nan"), float("inf"), -float("inf"), "0.5", None, True, [0.5], {}, 10**400]


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("calibration", "threshold", [*NO_NUMBERS, 1.5, -1, -1e-9, 1.0000001]),
        ("calibration", "uncertain_from", [*NO_NUMBERS, 1.5, -1, 0.61]),  # above the threshold
        ("calibration", "temperature", [*NO_NUMBERS, 0, -1, -0.0]),
        ("calibration", "rule", [None, 0.5, []]),
        ("face", "margin", [*NO_NUMBERS, 0, -1.3, 1e9]),
        ("face", "mode", [None, "", "auto ", True, ["auto"], {}]),
        ("input", "size", [*NO_NUMBERS, 0, -256, 224.0, 224.5, "224", 10**6]),
        ("input", "mean", [[0, 0], [0, 0, 0, 0], 0, "000", [0, 0, None], [0, 0, float("nan")]]),
        ("input", "std", [[1, 1, 0], [1, 1, -1], [1, 1, float("inf")], ["1", "1", "1"], None]),
        ("input", "layout", [None, "NWHC", 4, []]),
        ("input", "resize", [None, "bicubic", 4, {}]),
    ],
)
def test_a_value_out_of_its_range_is_refused(folder, section, key, values):
    whole = description()[section]
    for value in values:
        edit(folder, **{section: whole | {key: value}})
        sentence = refusal(folder)
        assert key in sentence and "detector.json" in sentence, value


@pytest.mark.parametrize(
    "fake_class",
    [{}, [], 3, {"labels": ["a", "b"], "output": 2, "decided": ""},
     {"labels": ["a", "b"], "output": -1, "decided": ""},
     {"labels": ["a", "b"], "output": True, "decided": ""},
     {"labels": ["a", 2], "output": 0, "decided": ""},
     {"labels": ["a", "b"], "output": 0, "decided": None}],
)  # fmt: skip
def test_a_malformed_note_of_which_class_means_fake_is_refused(folder, fake_class):
    edit(folder, fake_class=fake_class)
    assert "again" in refusal(folder)


@pytest.mark.parametrize("threshold", [0, 1, 0.0, 1.0, 1.0000000000000002])
def test_the_ends_of_the_range_are_in_it(folder, threshold):
    calibration = description()["calibration"] | {"threshold": threshold, "uncertain_from": 0}
    edit(folder, calibration=calibration)
    assert load_detector(folder).calibration.threshold == threshold


def test_what_a_calibration_chooses_is_accepted(folder):
    """Where real faces reach 1.0, no threshold up to it passes few enough."""
    labels = np.array([0] * 40 + [1] * 40)
    chosen = calibrate(labels, np.full(80, 1e6), "fpr=0.05")
    assert chosen.threshold > 1
    edit(folder, calibration=asdict(chosen))
    assert load_detector(folder).calibration == chosen


def test_a_changed_byte_of_the_graph_is_noticed(folder):
    (folder / "model.onnx").write_bytes(b"a grapH")
    sentence = refusal(folder)
    assert "model.onnx" in sentence
    assert "SHA-256" in sentence


def test_a_missing_graph_is_noticed(folder):
    (folder / "model.onnx").unlink()
    assert "model.onnx is missing" in refusal(folder)


def test_a_graph_that_was_never_listed_is_noticed(folder):
    edit(folder, files={"plots/roc.png": sha256_of(folder / "plots" / "roc.png")})
    assert "no model.onnx" in refusal(folder)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that fails to read")
def test_a_file_that_cannot_be_read_is_noticed(folder):
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("/proc/self/mem")  # its first page is never there
    assert "cannot be read" in refusal(folder)


def test_an_unknown_architecture_is_refused_by_name(folder):
    edit(folder, architecture="resnet9000")
    assert "'resnet9000'" in refusal(folder)


def test_an_unknown_format_is_refused(folder):
    edit(folder, format=2)
    assert "its format is 2 and this program knows 1" in refusal(folder)


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/hostname", "plots/../../secret.onnx", ""])
def test_a_file_outside_the_folder_is_refused(folder, name):
    (folder.parent / "secret.onnx").write_bytes(b"a secret")
    files = json.loads((folder / "detector.json").read_text())["files"]
    edit(folder, files={**files, name: sha256_of(folder.parent / "secret.onnx")})
    assert "outside" in refusal(folder)
    with pytest.raises(UserError, match="outside"):
        check_folder(folder)


def test_which_names_are_inside():
    inside = ["model.onnx", "plots/roc.png", "a..b", "./a"]
    outside = ["", ".", "/", "/a", "..", "../a", "a/../../b", "a/.."]
    assert [name for name in inside + outside if is_inside(name)] == inside


def test_a_block_that_raises_leaves_the_previous_folder(folder):
    with (
        pytest.raises(RuntimeError, match="out of disk"),
        write_detector(folder, description(name="newer")) as new,
    ):
        (new / "model.onnx").write_bytes(b"half of the ne")
        raise RuntimeError("out of disk")
    assert load_detector(folder).name == "tested"
    assert os.listdir(folder.parent) == ["tested"]


def test_a_block_that_raises_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(RuntimeError), write_detector(tmp_path / "tested", description()):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from pipeline.detectors.detector import write_detector
from tests.test_detector import description

def kill(event, arguments):
    if event == {event!r} and {moment}:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
with write_detector(Path(sys.argv[1]), description(name="newer")) as new:
    (new / "model.onnx").write_bytes(b"a newer graph")
    sys.audit("in the block")
"""


@pytest.mark.parametrize(
    ("event", "moment", "survivor"),
    [
        pytest.param("in the block", "True", "tested", id="in the block"),
        pytest.param("os.rename", "'.json' in str(arguments)", "tested", id="at detector.json"),
        pytest.param("os.rename", "'previous' in str(arguments)", "tested", id="before renames"),
        pytest.param(
            "os.rename", "str(arguments[1]).endswith('tested')", "tested", id="between renames"
        ),
        pytest.param(
            "shutil.rmtree",
            "'previous' in str(arguments) and Path(sys.argv[1]).exists()"
            " and b'newer' in (Path(sys.argv[1]) / 'detector.json').read_bytes()",
            "newer",
            id="after renames",
        ),
    ],
)
def test_a_program_killed_while_writing_leaves_a_whole_folder(folder, event, moment, survivor):
    program = KILLED.format(repository=str(REPOSITORY), event=event, moment=moment)
    done = subprocess.run([sys.executable, "-c", program, folder], cwd=folder.parent)
    assert done.returncode == -signal.SIGKILL
    assert load_detector(folder).name == survivor
    write(folder, name="newest")
    assert load_detector(folder).name == "newest"


def test_a_copied_folder_is_as_good(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "kopiert 写真")
    assert load_detector(copy).name == "tested"


def test_a_chain_of_trainings_names_what_the_first_began_with():
    first = {"name": "a", "training": {"start": "ImageNet"}}
    second = {"name": "b", "training": {"start": as_start(first)}}
    assert second["training"]["start"] == "detector a (ImageNet)"
    assert as_start(second) == "detector b (ImageNet)"
    assert as_start({"name": "c"}) == "detector c (not stated)"
