"""Probabilities mean what they say, and thresholds keep what their rules promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.detectors.calibration import (
    DEFAULT_RULE,
    FEWEST_OF_A_SOURCE,
    MISSED_FAKES,
    Calibration,
    calibrate,
    choose_threshold,
    expected_calibration_error,
    fit_temperature,
    in_words,
    sigmoid,
)

# Few values, so that ties are common, with neighbouring floats and both ends among them.
tied = st.sampled_from([0.0, 1e-300, 0.25, 0.5, np.nextafter(0.5, 1), np.nextafter(1, 0), 1.0])
scores = st.lists(tied | st.floats(0, 1), min_size=1, max_size=40).map(np.array)
shares = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.29, 0.5, 0.57, 1.0]) | st.floats(0, 1)


def overconfident(temperature: float, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from true probabilities, and logits `temperature` times too large."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, count)
    labels = (random.random(count) < sigmoid(honest)).astype(int)
    return labels, honest * temperature


def joined(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of both classes."""
    return np.repeat([0, 1], [len(real), len(fake)]), np.concatenate([real, fake])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 12.0])
def test_the_temperature_that_was_put_in_is_found(temperature):
    labels, logits = overconfident(temperature)
    assert fit_temperature(labels, logits) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_stays_finite_where_the_classes_are_apart_or_the_logits_tell_nothing():
    labels = np.repeat([0, 1], 50)
    apart = fit_temperature(labels, np.where(labels, 3.0, -3.0))
    nothing = fit_temperature(labels, np.where(np.arange(100) % 2, 3.0, -3.0))
    assert 0.01 < apart < 0.1
    assert 10 < nothing < 100


def test_calibration_mends_the_calibration_error():
    labels, logits = overconfident(4)
    before = expected_calibration_error(labels, sigmoid(logits))
    after = expected_calibration_error(labels, calibrate(labels, logits).probability(logits))
    assert before > 0.1
    assert after < 0.01


@given(scores, scores, shares)
def test_the_fpr_rule_keeps_its_share_and_no_lower_threshold_would(real, fake, share):
    labels, probabilities = joined(real, fake)
    threshold = choose_threshold(labels, probabilities, f"fpr={share!r}")
    assert np.mean(real >= threshold) <= share
    # The next threshold down that changes anything for a real face is the highest of those below.
    below = real[real < threshold]
    if len(below):
        assert np.mean(real >= below.max()) > share


@given(scores, scores, shares)
def test_no_fake_that_the_fpr_rule_could_catch_is_missed(real, fake, share):
    labels, probabilities = joined(real, fake)
    threshold = choose_threshold(labels, probabilities, f"fpr={share!r}")
    missed = fake[fake < threshold]
    if len(missed):
        assert np.mean(real >= missed.max()) > share


@given(
    st.lists(st.floats(0, 1), min_size=FEWEST_OF_A_SOURCE, max_size=80),
    st.lists(st.floats(0, 1), min_size=FEWEST_OF_A_SOURCE, max_size=80),
    st.lists(st.floats(0, 1), min_size=1, max_size=FEWEST_OF_A_SOURCE - 1),
    scores,
    shares,
)
def test_the_each_fpr_rule_keeps_its_share_in_every_source(first, second, small, fake, share):
    labels, probabilities = joined(np.array(first + second + small), fake)
    sources = ["a"] * len(first) + ["b"] * len(second) + ["c"] * len(small) + ["a"] * len(fake)
    threshold = choose_threshold(labels, probabilities, f"each-fpr={share!r}", sources)
    # It is the strictest of all, of which the small source has a say only among all faces.
    assert threshold == max(
        choose_threshold(*joined(np.array(real), fake), f"fpr={share!r}")
        for real in (first, second, first + second + small)
    )
    for real in (first, second):
        assert np.mean(np.array(real) >= threshold) <= share


def test_without_sources_the_each_fpr_rule_is_the_fpr_rule():
    labels, probabilities = joined(np.linspace(0, 0.9, 200), np.linspace(0.3, 1, 50))
    expected = choose_threshold(labels, probabilities, "fpr=0.05")
    assert choose_threshold(labels, probabilities, "each-fpr=0.05") == expected


