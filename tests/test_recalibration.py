"""Choosing temperature and threshold anew: what changes in a detector's folder, what does not."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.detectors.calibration import FEWEST_OF_A_SOURCE
from pipeline.detectors.detector import INT8_GRAPH, load_detector
from pipeline.detectors.real_scores import real_scores_in
from pipeline.detectors.runtime import Runtime
from pipeline.detectors.versions import copies_of, keep_version
from pipeline.evaluation.robustness import CLEAN, EVERYDAY, GRID
from pipeline.photos.images import read_image, resize
from pipeline.training import recalibrate
from tests.conftest import DETECTOR, REPOSITORY
from tests.test_precision import copy_of
from tests.tiny_dataset import make_dataset

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def detector(tmp_path):
    description = json.loads((DETECTOR / "detector.json").read_text())
    metrics = description["metrics"] | {"unseen_auc": 0.6, "unseen_auc_95": [0.5, 0.7]}
    metrics["unseen_measured"] = {"date": "2026-11-26", "sets": {}}
    precision = {"order": ["int8", "fp32"]}
    return copy_of(DETECTOR, tmp_path / "meso4", metrics=metrics, precision=precision)


def test_a_detector_is_calibrated_on_other_pictures(detector, tmp_path):
    data = make_dataset(tmp_path / "scans", train=2, validate=4 * FEWEST_OF_A_SOURCE)
    reals = sorted((data / "validate" / "real").iterdir())
    for number, path in enumerate(reals):
        path.rename(path.with_name(f"{'ab'[number % 2]}_{path.name}"))
    (data / "validate" / "real" / "c_broken.jpg").write_bytes(b"no picture")
    keep_version(detector)
    before = load_detector(detector).description
    command = [sys.executable, "manage_detectors.py", "recalibrate", detector, "--data", data]
    ran = subprocess.run(
        [*command, "--threshold-rule", "each-fpr=0.1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "threshold 0." in ran.stdout and "c_broken.jpg" in ran.stderr
    assert "fp32 until `manage_detectors.py precision`" in ran.stderr

    now = load_detector(detector)
    runtime = Runtime(now.graph, now.architecture)
    shares = []
    for source in "ab":
        paths = sorted((data / "validate" / "real").glob(f"{source}_*"))
        pictures = np.stack([resize(read_image(path), 256, now.resize_filter) for path in paths])
        probabilities = now.calibration.probability(runtime.logits(pictures))
        shares.append(np.mean(probabilities >= now.calibration.threshold))
    assert 0 < max(shares) <= 0.1
    description = now.description
    assert description["calibration"]["rule"] == "each-fpr=0.1"
    assert description["calibration"]["images"] == {"real": len(reals), "fake": len(reals)}
    real = real_scores_in(description)
    assert (real.faces, real.versions) == (len(reals), 1)
    assert real.share(now.calibration.threshold) <= 0.1
    assert description["metrics"]["unseen_auc"] == 0.6
    assert description["metrics"]["auc"] != before["metrics"]["auc"]
    assert "precision" not in description and not {*INT8_GRAPH} & {*description["files"]}
    assert description["training"] == before["training"]
    assert "from scans, on which it was calibrated again" in (detector / "README.md").read_text()
    assert len(copies_of(detector)) == 1


def test_degraded_real_faces_keep_their_share(detector, tmp_path):
    data = make_dataset(tmp_path / "data", train=2, validate=2 * FEWEST_OF_A_SOURCE)
    recalibrate.recalibrate(detector, data, "each-fpr=0.1")
    before = load_detector(detector).calibration
    recalibrate.recalibrate(detector, data, "degraded-fpr=0.1")
    now = load_detector(detector)
    look = Runtime(now.graph, now.architecture).logits
    shares = []
    for name in (CLEAN, *EVERYDAY):
        pictures = [GRID[name](read_image(path)) for path in (data / "validate/real").iterdir()]
        pixels = np.stack([resize(picture, 256, now.resize_filter) for picture in pictures])
        shares.append(
            np.mean(now.calibration.probability(look(pixels)) >= now.calibration.threshold)
        )
    assert 0 < max(shares) <= 0.1
    assert now.calibration.threshold >= before.threshold
    assert now.calibration.temperature == before.temperature


def test_one_class_is_refused_and_the_detector_stays(detector, tmp_path):
    data = make_dataset(tmp_path / "data", train=4, validate=4)
    shutil.rmtree(data / "validate" / "fake")
    before = (detector / "detector.json").read_bytes()
    with pytest.raises(UserError, match="validate"):
        recalibrate.recalibrate(detector, data, "fpr=0.05")
    assert (detector / "detector.json").read_bytes() == before
