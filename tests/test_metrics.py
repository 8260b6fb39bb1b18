"""The figures are the field's own, and their intervals mean what 95 % says."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from pipeline.detectors.calibration import expected_calibration_error
from pipeline.evaluation.metrics import (
    auc,
    auc_covariance,
    bootstrap_interval,
    bootstrap_weights,
    delong_test,
    evaluate,
    evaluate_with_auc_interval,
    evaluate_with_intervals,
    holm,
    roc,
)

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
PROBABILITIES = np.array([0.1, 0.2, 0.3, 0.7, 0.4, 0.8, 0.9, 0.9])


def recall_fake(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights[:, labels == 1] @ (probabilities[labels == 1] >= 0.5) / (labels == 1).sum()


def pictures(seed: int, count: int, better: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores, some of which are equal."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat([0, 1], [count - count // 3, count // 3]))
    scores = 1 / (1 + np.exp(-better * labels - random.normal(size=count)))
    return labels, scores.round(2)


def test_figures_counted_by_hand():
    figures = evaluate(LABELS, PROBABILITIES, threshold=0.4)
    assert figures["images"] == {"real": 4, "fake": 4}
    assert figures["auc"] == 15 / 16  # of 16 pairs, only 0.7 against 0.4 is the wrong way round
    assert figures["recall_real"] == 3 / 4
    assert figures["recall_fake"] == 1  # 0.4 itself is called fake
    assert figures["accuracy"] == 7 / 8
    assert figures["eer"] == pytest.approx(1 / 4)
    assert figures["brier"] == pytest.approx(
        (0.01 + 0.04 + 0.09 + 0.49 + 0.36 + 0.04 + 0.01 + 0.01) / 8
    )
    assert figures["ap"] == pytest.approx(3 / 4 + 4 / 5 / 4)


@settings(deadline=None)  # a machine may be busy
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=50))
def test_figures_agree_with_scikit_learn_and_are_plain_numbers(pictures):
    labels, probabilities = (np.array(column) for column in zip(*pictures, strict=True))
    assume(0 < labels.sum() < len(labels))
    figures = evaluate(labels, probabilities, threshold=0.5)
    called = probabilities >= 0.5
    for name, expected in {
        "auc": sklearn_metrics.roc_auc_score(labels, probabilities),
        "ap": sklearn_metrics.average_precision_score(labels, probabilities),
        "accuracy": sklearn_metrics.accuracy_score(labels, called),
        "recall_real": sklearn_metrics.recall_score(labels, called, pos_label=0),
        "recall_fake": sklearn_metrics.recall_score(labels, called),
        "brier": sklearn_metrics.brier_score_loss(labels, probabilities),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, called),
        "tpr_at_1_fpr": tpr_at(labels, probabilities, 0.01),
        "tpr_at_5_fpr": tpr_at(labels, probabilities, 0.05),
        "ece": expected_calibration_error(labels, probabilities),
    }.items():
        assert figures[name] == pytest.approx(expected), name
    figures.pop("images")
    assert all(type(value) is float and 0 <= value <= 1 for value in figures.values())


def tpr_at(labels: np.ndarray, probabilities: np.ndarray, share: float) -> float:
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, probabilities)
    return tpr[fpr <= share].max()


def test_few_false_positives_are_counted_exactly():
    real = np.linspace(0, 0.99, 100)  # one of 100 above 0.985, five above 0.945
    fake = np.array([0.5, 0.946, 0.9475, 0.986, 0.987, 0.995])
    labels = np.repeat([0, 1], [len(real), len(fake)])
    figures = evaluate(labels, np.concatenate([real, fake]), 0.5)
    assert figures["tpr_at_1_fpr"] == 3 / 6
    assert figures["tpr_at_5_fpr"] == 5 / 6


def test_a_set_of_one_class_has_its_recall_only():
    assert evaluate(np.zeros(4, int), PROBABILITIES[:4], 0.3) == {
        "images": {"real": 4, "fake": 0},
        "recall_real": 0.5,
    }
    assert list(evaluate_with_intervals(np.ones(4, int), PROBABILITIES[4:], 0.5)) == ["recall_fake"]


def test_each_draw_is_measured_as_if_it_had_been_copied_out():
    labels, scores = pictures(0, 90)
    [weights] = bootstrap_weights(labels, 20)
    assert (weights[:, labels == 0].sum(axis=1) == 60).all()
    assert (weights[:, labels == 1].sum(axis=1) == 30).all()
    measured = evaluate_with_intervals(labels, scores, 0.4, samples=20)
    copies = [np.repeat(np.arange(90), row.astype(int)) for row in weights]
    each = [evaluate(labels[drawn], scores[drawn], 0.4) for drawn in copies]
    for name in ("auc", "ap", "eer", "ece", "brier"):
        estimate = measured[name]
        assert estimate.value == evaluate(labels, scores, 0.4)[name]
        expected = np.percentile([figures[name] for figures in each], [2.5, 97.5])
        assert estimate[1:] == pytest.approx(expected), name


def test_draws_that_come_in_several_tables(monkeypatch):
    labels, scores = pictures(1, 60)
    monkeypatch.setattr("pipeline.evaluation.metrics._DRAWS_AT_ONCE", 60 * 7)
    tables = list(bootstrap_weights(labels, 20))
    assert [len(table) for table in tables] == [7, 7, 6]
    low, high = bootstrap_interval(labels, scores, auc, samples=20)
    areas = np.concatenate([auc(labels, scores, table) for table in tables])
    assert (low, high) == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])))


def test_the_roc_curve_is_scikit_learn_s():
    labels, scores = pictures(2, 300)
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    curve = roc(labels, scores)
    assert curve.fpr[0] == pytest.approx(fpr)
    assert curve.tpr[0] == pytest.approx(tpr)


def brute_force_covariance(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """By DeLong's definition: every fake against every real picture, a tie counting half."""
    real, fake = scores[:, labels == 0], scores[:, labels == 1]
    pairs = (fake[:, :, None] > real[:, None, :]) + 0.5 * (fake[:, :, None] == real[:, None, :])
    of_fakes, of_reals = pairs.mean(axis=2), pairs.mean(axis=1)
    return np.cov(of_fakes) / fake.shape[1] + np.cov(of_reals) / real.shape[1]


