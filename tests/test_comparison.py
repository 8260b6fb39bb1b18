"""The comparison's numbers are those worked out by hand; it names what is broken, and resumes."""

import csv
import json
import shutil
import sqlite3
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.comparison import scores as comparison_scores
from pipeline.comparison.comparison import compare, worst_mistakes
from pipeline.comparison.entries import ComparisonInputs, find, kind_of, read_training_data
from pipeline.comparison.figures import draw_all, file_name
from pipeline.comparison.mistakes import draw_mistakes, explain_mistakes
from pipeline.comparison.record import record_sets, record_unseen
from pipeline.comparison.report import as_markdown, write_report
from pipeline.comparison.scores import Scores, score
from pipeline.detectors.calibration import sigmoid
from pipeline.detectors.detector import load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.detectors.versions import current_version, keep_version, next_version, versions_of
from pipeline.evaluation.metrics import delong_test, evaluate
from pipeline.evaluation.robustness import CLEAN, GRID
from pipeline.photos.images import read_image, resize
from pipeline.scoring.explanation import Explainer, overlay
from pipeline.service.installed import find_installed
from tests.conftest import DETECTOR, REPOSITORY
from tests.shared import SHARED, needs_shared
from tests.test_explanation import detector_folder
from tests.tiny_dataset import make_dataset
from tests.tiny_detectors import make_detector

REAL_GREYS, FAKE_GREYS = [10, 60, 110, 160], [100, 150, 200, 250]


@pytest.fixture
def detectors(tmp_path, own_cache) -> list[Path]:
    """Two that see the mean grey: "bright" finds bright pictures fake, "dark" errs the other way.

    bright's logit is 8 · grey / 255 - 4 at temperature 2, dark's is 1 - 2 · grey / 255.
    """
    weights = tmp_path / "weights"
    weights.mkdir()
    return [
        make_detector(weights / "bright", "meso4", 8, -4, 8, temperature=2.0, threshold=0.55),
        make_detector(weights / "dark", "meso4", -2, 1, 8, threshold=0.6, uncertain_from=0.4),
    ]


@pytest.fixture
def test_sets(tmp_path) -> list[Path]:
    """ "greys" of both classes, and "real_only"."""
    greys, real_only = tmp_path / "test" / "greys", tmp_path / "test" / "real_only"
    write_greys(greys / "real", REAL_GREYS)
    write_greys(greys / "fake", FAKE_GREYS)
    write_greys(real_only / "real", [90, 210])
    return [greys, real_only]


def write_greys(folder: Path, greys: list[int]) -> None:
    folder.mkdir(parents=True)
    for grey in greys:
        Image.new("L", (24, 20), grey).save(folder / f"{grey:03}.png")


def compared(
    detectors: list[Path], sets: list[Path], folder: Path, grid_sample: int = 2
) -> tuple[ComparisonInputs, Scores, dict]:
    inputs = find(detectors, sets, None, grid_sample)
    scores = score(inputs, folder / "scores.sqlite")
    return inputs, scores, compare(inputs, scores, {})


def figures_of(results: dict, detector: str, test_set: str) -> dict:
    [row] = [
        row
        for row in results["results"]
        if (row["detector"], row["test_set"]) == (detector, test_set)
    ]
    return row["figures"]


def test_figures_and_ensemble_by_hand(detectors, test_sets, tmp_path):
    inputs, scores, results = compared(detectors, test_sets, tmp_path)
    labels = np.array([1] * 4 + [0] * 4)  # in the order of the paths: fake/, real/
    greys = np.array(FAKE_GREYS + REAL_GREYS) / 255
    bright, dark = (8 * greys - 4) / 2, 1 - 2 * greys
    logit = {0.55: np.log(0.55 / 0.45), 0.6: np.log(0.6 / 0.4)}
    expected = {
        "bright": (sigmoid(bright), 0.55),
        "dark": (sigmoid(dark), 0.6),
        "ensemble": (
            sigmoid((bright + dark) / 2),
            float(sigmoid(np.mean(list(logit.values())))),
        ),
    }
    for entry in inputs.entries:
        probabilities, threshold = expected[entry.label]
        found_labels, found_probabilities = scores.labelled(entry, inputs.sets[0])
        assert found_labels.tolist() == labels.tolist()
        assert found_probabilities == pytest.approx(probabilities, abs=1e-5)
        assert entry.calibration.threshold == pytest.approx(threshold)
        wanted = evaluate(labels, probabilities, threshold)
        del wanted["images"]
        figures = figures_of(results, entry.label, "greys")
        assert {name: estimate.value for name, estimate in figures.items()} == pytest.approx(
            wanted, abs=1e-5
        )
        for estimate in figures.values():
            assert estimate.low <= estimate.value <= estimate.high or estimate.low == estimate.high
    assert figures_of(results, "bright", "greys")["auc"].value == 13 / 16
    assert figures_of(results, "dark", "greys")["auc"].value == pytest.approx(3 / 16)


