"""The detectors in weights/ are whole, and no worse than the README says."""

import pytest

from benchmarks.evaluate import measure
from pipeline.detector import load_detector
from tests.conftest import REPOSITORY
from tests.shared import SHARED, needs_shared

SHIPPED = sorted(path.parent for path in (REPOSITORY / "weights").glob("*/detector.json"))
# A little below what was measured, for the arithmetic of other processors.
LOWEST_AUC = {
    "meso4": {"stylegan": 0.815, "dfdc": 0.77},
    "mesoinception4": {"stylegan": 0.8, "dfdc": 0.74},
}


def test_each_network_that_can_be_shipped_is():
    assert {folder.name for folder in SHIPPED} == set(LOWEST_AUC)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_detector_is_whole_and_says_what_it_was_trained_on(folder):
    detector = load_detector(folder)
    assert detector.name == folder.name
    assert (
        "Research and non-commercial use only" in detector.description["training"]["data_licence"]
    )
    assert detector.description["metrics"]["images"] == {"real": 700, "fake": 700}


@needs_shared
@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_it_tells_apart_what_the_readme_says(folder, own_cache):
    detector = load_detector(folder)
    for name, lowest in LOWEST_AUC[folder.name].items():
        found = measure(detector, SHARED / "faces" / "test" / name)
        assert found["auc"][0] >= lowest
        assert found["called_fake"][0] <= 0.13, "chosen for 5 % on other pictures"
