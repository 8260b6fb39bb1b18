"""What share of real faces scores as high: measured, kept, and drawn as a scale."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detectors.calibration import Calibration
from pipeline.detectors.detector import WEIGHTS
from pipeline.detectors.real_scores import SECTION, SHARES, RealScores, real_scores_in
from pipeline.rows.rows import Row
from pipeline.service.installed import find_installed
from pipeline.service.results import ZONES
from pipeline.service.scale import WIDTH, one_in, scale_of

DETECTORS = [path.parent.name for path in sorted(WEIGHTS.glob("*/detector.json"))]
probabilities = st.floats(0, 1)
versions = st.integers(2, 30).flatmap(
    lambda faces: st.lists(
        st.lists(probabilities, min_size=faces, max_size=faces).map(np.array),
        min_size=1,
        max_size=3,
    )
)


@given(versions)
def test_the_shares_are_those_of_all_scores(each):
    real = RealScores.of(each)
    everything = np.concatenate(each)
    assert (real.faces, real.versions) == (len(each[0]), len(each))
    for share, reached in real.reached:
        assert np.mean(everything >= reached) >= share - 1e-9
        assert np.mean(everything > reached) < share
    assert real_scores_in(json.loads(json.dumps({SECTION: real.as_json()}))) == real


@given(versions, probabilities, probabilities)
def test_a_higher_score_is_reached_by_fewer_and_all_shares_are_known_ones(each, one, other):
    real = RealScores.of(each)
    low, high = sorted([one, other])
    assert real.smallest - 1e-12 <= real.share(high) <= real.share(low) <= real.largest + 1e-12


def test_between_two_shares_that_are_known_it_is_interpolated():
    real = RealScores(1000, 1, ((0.5, 0.1), (0.1, 0.5), (0.01, 0.9)))
    assert [real.share(p) for p in (0.1, 0.5, 0.9)] == pytest.approx([0.5, 0.1, 0.01])
    assert real.share(0.75) == pytest.approx(10**-1.5)  # half of the way, in logits and logarithms
    assert (real.share(0.0), real.share(1.0)) == (0.5, 0.01)


def test_few_faces_tell_no_small_shares():
    assert RealScores.of([np.linspace(0, 1, 20)]).smallest == 0.05
    assert RealScores.of([np.array([0.3])]).reached == ((0.5, 0.3),)
    assert RealScores.of([np.linspace(0, 1, 300)] * 4).smallest == SHARES[-1]


@pytest.mark.parametrize(
    "reached", [[], [[0.5, 2]], [[0.5, 0.3], [0.6, 0.4]], [[0.5, 0.3], [0.1, 0.2]], [[0, 1]], [1]]
)
def test_a_malformed_section_is_refused(reached):
    with pytest.raises((KeyError, TypeError, ValueError)):
        real_scores_in({SECTION: {"faces": 3, "versions": 1, "reached": reached}})


def test_folders_of_earlier_versions_say_nothing():
    assert real_scores_in({"metrics": {}}) is None


@pytest.mark.parametrize("share", [0.5, 0.3, 0.1, 0.034, 0.0021, 0.001])
def test_in_words(share):
    expected = {0.5: "2", 0.3: "3", 0.1: "10", 0.034: "30", 0.0021: "500", 0.001: "1,000"}
    assert one_in(share) == f"1 in {expected[share]}"


@given(probabilities)
def test_a_face_is_drawn_in_the_zone_of_its_verdict(probability):
    for detector in find_installed(WEIGHTS):
        calibration = Calibration(1.0, detector.threshold, detector.uncertain_from, "")
        verdict = calibration.verdict(probability)
        row = Row(path="face.jpg", fake_probability=probability, verdict=verdict)
        if detector.real_scores is None:
            continue
        scale = scale_of(row, detector, ZONES)
        assert [zone.verdict for zone in scale.zones] == ["real", "uncertain", "fake"]
        assert sum(zone.width for zone in scale.zones) == pytest.approx(WIDTH)
        [zone] = (zone for zone in scale.zones if zone.verdict == verdict)
        assert zone.left - 1e-9 <= scale.at <= zone.left + zone.width + 1e-9
        assert [tick.at for tick in scale.ticks] == sorted(tick.at for tick in scale.ticks)


def test_no_scale_where_the_folder_does_not_say():
    detector = dataclasses.replace(find_installed(WEIGHTS)[0], real_scores=None)
    row = Row(path="face.jpg", fake_probability=0.5, verdict="uncertain")
    assert scale_of(row, detector, ZONES) is None


@pytest.mark.parametrize("name", DETECTORS)
def test_shipped_detectors_say_how_real_faces_score(name):
    """No more than their threshold rule promises score as high as it."""
    description = json.loads((WEIGHTS / name / "detector.json").read_text())
    pairs = description.get("together", {}).values()
    for section in (description, *pairs):
        real = real_scores_in(section)
        assert real.faces == section["metrics"]["images"]["real"]
        promised = float(section["calibration"]["rule"].partition("=")[2])
        assert real.share(section["calibration"]["threshold"]) <= promised * 1.1