def test_a_set_of_real_pictures_has_false_positives_only(detectors, test_sets, tmp_path):
    _, _, results = compared(detectors, test_sets, tmp_path)
    figures = figures_of(results, "bright", "real_only")
    assert list(figures) == ["recall_real"]
    assert figures["recall_real"].value == 0.5  # 90 is called real, 210 fake
    assert {row["test_set"] for row in results["paired"]} == {"greys"}
    cells = [row for row in results["robustness"] if row["test_set"] == "real_only"]
    assert cells and all(cell["auc"] is None and cell["recall_fake"] is None for cell in cells)


def test_each_pair_of_detectors_is_tested(detectors, test_sets, tmp_path):
    inputs, scores, results = compared(detectors, test_sets, tmp_path)
    pairs = [(row["first"], row["second"]) for row in results["paired"]]
    assert pairs == [("bright", "dark"), ("bright", "ensemble"), ("dark", "ensemble")]
    labels, bright = scores.labelled(inputs.entries[0], inputs.sets[0])
    _, dark = scores.labelled(inputs.entries[1], inputs.sets[0])
    test = delong_test(labels, bright, dark)
    assert results["paired"][0]["difference"] == test.difference
    assert results["paired"][0]["p"] == test.p <= results["paired"][0]["p_holm"]


def test_the_grid_takes_its_sample_and_both_classes_alike(detectors, test_sets, tmp_path):
    inputs, scores, results = compared(detectors, test_sets, tmp_path)
    cells = {
        row["degradation"]: row
        for row in results["robustness"]
        if (row["detector"], row["test_set"]) == ("bright", "greys")
    }
    assert list(cells) == list(GRID)
    assert all(cell["images"] == {"real": 2, "fake": 2} for cell in cells.values())
    chosen = [inputs.sets[0].samples[i].path.name for i in np.flatnonzero(inputs.sets[0].grid)]
    assert chosen == ["100.png", "250.png", "010.png", "160.png"]  # evenly over each class
    assert cells[CLEAN]["auc"] == 3 / 4  # the fake of 100 below the real of 160
    assert cells["blur σ 3"]["auc"] == 3 / 4, "blur does not change a flat grey"
    assert cells["blur σ 3"]["auc_change"] == (0, 0, 0)
    _, clean = scores.labelled(inputs.entries[0], inputs.sets[0])
    degraded = scores.labelled(inputs.entries[0], inputs.sets[0], "noise σ 10")[1]
    assert len(degraded) == 4 and not set(degraded) <= set(clean)


def test_scored_pictures_are_not_scored_again(detectors, test_sets, tmp_path, monkeypatch):
    inputs, scores, _ = compared(detectors, test_sets, tmp_path)
    monkeypatch.setattr(comparison_scores, "read_image", lambda path: pytest.fail("decoded again"))
    again = score(inputs, tmp_path / "scores.sqlite")
    assert again.logits == scores.logits
    assert again.pictures == scores.pictures


def test_a_moved_or_renamed_picture_is_still_known(detectors, test_sets, tmp_path, monkeypatch):
    inputs, scores, _ = compared(detectors, test_sets, tmp_path)
    shutil.move(test_sets[0], tmp_path / "elsewhere")
    (tmp_path / "elsewhere/fake/250.png").rename(tmp_path / "elsewhere/fake/000.png")
    moved = find(detectors, [tmp_path / "elsewhere"], None, 0)
    monkeypatch.setattr(comparison_scores, "read_image", lambda path: pytest.fail("decoded again"))
    again = score(moved, tmp_path / "scores.sqlite")
    probabilities = again.labelled(moved.entries[0], moved.sets[0])[1]
    assert sorted(probabilities) == sorted(scores.labelled(inputs.entries[0], inputs.sets[0])[1])


