"""The intervals of shares are Wilson's, wherever shares are given with one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pipeline.comparison.report import summary_table
from pipeline.evaluation.metrics import bootstrap_weights, evaluate, evaluate_with_intervals
from pipeline.evaluation.shares import mean_of_shares, share_of, wilson

Z = norm.ppf(0.975)


def wilson_by_hand(hits: int, number: int) -> tuple[float, float]:
    share = hits / number
    middle = (share + Z**2 / (2 * number)) / (1 + Z**2 / number)
    half = Z / (1 + Z**2 / number) * np.sqrt(share * (1 - share) / number + (Z / number / 2) ** 2)
    return middle - half, middle + half


@pytest.mark.parametrize(
    ("hits", "number", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 250, 0.0000, 0.0151),
        (250, 250, 0.9849, 1.0000),
    ],
)
def test_known_values(hits, number, low, high):
    estimate = wilson(hits, number)
    assert estimate.value == hits / number
    assert estimate[1:] == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_formula_of_the_paper(counts):
    estimate = wilson(*counts)
    assert estimate[1:] == pytest.approx(wilson_by_hand(*counts), abs=1e-9)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high, "no share is known for certain"


def test_the_mean_of_two_shares_is_newcombe_s():
    # Table II of his paper on differences: 56 of 70 less 48 of 80 is 0.2, 0.0524 to 0.3339. The
    # mean of 56 of 70 and of the 32 of 80 left is half of one more.
    mean = mean_of_shares(wilson(56, 70), wilson(80 - 48, 80))
    assert mean.value == pytest.approx((1 + 0.2) / 2)
    assert mean[1:] == pytest.approx(((1 + 0.0524) / 2, (1 + 0.3339) / 2), abs=5e-5)


def answers(seed: int, real: int, fake: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat([0, 1], [real, fake]))
    return labels, random.uniform(size=real + fake).round(2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 60), st.floats(0, 1))
def test_shares_among_the_figures_have_wilson_s(seed, real, fake, threshold):
    labels, probabilities = answers(seed, real, fake)
    right = (probabilities >= threshold) == labels
    measured = evaluate_with_intervals(labels, probabilities, threshold, samples=20)
    assert measured["accuracy"] == share_of(right)
    assert measured["recall_real"] == share_of(right[labels == 0])
    assert measured["recall_fake"] == share_of(right[labels == 1])
    plain = evaluate(labels, probabilities, threshold)
    assert list(measured) == [name for name in plain if name != "images"]
    for name, (value, low, high) in measured.items():
        assert value == pytest.approx(plain[name])
        assert low <= high
        if name not in ("auc", "ap", "eer", "ece", "brier"):
            assert 0 <= low <= value <= high <= 1
            assert low < high


def test_a_share_at_an_estimated_threshold_is_no_surer_than_at_a_given_one():
    labels, probabilities = answers(0, 100, 100)
    probabilities += 0.2 * labels
    measured = evaluate_with_intervals(labels, probabilities, 0.5)
    for name, share in (("tpr_at_1_fpr", 0.01), ("tpr_at_5_fpr", 0.05)):
        estimate = measured[name]
        of_fakes = wilson(round(100 * estimate.value), 100)
        drawn = np.concatenate(
            [
                [
                    evaluate(
                        np.repeat(labels, row.astype(int)),
                        np.repeat(probabilities, row.astype(int)),
                        0.5,
                    )[name]
                    for row in weights
                ]
                for weights in bootstrap_weights(labels)
            ]
        )
        low, high = np.percentile(drawn, [2.5, 97.5])
        expected = (min(low, of_fakes.low), max(high, of_fakes.high))
        assert estimate[1:] == pytest.approx(expected), share


def test_none_of_250_is_not_said_to_be_none_for_certain():
    labels = np.repeat([0, 1], 250)
    probabilities = np.where(labels == 1, 0.9, 0.1)
    measured = evaluate_with_intervals(labels, probabilities, 0.5, samples=50)
    results = {
        "detectors": [{"name": "d"}],
        "test_sets": [{"name": "s", "real": 250, "fake": 250}],
        "results": [{"detector": "d", "test_set": "s", "kind": "unseen", "figures": measured}],
    }
    row = summary_table(results).splitlines()[-1]
    assert "| 100.0 % (98.5–100.0) | 0.0 % (0.0–1.5) |" in row
    only_real = evaluate_with_intervals(np.zeros(250, int), np.zeros(250), 0.5)
    assert only_real == {"recall_real": wilson(250, 250)}
