"""Two detectors that score as one: the mean of their calibrated logits, with its own threshold."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.detectors.calibration import Calibration
from pipeline.detectors.detector import GRAPH, load_detector
from pipeline.detectors.real_scores import real_scores_in
from pipeline.detectors.together import SECTION, companion_of, paired, temperatures, together
from pipeline.photos.photo import Photo
from pipeline.rows.run_settings import version_of
from pipeline.scoring.opening import with_companion
from pipeline.scoring.scoring import Scorer
from pipeline.training.together import main
from tests.conftest import FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.tiny_dataset import make_dataset

WEIGHTS = REPOSITORY / "weights"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """Copies of two small detectors that see the same crop."""
    names = ("meso4", "mesoinception4")
    return tuple(shutil.copytree(WEIGHTS / name, tmp_path / name) for name in names)


def change(folder: Path, **sections: object) -> None:
    file = folder / "detector.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | sections))


def scores(*detectors) -> list[float]:
    rows = Scorer(*detectors, face_mode="none").score([Photo(str(FACE_SAMPLE))])
    return [row.fake_probability for of_photo in rows for row in of_photo]


def test_a_pair_scores_the_mean_of_the_calibrated_logits(two):
    first, second = map(load_detector, two)
    pair = paired(first, second, Calibration(0.5, 0.9, 0.2, "by hand"))
    alone = np.array([scores(first)[0], scores(second)[0]])
    mean = np.mean(np.log(alone / (1 - alone)))
    assert scores(pair)[0] == pytest.approx(1 / (1 + np.exp(-mean / 0.5)), abs=1e-5)
    assert version_of(pair) not in (version_of(first), version_of(second))


def test_the_command_calibrates_and_the_script_scores(two, tmp_path, infer, capsys):
    first, second = two
    data = make_dataset(tmp_path / "data", train=2, validate=24)
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    assert main([str(first), str(second), "--data", str(data), "--threshold-rule", "fpr=0.1"]) == 0
    assert "of the fakes found" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in first.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"detector.json"}
    section = load_detector(first).description[SECTION]
    [kept] = section.values()
    assert kept["name"] == "mesoinception4" and kept["calibration"]["rule"] == "fpr=0.1"
    assert real_scores_in(kept).faces == 12

    output = tmp_path / "rows.jsonl"
    photo = SAMPLES / "two_people.jpg"
    done = infer(photo, "--weights", first, "--together", second, "--output", output)
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["model"] for row in rows] == ["meso4+mesoinception4"] * 2
    assert {row["threshold"] for row in rows} == {kept["calibration"]["threshold"]}


def test_two_that_were_not_calibrated_together_are_refused(two, infer):
    done = infer(FACE_SAMPLE, "--weights", two[0], "--together", two[1])
    assert done.returncode == 2
    sentence = done.stderr.decode()
    assert f"manage_detectors.py together {two[0]} {two[1]}" in sentence
    assert "Traceback" not in sentence


def test_the_calibration_holds_for_that_very_graph(two):
    second = load_detector(two[1])
    calibration = {"temperature": 1.0, "threshold": 0.9, "uncertain_from": 0.2, "rule": "by hand"}
    values = [load_detector(folder).calibration.temperature for folder in two]
    section = {"calibration": calibration, "temperatures": values}
    change(two[0], together={second.description["files"][GRAPH]: section})
    pair = together(load_detector(two[0]), second)
    assert pair.calibration == Calibration(**calibration)
    assert pair.members == (load_detector(two[0]), second)
    another = replace(second, description={**second.description, "files": {GRAPH: "0" * 64}})
    recalibrated = replace(second, calibration=replace(second.calibration, temperature=9.0))
    for other in (another, recalibrated):
        with pytest.raises(UserError, match="not calibrated together"):
            together(load_detector(two[0]), other)


@pytest.mark.parametrize(
    "section", [{"calibration": {"temperature": -1}}, {"calibration": []}, [], None, {"name": "x"}]
)
def test_a_malformed_section_is_one_sentence(two, section):
    second = load_detector(two[1])
    change(two[0], together={second.description["files"][GRAPH]: section})
    with pytest.raises(UserError, match="together"):
        together(load_detector(two[0]), second)


def test_other_inputs_are_refused():
    vit, meso4 = load_detector(WEIGHTS / "vit"), load_detector(WEIGHTS / "meso4")
    with pytest.raises(UserError, match="size"):
        paired(vit, meso4, vit.calibration)


def test_pictures_of_one_class_are_refused_in_a_sentence(two, tmp_path):
    data = make_dataset(tmp_path / "data", train=2, validate=8)
    shutil.rmtree(data / "validate" / "fake")
    with pytest.raises(UserError, match="fake"):
        main([*map(str, two), "--data", str(data)])


def test_after_a_new_calibration_the_first_one_scores_alone_and_it_is_said(
    two, tmp_path, monkeypatch, capsys
):
    first, second = map(load_detector, two)
    calibration = asdict(Calibration(1.0, 0.9, 0.2, "by hand"))
    section = {"calibration": calibration, "temperatures": temperatures(first, second)}
    change(two[0], together={second.description["files"][GRAPH]: section})
    first = load_detector(two[0])
    monkeypatch.setattr(companion_of, "__defaults__", (tmp_path,))
    assert with_companion(first, None, None).members == (first, second)
    assert "as one" in capsys.readouterr().err
    recalibrated = {**second.description["calibration"], "temperature": 9.0}
    change(two[1], calibration=recalibrated)
    assert with_companion(first, None, None) == first
    assert "alone" in capsys.readouterr().err
    with pytest.raises(UserError, match="not calibrated together"):
        with_companion(first, str(two[1]), None)


def test_without_the_very_one_the_first_scores_alone_and_it_is_said(
    two, tmp_path, monkeypatch, capsys
):
    section = {
        "name": "mesoinception4",
        "calibration": asdict(Calibration(1.0, 0.9, 0.2, "by hand")),
        "temperatures": temperatures(*map(load_detector, two)),
    }
    change(two[0], together={"0" * 64: section})
    first = load_detector(two[0])
    monkeypatch.setattr(companion_of, "__defaults__", (tmp_path,))
    assert with_companion(first, None, None) == first, "there is another of that name"
    assert "alone" in capsys.readouterr().err
    shutil.rmtree(two[1])
    assert with_companion(first, None, None) == first
    said = capsys.readouterr().err
    assert "mesoinception4" in said and "alone" in said
    assert with_companion(first, None, "weights/named") == first
    assert not capsys.readouterr().err


def test_rows_of_a_pair_depend_on_both_graphs(two):
    first, second = map(load_detector, two)
    calibration = Calibration(0.5, 0.9, 0.2, "by hand")
    files = {**second.description["files"], GRAPH: "0" * 64}
    another = replace(second, description={**second.description, "files": files})
    versions = [version_of(paired(first, other, calibration)) for other in (second, another)]
    assert versions[0] != versions[1]


@pytest.mark.slow  # starts Ray
def test_a_cluster_scores_with_the_pair(two, infer, tmp_path):
    dataset = pytest.importorskip("pyarrow.dataset")
    pytest.importorskip("ray")
    first, second = map(load_detector, two)
    section = {
        "calibration": asdict(Calibration(1.0, 0.9, 0.2, "by hand")),
        "temperatures": temperatures(first, second),
    }
    change(two[0], together={second.description["files"][GRAPH]: section})
    pair = ("--weights", two[0], "--together", two[1])
    command = (FACE_SAMPLE, "--output", tmp_path / "rows", "--workers", 1, *pair)
    for _ in range(2):  # again: what is in the parts is not scored again
        done = infer(*command, script="score_cluster.py")
        assert done.returncode == 0, done.stderr.decode()
    [row] = dataset.dataset(tmp_path / "rows", format="parquet").to_table().to_pylist()
    assert row["model"] == "meso4+mesoinception4" and row["threshold"] == 0.9
    done = infer(*command, "--weights", two[1], script="score_cluster.py")
    assert done.returncode == 2 and "once, not twice" in done.stderr.decode()