def test_changed_weights_pictures_and_calibrations_are_noticed(detectors, test_sets, tmp_path):
    inputs, scores, _ = compared(detectors, test_sets, tmp_path)
    before = scores.labelled(inputs.entries[0], inputs.sets[0])[1]
    make_detector(detectors[0], "meso4", 9, -4, 8, temperature=2.0, threshold=0.55)
    path = test_sets[0] / "fake" / "100.png"
    Image.new("L", (24, 20), 120).save(path)
    changed = find(detectors, test_sets, None, 2)
    after = score(changed, tmp_path / "scores.sqlite").labelled(
        changed.entries[0], changed.sets[0]
    )[1]
    greys = np.array([120, *FAKE_GREYS[1:], *REAL_GREYS]) / 255
    assert after == pytest.approx(sigmoid((9 * greys - 4) / 2), abs=1e-5)
    make_detector(detectors[0], "meso4", 9, -4, 8, temperature=1.0, threshold=0.55)
    cooler = find(detectors, test_sets, None, 2)
    last = score(cooler, tmp_path / "scores.sqlite").labelled(cooler.entries[0], cooler.sets[0])
    assert last[1] == pytest.approx(sigmoid(9 * greys - 4), abs=1e-5)
    assert not np.allclose(before, after)


def test_an_interrupted_comparison_goes_on(detectors, test_sets, tmp_path, monkeypatch):
    _, _, whole = compared(detectors, test_sets, tmp_path / "whole")
    monkeypatch.setattr(comparison_scores, "BATCH_SIZE", 4)
    network, calls = Runtime.logits, []

    def stopped(self, pixels):
        if len(calls) == 70:  # in the second of three batches
            raise KeyboardInterrupt
        calls.append(len(pixels))
        return network(self, pixels)

    inputs = find(detectors, test_sets, None, 2)
    monkeypatch.setattr(Runtime, "logits", stopped)
    with pytest.raises(KeyboardInterrupt):
        score(inputs, tmp_path / "scores.sqlite")
    with sqlite3.connect(tmp_path / "scores.sqlite") as database:
        [(kept,)] = database.execute("SELECT COUNT(*) FROM scores")
    calls.clear()
    monkeypatch.setattr(
        Runtime, "logits", lambda self, pixels: calls.append(len(pixels)) or network(self, pixels)
    )
    scores = score(inputs, tmp_path / "scores.sqlite")
    assert 0 < kept < sum(calls) + kept == (10 + 16 * 6) * 2
    results = compare(inputs, scores, {})
    for name in ("results", "paired", "robustness"):
        assert results[name] == whole[name]


def test_what_is_no_detector_is_skipped_and_what_is_broken_is_named(
    detectors, test_sets, tmp_path, capsys
):
    weights = tmp_path / "weights"
    (weights / "releases.json").write_text("{}")
    (weights / "notes").mkdir()
    shutil.copytree(weights / "dark", weights / "broken")
    (weights / "broken" / "model.onnx").write_bytes(b"not what it was")
    (weights / "strange.h5").write_bytes(b"some other network")
    (test_sets[0].parent / "README.md").write_text("Terms of use.")
    (test_sets[0].parent / "empty").mkdir()
    inputs = find(
        [*sorted(weights.iterdir()), weights / "missing"], sorted(test_sets[0].parent.iterdir()),
        None, 0,
    )  # fmt: skip
    assert [c.label for c in inputs.entries] == ["bright", "dark", "ensemble"]
    assert [s.name for s in inputs.sets] == ["greys", "real_only"]
    assert [sentence.partition(":")[0] for sentence in inputs.skipped] == [
        str(weights / "notes"),
        str(weights / "releases.json"),
        str(test_sets[0].parent / "README.md"),
    ]
    for sentence, what in zip(
        inputs.failed, ("broken", "strange.h5", "missing", "empty"), strict=True
    ):
        assert what in sentence


def test_nothing_to_compare_is_said_in_a_sentence(detectors, test_sets, tmp_path):
    (tmp_path / "releases.json").write_text("{}")
    with pytest.raises(UserError, match=r"releases.json: not a detector.\nThere is no detector"):
        find([tmp_path / "releases.json"], test_sets, None, 0)
    with pytest.raises(UserError, match="There is no test set"):
        find(detectors, [tmp_path / "nowhere"], None, 0)