def two_detectors(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the scores (2, N) of two detectors that often err on the same pictures."""
    labels, first = pictures(seed, count)
    noise = np.random.default_rng(seed + 1).normal(scale=0.1, size=count)
    return labels, np.stack([first, (first + noise).round(2)])


@pytest.mark.parametrize("seed", range(5))
def test_delong_by_ranks_is_delong_by_pairs(seed):
    labels, scores = two_detectors(seed, 120)
    areas, covariance = auc_covariance(labels, scores)
    assert areas == pytest.approx([auc(labels, row) for row in scores])
    assert covariance == pytest.approx(brute_force_covariance(labels, scores))


def test_delong_agrees_with_the_bootstrap():
    labels, scores = two_detectors(3, 900)
    difference = delong_test(labels, *scores).difference
    draws = np.concatenate(
        [
            auc(labels, scores[0], weights) - auc(labels, scores[1], weights)
            for weights in bootstrap_weights(labels, 2000)
        ]
    )
    assert difference.value == pytest.approx(auc(labels, scores[0]) - auc(labels, scores[1]))
    std = (difference.high - difference.low) / (2 * 1.96)
    assert std == pytest.approx(draws.std(), rel=0.1)


def test_delong_calls_equal_detectors_different_as_rarely_as_it_says():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    p = [
        delong_test(labels, *(labels + random.normal(size=(2, 120)))).p for _ in range(400)
    ]  # two detectors as good as each other, on pictures of their own
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_delong_of_known_cases():
    labels, scores = two_detectors(0, 90)
    same = delong_test(labels, scores[0], scores[0])
    assert same.p == 1
    assert same.difference == (0, 0, 0)
    assert delong_test(labels, labels, 1 - labels).p == 0  # always right against always wrong
    better, worse = delong_test(labels, *scores), delong_test(labels, *scores[::-1])
    assert better.p == pytest.approx(worse.p)
    assert better.difference.value == -worse.difference.value


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_equal_error_rate_of_known_cases():
    def eer(real: list, fake: list) -> float:
        labels = np.repeat([0, 1], [len(real), len(fake)])
        return evaluate(labels, np.array(real + fake), 0.5)["eer"]

    assert eer([0.1, 0.2], [0.8, 0.9]) == 0
    assert eer([0.8, 0.9], [0.1, 0.2]) == 1
    assert eer([0.5, 0.5], [0.5, 0.5]) == 0.5
    # One real face of five among fakes: from 0.36 on, one of five on both sides is wrong.
    assert eer([0.1, 0.1, 0.1, 0.1, 0.5], [0.35, 0.36, 0.37, 0.38, 0.9]) == pytest.approx(0.2)


def test_the_auc_comes_with_its_interval_where_there_is_one():
    figures = evaluate_with_auc_interval(LABELS, PROBABILITIES, 0.5)
    assert figures.pop("auc_95") == list(bootstrap_interval(LABELS, PROBABILITIES, auc))
    assert figures == evaluate(LABELS, PROBABILITIES, 0.5)
    assert "auc_95" not in evaluate_with_auc_interval(LABELS[:4], PROBABILITIES[:4], 0.5)


def test_the_interval_is_always_the_same_and_lies_about_the_figure():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    scores = labels + random.normal(size=100)
    interval = bootstrap_interval(labels, scores, auc, samples=100)
    assert interval == bootstrap_interval(labels, scores, auc, samples=100)
    assert interval != bootstrap_interval(labels, scores, auc, samples=100, seed=1)
    low, high = interval
    assert 0 <= low < auc(labels, scores) < high <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    def mean_of_fakes(labels, probabilities, weights):
        return weights[:, labels == 1] @ probabilities[labels == 1] / 100

    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    holds = []
    for trial in range(100):
        probabilities = random.uniform(0, 1, 200)  # their mean is 0.5
        low, high = bootstrap_interval(labels, probabilities, mean_of_fakes, 300, seed=trial)
        holds.append(low <= 0.5 <= high)
    assert 0.88 <= np.mean(holds) < 1


def test_the_interval_shrinks_with_more_pictures():
    random = np.random.default_rng(0)
    widths = []
    for count in (100, 10_000):
        labels = np.repeat([0, 1], count // 2)
        low, high = bootstrap_interval(
            labels, labels + random.normal(size=count), recall_fake, samples=200
        )
        widths.append(high - low)
    assert 5 < widths[0] / widths[1] < 20  # by about the root of 100


def test_the_interval_of_a_figure_of_one_class():
    fakes = np.ones(50, int)
    probabilities = np.linspace(0, 1, 50)
    low, high = bootstrap_interval(fakes, probabilities, recall_fake, samples=300)
    assert 0.3 < low < 0.5 < high < 0.7