@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=2 * FEWEST_OF_A_SOURCE, max_size=120),
    scores,
    shares,
)
def test_the_degraded_fpr_rule_keeps_its_share_however_the_real_faces_come(real, fake, share):
    versions = np.array(real).T  # as they are, and two degradations
    sources = ["a", "b"] * 80
    chosen = choose_threshold(
        *joined(versions[0], fake),
        f"degraded-fpr={share!r}",
        sources[: len(real) + len(fake)],
        versions[1:],
    )
    each = f"each-fpr={share!r}"
    assert chosen == max(
        choose_threshold(*joined(version, fake), each, sources[: len(real) + len(fake)])
        for version in versions
    )
    for version in versions:
        assert np.mean(version[::2] >= chosen) <= share
        assert np.mean(version[1::2] >= chosen) <= share


def test_calibration_takes_degraded_faces_as_logits():
    labels, logits = overconfident(2.5, count=400)
    plain = calibrate(labels, logits, "degraded-fpr=0.05")
    assert plain.threshold == calibrate(labels, logits, "each-fpr=0.05").threshold
    harder = logits[labels == 0] + 1
    strict = calibrate(labels, logits, "degraded-fpr=0.05", degraded=[harder])
    assert strict.temperature == plain.temperature
    allowed = np.floor(0.05 * len(harder)) / len(harder)
    assert np.mean(strict.probability(harder) >= strict.threshold) == allowed


def test_the_fpr_threshold_keeps_its_distance_from_the_scores_on_both_sides():
    labels, probabilities = joined(np.linspace(0, 0.4, 100), np.linspace(0.8, 1, 100))
    assert choose_threshold(labels, probabilities, "fpr=0") == pytest.approx(0.6)


@given(scores, scores)
def test_eer_finds_the_most_equal_and_accuracy_the_fewest_mistakes(real, fake):
    labels, probabilities = joined(real, fake)

    def mistakes(threshold: float) -> tuple[float, float]:
        return float(np.mean(real >= threshold)), float(np.mean(fake < threshold))

    chosen = mistakes(choose_threshold(labels, probabilities, "eer"))
    others = [mistakes(candidate) for candidate in probabilities]
    assert abs(chosen[0] - chosen[1]) == pytest.approx(min(abs(a - b) for a, b in others))
    chosen = mistakes(choose_threshold(labels, probabilities, "accuracy"))
    assert sum(chosen) == pytest.approx(min(a + b for a, b in others))


def test_eer_and_accuracy_on_classes_of_different_sizes():
    real = np.array([0.1, 0.2, 0.3, 0.7])
    fake = np.array([0.6, 0.65, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9])
    labels, probabilities = joined(real, fake)
    # From 0.8 on: no real face of 4, and 2 fakes of 8 missed; from 0.7 on: 1 of 4 and 2 of 8.
    assert choose_threshold(labels, probabilities, "eer") == 0.7
    # From 0.6 on: 1 of 4 and none of 8 missed; from 0.8 on the same sum: the lower one is taken.
    assert choose_threshold(labels, probabilities, "accuracy") == 0.6


@pytest.mark.parametrize("number", ["0", "0.5", "0.123", "1"])
def test_a_number_is_the_threshold(number):
    labels, probabilities = joined(np.array([0.2]), np.array([0.9]))
    assert choose_threshold(labels, probabilities, number) == float(number)


@pytest.mark.parametrize(
    "rule", ["", "best", "fpr", "fpr=", "fpr=5%", "fpr=-0.1", "fpr=1.01", "EER", "1.5", "nan", "-1"]
)
def test_an_unknown_rule_is_refused_with_the_rules_there_are(rule):
    with pytest.raises(UserError, match=r"--threshold-rule .*fpr=SHARE.*eer.*accuracy"):
        calibrate(np.array([0, 1]), np.array([-1.0, 1.0]), rule)


@given(
    st.lists(st.floats(-80, 80), min_size=1, max_size=60).map(np.array),
    st.lists(st.floats(-80, 80), min_size=1, max_size=60).map(np.array),
    st.sampled_from([DEFAULT_RULE, "eer", "accuracy", "0.5", "0", "1"]),
)
def test_hardly_any_fake_of_the_validation_set_is_called_real(real, fake, rule):
    labels, logits = joined(real, fake)
    calibration = calibrate(labels, logits, rule)
    assert calibration.rule == rule
    assert calibration.temperature > 0
    assert calibration.uncertain_from <= calibration.threshold
    verdicts = [calibration.verdict(p) for p in calibration.probability(fake)]
    assert verdicts.count("real") <= MISSED_FAKES * len(fake)
    if rule == DEFAULT_RULE:
        verdicts = [calibration.verdict(p) for p in calibration.probability(real)]
        assert verdicts.count("fake") <= 0.05 * len(real)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_both_classes_are_needed(labels):
    with pytest.raises(ValueError, match="both classes"):
        calibrate(np.array(labels), np.zeros(len(labels)))