def test_pictures_that_cannot_be_read_are_named_and_left_out(detectors, test_sets, tmp_path):
    (test_sets[0] / "fake" / "150.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    _, scores, results = compared(detectors, test_sets, tmp_path)
    assert [path.name for path in scores.unreadable] == ["150.png"]
    [sentence] = results["failed"]
    assert "150.png" in sentence
    assert results["test_sets"][0]["fake"] == 3
    assert figures_of(results, "bright", "greys")["auc"].value == pytest.approx(10 / 12)


def test_a_set_without_one_readable_picture_is_left_out(detectors, test_sets, tmp_path):
    for path in (test_sets[1] / "real").iterdir():
        path.write_bytes(b"broken")
    inputs, scores, results = compared(detectors, test_sets, tmp_path, grid_sample=0)
    assert [row["name"] for row in results["test_sets"]] == ["greys"]
    assert draw_all(inputs, scores, results, tmp_path / "figures")
    with pytest.raises(UserError, match="Not one picture"):
        compared(detectors, test_sets[1:], tmp_path)


def test_damaged_scores_are_refused_with_a_sentence(detectors, test_sets, tmp_path):
    (tmp_path / "scores.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match=r"scores.sqlite: the scores cannot be kept there"):
        compared(detectors, test_sets, tmp_path)


def test_published_weights_are_no_part_of_the_ensemble(detectors, test_sets, tmp_path):
    path = detectors[1] / "detector.json"
    described = json.loads(path.read_text())
    described["training"] = {"start": "published"}
    path.write_text(json.dumps(described))
    inputs = find(detectors, test_sets, None, 0)
    assert [c.label for c in inputs.entries] == ["bright", "dark"]
    assert [c.start for c in inputs.entries] == ["not stated", "published"]


def test_two_detectors_of_one_name_are_told_apart(detectors, test_sets, tmp_path):
    other = make_detector(tmp_path / "other" / "bright", "meso4", 3, -1, 8)
    copy = shutil.copytree(detectors[0], tmp_path / "copy")
    inputs = find([detectors[0], other, copy], test_sets, None, 0)
    labels = [c.label for c in inputs.entries]
    assert labels == [str(detectors[0]), str(other), "ensemble"], "the copy adds nothing"


def test_kinds_that_were_seen(detectors, test_sets, tmp_path):
    path = detectors[1] / "detector.json"
    described = json.loads(path.read_text())
    described["training"] = {"fingerprint": "abc123"}
    path.write_text(json.dumps(described))
    inputs = find(detectors, test_sets, None, 0)
    listed = tmp_path / "kinds.csv"
    listed.write_text("detector,generator\nbright,greys\nabc123,other\n")
    known = read_training_data(listed, inputs.entries)
    assert known == {"bright": {"greys"}, "dark": {"other"}}
    kinds = {
        (entry.label, name): kind_of(entry, name, known)
        for entry in inputs.entries
        for name in ("greys", "real_only")
    }
    assert kinds == {
        ("bright", "greys"): "seen",
        ("bright", "real_only"): "unseen",
        ("dark", "greys"): "unseen",
        ("dark", "real_only"): "unseen",
        ("ensemble", "greys"): "seen",
        ("ensemble", "real_only"): "unseen",
    }
    assert kind_of(inputs.entries[0], "greys", {}) == "not stated"
    results = compare(inputs, score(inputs, tmp_path / "scores.sqlite"), known)
    text = as_markdown(results, {})
    assert "### With and without a kind in training" in text
    assert "| bright | 0.812 | – | 75.0 % | – | 25.0 % | 50.0 % |" in text.splitlines()
    [row] = [line for line in text.splitlines() if line.startswith("| greys | bright 0.8")]
    assert "dark 0.18" in row
    listed.write_text("model,kind\n")
    with pytest.raises(UserError, match="columns detector,generator"):
        read_training_data(listed, inputs.entries)


def test_the_kinds_of_the_shipped_detectors_are_known(test_sets):
    folders = [path.parent for path in (REPOSITORY / "weights").glob("*/detector.json")]
    inputs = find(folders, test_sets, None, 0)
    known = read_training_data(None, inputs.entries)
    for entry in inputs.entries:
        if entry.members:  # pairs, and the ensemble
            continue
        assert known[entry.label], "name the kinds in weights/kinds.csv"


def test_names_cannot_become_markup(detectors, test_sets, tmp_path):
    evil = tmp_path / "test" / "<script>alert(1)<" / "a|b*c*"
    shutil.move(test_sets[0], tmp_path / "moved")
    evil.mkdir(parents=True)
    for name in ("real", "fake"):
        shutil.move(tmp_path / "moved" / name, evil / name)
    path = detectors[0] / "detector.json"
    described = json.loads(path.read_text())
    described["name"] = "<img src=x onerror=alert(2)>"
    path.write_text(json.dumps(described))
    _, _, results = compared(detectors, [evil], tmp_path, grid_sample=0)
    write_report(tmp_path, results, {})
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert "a|b*c*" in page.replace("&#124;", "|")
    assert file_name("../<b>ü.5") == "----b-ü-5"


def test_the_command_writes_the_whole_report_and_resumes(infer, detectors, test_sets, tmp_path):
    (tmp_path / "weights" / "releases.json").write_text("{}")
    history = [{"epoch": 1, "val_auc": 0.6}, {"epoch": 2, "val_auc": 0.7}]
    (detectors[0] / "history.jsonl").write_text("\n".join(map(json.dumps, history)))
    command = [*sorted((tmp_path / "weights").iterdir()), "--data", *test_sets]
    done = infer(*command, script="compare_models.py")
    assert done.returncode == 0, done.stderr.decode()
    assert b"releases.json: not a detector." in done.stderr
    assert b"| bright | greys | not stated | 4 + 4 | 0.812 (" in done.stdout
    reports = tmp_path / "reports"
    figures = {path.name for path in (reports / "figures").iterdir()}
    wanted = {
        *("roc", "reliability", "confusion", "speed", "training"),
        *(f"{kind}-{name}" for kind in ("robustness", "mistakes") for name in ("bright", "dark")),
    }
    assert {f"{name}.{suffix}" for name in wanted for suffix in ("png", "svg")} <= figures
    results = json.loads((reports / "results.json").read_text())
    row = results["results"][0]
    assert (row["detector"], row["test_set"]) == ("bright", "greys")
    assert row["figures"]["auc"][0] == 13 / 16
    with open(reports / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    [line] = [
        line
        for line in lines
        if (line["detector"], line["test_set"], line["degradation"], line["figure"])
        == ("bright", "greys", "", "auc")
    ]
    assert float(line["value"]) == 13 / 16
    page = (reports / "index.html").read_text()
    assert "://" not in page and "data:image/png;base64," in page  # no other hosts
    text = (reports / "README.md").read_text()
    assert text.count("](figures/") == len(figures) // 2
    assert "releases.json: not a detector" in text
    assert "Without heat maps: " in text and "no model.weights.h5 beside its graph" in text

    (detectors[1] / "model.onnx").write_bytes(b"broken since")
    again = infer(*command, "--grid-sample", "0", script="compare_models.py")
    assert again.returncode == 1, "a broken detector is no success"
    assert b"model.onnx is not the file" in again.stderr
    assert json.loads((reports / "results.json").read_text())["results"][0] == row


def test_the_command_says_what_is_wrong(infer, detectors, tmp_path):
    wrong = infer(detectors[0], "--data", tmp_path / "nowhere", script="compare_models.py")
    assert wrong.returncode == 2
    assert b"Traceback" not in wrong.stderr and b"nowhere" in wrong.stderr


def test_the_auc_on_unseen_kinds_is_recorded(detectors, test_sets, tmp_path):
    write_greys(tmp_path / "test" / "more" / "real", [10, 60, 90])
    write_greys(tmp_path / "test" / "more" / "fake", [200, 250])
    sets = [*test_sets, tmp_path / "test" / "more"]
    before = (detectors[1] / "detector.json").read_bytes()
    inputs, scores, _ = compared(detectors, sets, tmp_path, grid_sample=0)
    seen = {"bright": {"other"}, "dark": {"greys", "more"}}
    sentences = record_unseen(inputs, scores, seen, detectors)
    assert sentences[0].startswith("bright: AUC 0.906 (0.740–1.000) on unseen kinds (greys, more)")
    assert sentences[1].startswith("dark: nothing recorded; of no test set with both classes")
    metrics = load_detector(detectors[0]).description["metrics"]
    assert metrics["unseen_auc"] == (13 / 16 + 1) / 2
    low, high = metrics["unseen_auc_95"]
    variance = 2 * np.var([0.5, 0.75, 1, 1], ddof=1) / 4  # on greys (DeLong); on more it is 0
    assert low == pytest.approx(metrics["unseen_auc"] - 1.96 * np.sqrt(variance) / 2)
    assert high == 1
    assert metrics["unseen_measured"] == {
        "date": date.today().isoformat(),
        "sets": {"greys": {"real": 4, "fake": 4}, "more": {"real": 3, "fake": 2}},
    }
    assert (detectors[1] / "detector.json").read_bytes() == before

    inputs, scores, _ = compared(detectors, [sets[0]], tmp_path, grid_sample=0)
    record_unseen(inputs, scores, seen, detectors)
    metrics = load_detector(detectors[0]).description["metrics"]
    assert metrics["unseen_auc"] == 13 / 16 and list(metrics["unseen_measured"]["sets"]) == [
        "greys"
    ]


def test_nothing_is_recorded_in_what_is_not_known_or_not_ones_own(detectors, test_sets, tmp_path):
    inputs, scores, _ = compared(detectors, test_sets, tmp_path, grid_sample=0)
    before = [(folder / "detector.json").read_bytes() for folder in detectors]
    unknown = record_unseen(inputs, scores, {}, detectors)
    assert all("nothing recorded; of no test set" in sentence for sentence in unknown)
    seen = {"bright": {"other"}, "dark": {"other"}}
    elsewhere = record_unseen(inputs, scores, seen, [Path("hf-hub:owner/bright")])
    assert all("weights from elsewhere" in sentence for sentence in elsewhere)
    assert [(folder / "detector.json").read_bytes() for folder in detectors] == before

    published = json.loads(before[1]) | {"training": {"start": "published"}}
    (detectors[1] / "detector.json").write_text(json.dumps(published))
    inputs, scores, _ = compared(detectors, test_sets, tmp_path, grid_sample=0)
    make_detector(detectors[0], "meso4", 9, -4, 8)  # trained anew in the meantime
    sentences = record_unseen(inputs, scores, seen, detectors)
    assert sentences[0].endswith("nothing recorded; it was replaced while it was measured.")
    assert "weights from elsewhere" in sentences[1]
    for folder in detectors:
        assert "unseen_auc" not in load_detector(folder).description["metrics"]


def test_what_is_recorded_reaches_the_version_in_use(detectors, test_sets, tmp_path):
    shutil.copytree(detectors[1], next_version(detectors[0]))
    assert keep_version(detectors[0]) == 2
    versions = versions_of(detectors[0])
    for given in (detectors[0], versions[2]):
        inputs, scores, _ = compared([given], test_sets, tmp_path, grid_sample=0)
        record_unseen(inputs, scores, {"bright": {"other"}}, [given])
        assert current_version(detectors[0]) == 2
        assert load_detector(versions[2]).description["metrics"]["unseen_auc"] == 13 / 16
    assert load_detector(versions[1]).description["metrics"] == {}


def test_what_was_called_of_each_test_set_is_recorded(detectors, test_sets, tmp_path):
    path = detectors[0] / "detector.json"
    dark = load_detector(detectors[1]).description["files"]["model.onnx"]
    own = {"temperature": 1.0, "threshold": 0.6, "uncertain_from": 0.6, "rule": "0.6"}
    pair = {dark: {"name": "dark", "temperatures": [2.0, 1.0], "calibration": own}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"together": pair}))
    inputs, scores, _ = compared(detectors, test_sets, tmp_path, grid_sample=0)
    seen = {"bright": {"greys"}, "dark": {"other"}}
    sentences = record_sets(inputs, scores, seen, detectors[:1])
    assert [sentence.partition(":")[0] for sentence in sentences] == ["bright", "bright+dark"]
    description = load_detector(detectors[0]).description
    today = date.today().isoformat()
    assert description["metrics"]["test_sets"] == {
        "greys": {"real": 4, "called_fake": 1, "fake": 4, "found": 3, "threshold": 0.55}
        | {"date": today, "kind": "seen"},
        "real_only": {"real": 2, "called_fake": 1, "fake": 0, "found": 0, "threshold": 0.55}
        | {"date": today, "kind": "unseen"},
    }
    of_pair = description["together"][dark]["metrics"]["test_sets"]["greys"]
    assert (of_pair["called_fake"], of_pair["found"], of_pair["threshold"]) == (0, 1, 0.6)
    assert load_detector(detectors[1]).description["metrics"] == {}, "it was not among the folders"

    inputs, scores, _ = compared(detectors, test_sets, tmp_path, grid_sample=0)
    make_detector(detectors[0], "meso4", 9, -4, 8)  # trained anew in the meantime
    assert record_sets(inputs, scores, seen, detectors[:1]) == []


@pytest.mark.slow
def test_the_command_records_and_the_card_and_the_page_know(infer, test_sets, tmp_path):
    folder = shutil.copytree(DETECTOR, tmp_path / "weights" / "meso4")
    command = [folder, "--data", test_sets[0], "--grid-sample", "0"]
    done = infer(*command, script="compare_models.py")
    assert done.returncode == 0, done.stderr.decode()
    assert load_detector(folder).description == load_detector(DETECTOR).description
    done = infer(*command, "--record", script="compare_models.py")
    assert done.returncode == 0, done.stderr.decode()
    assert b"meso4: AUC 0." in done.stderr and b"on unseen kinds (greys)" in done.stderr
    inputs, scores, _ = compared([folder], test_sets[:1], tmp_path, grid_sample=0)
    _, probabilities = scores.labelled(inputs.entries[0], inputs.sets[0])
    expected = evaluate(inputs.sets[0].labels, probabilities, 0.5)["auc"]
    [installed] = find_installed(tmp_path / "weights")
    assert installed.unseen_auc == pytest.approx(expected)
    card = (folder / "README.md").read_text()
    assert f"AUC {expected:.3f} (95 % interval " in card
    assert f"measured on {date.today()}: greys (4 real, 4 fake)." in card
    assert "| AUC | 0.835 (95 % interval" in card, "that on the validation pictures stays"


@needs_shared
def test_the_gallery_shows_mistakes_only_and_the_worst_first(own_cache, tmp_path):
    inputs = find(
        [REPOSITORY / "weights" / "meso4"], [SHARED / "faces" / "test" / "stylegan"], 20, 0
    )
    scores = score(inputs, tmp_path / "scores.sqlite")
    threshold = inputs.entries[0].calibration.threshold
    mistakes = worst_mistakes(inputs.entries[0], inputs.sets, scores, 5)
    missed = [probability for probability, _, _ in mistakes[1]]
    assert len(missed) == 5 and missed == sorted(missed) and max(missed) < threshold
    assert all(sample.label == 1 for _, _, sample in mistakes[1])
    assert all(probability >= threshold for probability, _, _ in mistakes[0])


def test_beside_each_mistake_is_what_speaks_for_fake(own_cache, tmp_path):
    folder = detector_folder(tmp_path / "weights" / "all_fake", "meso4")
    faces = make_dataset(tmp_path / "data", train=10, validate=2) / "train"
    inputs = find([folder], [faces], None, 0)
    scores = score(inputs, tmp_path / "scores.sqlite")
    [entry] = inputs.entries
    mistakes = worst_mistakes(entry, inputs.sets, scores, 8)
    heat_maps, sentence = explain_mistakes(entry, mistakes)
    assert "Right of each" in sentence
    shown = pictures_in(draw_mistakes(entry, mistakes, heat_maps))
    paths = [sample.path for _, _, sample in mistakes[0]]
    assert len(shown) == len(paths) == 5 and not mistakes[1]
    explainer = Explainer(entry.detector)
    for picture, path in zip(shown, paths, strict=True):
        pixels = resize(read_image(path), 256, "area")
        assert (picture[:, :160] == resize(read_image(path), 160, "area")).all()
        [heat] = explainer.heat_maps(pixels[None])
        expected = resize(overlay(pixels, heat, 0.7), 160, "area").astype(int)
        # Alone or among others, a float may be rounded to the next of the map's 256 colours.
        assert np.abs(picture[:, 160:] - expected).max() <= 4
        assert np.abs(picture[:, 160:] - expected[:, ::-1]).max() > 40


def test_a_gallery_that_cannot_be_explained_says_why(detectors, test_sets, tmp_path):
    inputs, scores, _ = compared(detectors, test_sets, tmp_path, grid_sample=0)
    sentences = []
    for entry in inputs.entries:
        mistakes = worst_mistakes(entry, inputs.sets, scores, 8)
        heat_maps, sentence = explain_mistakes(entry, mistakes)
        assert heat_maps == {}
        sentences.append(sentence)
        shown = pictures_in(draw_mistakes(entry, mistakes, heat_maps))
        assert len(shown) == sum(map(len, mistakes.values())) > 0
        assert {picture.shape for picture in shown} == {(160, 160, 3)}
    assert "bright: heat maps need the network's weights" in sentences[0]
    assert "ensemble" in sentences[2]


def pictures_in(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]
