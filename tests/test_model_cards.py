"""Model cards have a head that the Hugging Face hub reads, and say what detector.json says."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.detectors.detector import load_detector
from pipeline.evaluation.model_card import main
from tests.conftest import REPOSITORY

SHIPPED = sorted(path.parent for path in (REPOSITORY / "weights").glob("*/detector.json"))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_hub_reads_the_head_of_a_shipped_card(folder):
    data = ModelCard.load(folder / "README.md").data
    metrics = load_detector(folder).description["metrics"]
    assert data.license == "other", "weights are bound by the terms of the training pictures"
    assert (data.library_name, data.pipeline_tag) == ("onnx", "image-classification")
    assert data.model_name == folder.name
    results = {(row.dataset_split, row.metric_type): row.metric_value for row in data.eval_results}
    assert results["validation", "roc_auc"] == round(metrics["auc"], 4)
    assert results["validation", "recall"] == round(metrics["recall_fake"], 4)
    assert results["validation", "specificity"] == round(metrics["recall_real"], 4)
    assert results["test", "roc_auc"] == round(metrics["unseen_auc"], 4), "not under validation"


def test_a_card_is_written_again_and_nothing_else_changes(tmp_path):
    folder = tmp_path / "meso4"
    shutil.copytree(REPOSITORY / "weights" / "meso4", folder)
    before = contents(folder)
    main([str(folder), str(REPOSITORY / "weights" / "kinds.csv")])  # weights/* names files, too
    assert contents(folder) == before, "run python manage_detectors.py card weights/*"


def test_a_folder_without_a_detector_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no detector\.json"):
        main([str(tmp_path)])
