"""A lower precision scores only where it was found to change nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.common.processor import has_bf16
from pipeline.detectors.detector import INT8_GRAPH, check_folder, load_detector, write_detector
from pipeline.detectors.runtime import Runtime, is_available
from pipeline.evaluation.precision import FEWEST_FACES, choose_precision
from pipeline.foreign.packing import _safe_path
from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY
from tests.shared import SHARED, needs_shared
from tests.tiny_dataset import make_dataset
from tests.tiny_detectors import make_detector

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("faces"), train=20, validate=FEWEST_FACES)


def copy_of(folder: Path, target: Path, **changes) -> Path:
    """A copy of a detector folder, with other sections in its detector.json."""
    description = check_folder(folder)
    names = description.pop("files")
    with write_detector(target, description | changes) as new:
        for name in names:
            (new / name).write_bytes((folder / name).read_bytes())
    return target


def choose(folder: Path, data: Path, *options: str) -> dict:
    """Run the command, in a process of its own as NNCF imports torch; the section it has stored."""
    command = [
        sys.executable,
        "manage_detectors.py",
        "precision",
        folder,
        "--data",
        data,
        *options,
    ]
    subprocess.run(list(map(str, command)), cwd=REPOSITORY, check=True, capture_output=True)
    return json.loads((folder / "detector.json").read_text())["precision"]


def assert_consistent(folder: Path, section: dict) -> None:
    detector = load_detector(folder)  # all files are there and listed
    assert section["order"][-1] == "fp32"
    for name, found in section["tried"].items():
        if name != "fp32" and name in section["order"]:
            assert found["largest_difference"] <= 0.01
            assert found["changed_verdicts"] <= 0.001
            assert found["cpu_ms_per_face"] < section["tried"]["fp32"]["cpu_ms_per_face"]
    has_graph = {*INT8_GRAPH} <= set(detector.description["files"])
    assert has_graph == ("int8" in section["order"])
    assert is_available("bf16") or section["tried"]["bf16"] == {"available": False}


@pytest.mark.slow
def test_what_changes_nothing_is_taken_if_it_is_faster(faces, tmp_path):
    folder = make_detector(tmp_path / "meso4", "meso4", gain=0.0, offset=1.0)
    before = check_folder(folder)
    section = choose(folder, faces)
    assert section["faces"] == FEWEST_FACES
    assert section["tried"]["int8"]["same"]
    assert_consistent(folder, section)
    after = check_folder(folder)
    assert before["files"].items() <= after["files"].items()
    untouched = before.keys() - {"files"}
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}


@needs_shared
@pytest.mark.slow
def test_eight_bits_are_refused_where_they_change_verdicts(tmp_path):
    folder = copy_of(DETECTOR, tmp_path / "meso4")
    section = choose(folder, SHARED / "faces", "--faces", "200", "--calibrate-on", "40")
    assert section["tried"]["int8"]["largest_difference"] > 0.01
    assert "int8" not in section["order"]
    assert_consistent(folder, section)


def test_too_few_faces_are_refused_and_nothing_is_touched(tmp_path):
    folder = make_detector(tmp_path / "meso4", "meso4")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"at least 200 validation pictures, and these are 20"):
        choose_precision(folder, make_dataset(tmp_path / "faces", train=4, validate=20))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def prefers_bf16(tmp_path) -> Path:
    """A detector folder whose first precision is bf16, and beside it `plain`, the same without."""
    plain = make_detector(tmp_path / "plain", "meso4", gain=3.0)
    return copy_of(plain, tmp_path / "meso4", precision={"order": ["bf16", "fp32"]})


def test_a_precision_that_the_processor_lacks_is_passed_over_and_said(
    prefers_bf16, monkeypatch, capsys
):
    monkeypatch.setenv("DEEPFAKE_BF16", "0")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)
    plain = prefers_bf16.with_name("plain")
    expected = Runtime.of(load_detector(plain)).logits(pixels)
    assert capsys.readouterr().err == ""
    logits = Runtime.of(load_detector(prefers_bf16)).logits(pixels)
    np.testing.assert_array_equal(logits, expected)
    [line] = capsys.readouterr().err.splitlines()
    assert "plain" in line and "bf16" in line and "fp32" in line
    assert not is_available("bf16") and is_available("fp32")


def test_a_precision_that_the_processor_has_is_used(prefers_bf16, monkeypatch, capsys):
    """Where it is granted without being there, OpenVINO takes bf16 for what it has."""
    monkeypatch.setenv("DEEPFAKE_BF16", "1")
    assert is_available("bf16")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)
    expected = Runtime.of(load_detector(prefers_bf16.with_name("plain"))).logits(pixels)
    logits = Runtime.of(load_detector(prefers_bf16)).logits(pixels)
    np.testing.assert_allclose(logits, expected, rtol=2**-6)  # bf16 has 8 bits
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("answer", [False, True])
def test_the_setting_overrules_the_processor(monkeypatch, answer):
    for setting, expected in (("", answer), ("0", False), ("1", True)):
        monkeypatch.setenv("DEEPFAKE_BF16", setting)
        assert has_bf16(lambda: answer) is expected
    monkeypatch.delenv("DEEPFAKE_BF16")
    assert has_bf16(lambda: answer) is answer


def test_another_setting_is_refused_in_a_sentence(prefers_bf16, infer, monkeypatch):
    monkeypatch.setenv("DEEPFAKE_BF16", "yes")
    done = infer(FACE_SAMPLE, "--weights", prefers_bf16)
    assert done.returncode == 2
    assert b"DEEPFAKE_BF16=yes" in done.stderr and b"Traceback" not in done.stderr


def test_an_unknown_precision_is_refused(tmp_path):
    plain = make_detector(tmp_path / "plain", "meso4")
    folder = copy_of(plain, tmp_path / "meso4", precision={"order": ["fp4", "fp32"]})
    with pytest.raises(UserError, match=r"precision 'fp4' is unknown"):
        Runtime.of(load_detector(folder))


def test_a_release_with_a_graph_of_8_bits_can_be_unpacked(tmp_path):
    for name in INT8_GRAPH:
        assert _safe_path(name, tmp_path) == name
    for name in ("pytorch_model.bin", "other.xml", "folder/model.int8.bin"):
        with pytest.raises(UserError):
            _safe_path(name, tmp_path)