def test_verdicts_at_the_edges():
    calibration = Calibration(1.0, threshold=0.7, uncertain_from=0.4, rule="")
    edges = (0.0, np.nextafter(0.4, 0), 0.4, np.nextafter(0.7, 0), 0.7, 1.0)
    verdicts = ["real", "real", "uncertain", "uncertain", "fake", "fake"]
    assert [calibration.verdict(edge) for edge in edges] == verdicts
    never_uncertain = Calibration(1.0, threshold=0.5, uncertain_from=0.5, rule="")
    assert [never_uncertain.verdict(p) for p in (0.0, 0.4999, 0.5)] == ["real", "real", "fake"]


def test_a_threshold_of_the_users_own():
    calibration = Calibration(2.0, threshold=0.7, uncertain_from=0.4, rule="eer")
    higher = calibration.at(0.9)
    assert (higher.temperature, higher.threshold, higher.uncertain_from) == (2.0, 0.9, 0.4)
    lower = calibration.at(0.1)
    assert (lower.threshold, lower.uncertain_from) == (0.1, 0.1)
    assert [lower.verdict(p) for p in (0.05, 0.1)] == ["real", "fake"]
    assert "user" in lower.rule
    assert calibration.threshold == 0.7


def test_the_probability_of_a_logit():
    calibration = Calibration(temperature=2.0, threshold=0.5, uncertain_from=0.5, rule="")
    probabilities = calibration.probability(np.array([[-4.0, 0.0, 4.0]], np.float32))
    assert probabilities.shape == (1, 3)
    assert probabilities.dtype == np.float64
    assert probabilities[0] == pytest.approx([1 / (1 + np.e**2), 0.5, 1 / (1 + np.e**-2)])


def test_sigmoid_at_extremes():
    with np.errstate(all="raise", under="ignore"):
        values = sigmoid(np.array([-np.inf, -1e4, -30.0, 0.0, 30.0, 1e4, np.inf]))
    assert values[[0, 1]].tolist() == [0, 0]
    assert values[2] == pytest.approx(np.exp(-30.0))
    assert values[3] == 0.5
    assert values[[5, 6]].tolist() == [1, 1]


@given(st.floats(-1e6, 1e6))
def test_sigmoid_turned_round_is_one_minus_itself(x):
    assert 0 <= sigmoid(x) <= 1
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1)


def test_calibration_error_of_known_cases():
    def error(labels: list, probabilities: list) -> float:
        return expected_calibration_error(np.array(labels), np.array(probabilities))

    assert error([0, 1], [0.0, 1.0]) == 0
    assert error([1, 0], [0.0, 1.0]) == 1
    assert error([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 0
    assert error([0, 0, 0, 1], [0.75, 0.75, 0.75, 0.75]) == pytest.approx(0.5)
    # Two bins: 3 pictures of 4 at 0.1 with no fake, one at 0.9 that is one: 0.1 in each.
    assert error([0, 0, 0, 1], [0.1, 0.1, 0.1, 0.9]) == pytest.approx(0.1)
    # Gaps of opposite sign in one bin cancel, in two bins they do not.
    assert error([0, 1], [0.5, 0.5]) == 0
    assert error([0, 1], [0.4, 0.6]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("fpr=0.05", "at most 5 % of the real validation faces score as high"),
        ("fpr=0.125", "at most 12.5 % of the real validation faces score as high"),
        ("each-fpr=0.05", "at most 5 % of the real validation faces of each source score as high"),
        ("degraded-fpr=0.01", "whether unchanged, recompressed or shrunk"),
        ("eer", "both kinds of mistake are equally common"),
        ("accuracy", "the fewest mistakes"),
        ("0.7", "a number chosen by hand"),
        ("chosen by the user", "a number chosen by hand"),
    ],
)
def test_a_rule_is_said_in_words(rule, words):
    assert words in in_words(rule)
