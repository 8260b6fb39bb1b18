"""The figures are the field's own, and their intervals mean what 95 % says."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from pipeline.metrics import auc, bootstrap_interval, evaluate

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
PROBABILITIES = np.array([0.1, 0.2, 0.3, 0.7, 0.4, 0.8, 0.9, 0.9])


def recall_fake(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.mean(probabilities[labels == 1] >= 0.5))


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
    }.items():
        assert figures[name] == pytest.approx(expected), name
    figures.pop("images")
    assert all(type(value) is float and 0 <= value <= 1 for value in figures.values())


def test_equal_error_rate_of_known_cases():
    def eer(real: list, fake: list) -> float:
        labels = np.repeat([0, 1], [len(real), len(fake)])
        return evaluate(labels, np.array(real + fake), 0.5)["eer"]

    assert eer([0.1, 0.2], [0.8, 0.9]) == 0
    assert eer([0.8, 0.9], [0.1, 0.2]) == 1
    assert eer([0.5, 0.5], [0.5, 0.5]) == 0.5
    # One real face of five among fakes: from 0.36 on, one of five on both sides is wrong.
    assert eer([0.1, 0.1, 0.1, 0.1, 0.5], [0.35, 0.36, 0.37, 0.38, 0.9]) == pytest.approx(0.2)


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
    def mean_of_fakes(labels: np.ndarray, probabilities: np.ndarray) -> float:
        return float(probabilities[labels == 1].mean())

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
