"""How good a detector is: the usual figures, their intervals, and a test for two.

The intervals of shares are Wilson's (shares.py), the others the bootstrap's. Every figure is
computed for many bootstrap draws at once. A draw is a row of weights, which say how often each
picture was drawn: 1,000 draws of 1,400 pictures take a fraction of a second, a loop over a
library's figures takes minutes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

from pipeline.common.labels import FAKE, REAL
from pipeline.detectors.calibration import ECE_BINS, equal_width_bins
from pipeline.evaluation.shares import Estimate, mean_of_shares, share_of, wider, wilson

_DRAWS_AT_ONCE = 300_000  # numbers in a table, which then fits into the processor's cache


def evaluate(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict:
    """The figures of a detector on labelled pictures, as plain numbers.

    labels (N,) of 0 real and 1 fake; probabilities (N,) are fake_probabilities; a picture is called
    fake from `threshold` on. Everything but `images` lies in 0…1:
    higher is better for auc, ap (average precision, as scikit-learn's), tpr_at_1_fpr and
    tpr_at_5_fpr (the fakes found where at most 1 or 5 % of the real pictures are called fake, of
    the thresholds that there are), accuracy, balanced_accuracy (mean of both recalls), recall_real
    and recall_fake; lower for eer (equal error rate), ece and brier.
    Where a class is missing, only the other's recall is there.
    """
    figures = _figures(labels, probabilities, threshold, np.ones((1, len(labels))))
    images = {"real": int(np.sum(labels == REAL)), "fake": int(np.sum(labels == FAKE))}
    return {"images": images} | {name: float(values[0]) for name, values in figures.items()}


def evaluate_with_auc_interval(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict:
    """The figures of `evaluate` and, where there is an AUC, `auc_95`: its interval [low, high]."""
    figures = evaluate(labels, probabilities, threshold)
    if "auc" in figures:
        figures["auc_95"] = list(bootstrap_interval(labels, probabilities, auc))
    return figures


def evaluate_with_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The figures of `evaluate`, each with its 95 % interval.

    Those of shares are Wilson's: of accuracy and both recalls, and joined for their mean, the
    balanced accuracy. The thresholds of tpr_at_1_fpr and tpr_at_5_fpr are estimated, too, so
    theirs are the wider of Wilson's and the bootstrap's. All others are as in `bootstrap_interval`,
    by `samples` draws.
    """
    right = (probabilities >= threshold) == (labels == FAKE)
    recalls = {
        name: share_of(right[labels == label])
        for name, label in (("recall_real", REAL), ("recall_fake", FAKE))
        if (labels == label).any()
    }
    if len(recalls) < 2:
        return recalls
    found = evaluate(labels, probabilities, threshold)
    draws = [
        _figures(labels, probabilities, threshold, weights)
        for weights in bootstrap_weights(labels, samples, seed)
    ]
    estimates = {
        name: Estimate(found[name], *_interval([figures[name] for figures in draws]))
        for name in draws[0]
    }
    fakes = int(np.sum(labels == FAKE))
    for name in ("tpr_at_1_fpr", "tpr_at_5_fpr"):
        of_fakes = wilson(round(found[name] * fakes), fakes)
        estimates[name] = wider(estimates[name][1:], of_fakes)
    return estimates | {
        "accuracy": share_of(right),
        "balanced_accuracy": mean_of_shares(*recalls.values()),
        **recalls,
    }


def auc(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Area under the ROC curve: the chance that a fake scores above a real picture.

    With weights (draws, N), the area of each draw.
    """
    curve = roc(labels, probabilities, weights)
    return _area(curve) if weights is not None else float(_area(curve)[0])


class Roc(NamedTuple):
    """Shares (draws, points) of real pictures called fake and of fakes found: from (0, 0) to (1, 1)
    with a point for each score that occurs."""

    fpr: np.ndarray
    tpr: np.ndarray


def roc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None) -> Roc:
    """The ROC curve; with weights (draws, N), one for each draw."""
    called_real, called_fake = _counts(labels, probabilities, weights)
    return Roc(called_real / called_real[:, -1:], called_fake / called_fake[:, -1:])


def bootstrap_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    figure: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of a figure, such as `auc`, by the percentile bootstrap.

    `figure` takes labels (N,), probabilities (N,) and weights (draws, N) and gives (draws,) values.
    Pictures are drawn with replacement within each class, so that no draw lacks one. Efron &
    Tibshirani, "An Introduction to the Bootstrap", chapter 13.
    """
    return _interval(
        [
            figure(labels, probabilities, weights)
            for weights in bootstrap_weights(labels, samples, seed)
        ]
    )


def bootstrap_weights(labels: np.ndarray, samples: int = 1000, seed: int = 0) -> Iterator:
    """How often each picture is in each draw: tables (draws, N) of whole numbers, `samples` rows
    together. As many of each class are drawn as there are."""
    random = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // len(labels))
    for first in range(0, samples, at_once):
        draws = min(at_once, samples - first)
        weights = np.zeros((draws, len(labels)))
        for label in (REAL, FAKE):
            indices = np.flatnonzero(labels == label)
            if len(indices):
                drawn = random.integers(len(indices), size=(draws, len(indices)))
                drawn += np.arange(draws)[:, None] * len(indices)
                counts = np.bincount(drawn.ravel(), minlength=draws * len(indices))
                weights[:, indices] = counts.reshape(draws, len(indices))
        yield weights


class PairedTest(NamedTuple):
    """How the AUC of one detector differs from another's on the same pictures.

    `difference` is the first's minus the second's, with a 95 % interval; `p` is two-sided.
    """

    difference: Estimate
    p: float


def delong_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> PairedTest:
    """DeLong's test whether two detectors have the same AUC; scores (N,) of the same pictures.

    DeLong, DeLong, Clarke-Pearson: "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves", Biometrics 44, 1988.
    """
    areas, covariance = auc_covariance(labels, np.stack([first, second]))
    difference = float(areas[0] - areas[1])
    standard_error = float(np.sqrt(max(0.0, covariance @ [1, -1] @ [1, -1])))
    half = float(norm.ppf(0.975)) * standard_error
    if standard_error < 1e-12:  # no picture speaks for another result
        p = 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        p = float(2 * norm.sf(abs(difference) / standard_error))
    return PairedTest(Estimate(difference, difference - half, difference + half), p)


def auc_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The AUCs (k,) of k detectors' scores (k, N), and the covariance (k, k) of these estimates.

    By midranks, as in Sun & Xu: "Fast Implementation of DeLong's Algorithm for Comparing the Areas
    Under Correlated Receiver Operating Characteristic Curves", IEEE Signal Processing Letters 21,
    2014. Needs two pictures of each class.
    """
    real, fake = scores[:, labels == REAL], scores[:, labels == FAKE]
    ranks = rankdata(np.concatenate([fake, real], axis=1), axis=1)
    # For each fake the share of real pictures below it, and for each real the share of fakes above.
    of_fakes = (ranks[:, : fake.shape[1]] - rankdata(fake, axis=1)) / real.shape[1]
    of_reals = 1 - (ranks[:, fake.shape[1] :] - rankdata(real, axis=1)) / fake.shape[1]
    covariance = np.cov(of_fakes) / fake.shape[1] + np.cov(of_reals) / real.shape[1]
    return of_fakes.mean(axis=1), np.atleast_2d(covariance)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, in their order, adjusted for there being several tests (Holm 1979)."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    rising = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(rising, 1)
    return adjusted.tolist()


def _figures(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Each figure of each draw, (draws,); weights (draws, N)."""
    called_fake = probabilities >= threshold
    recalls = {
        name: weights[:, of_class] @ hit[of_class] / weights[:, of_class].sum(axis=1)
        for name, of_class, hit in (
            ("recall_real", labels == REAL, ~called_fake),
            ("recall_fake", labels == FAKE, called_fake),
        )
        if of_class.any()
    }
    if len(recalls) < 2:
        return recalls
    called_real_fake, found = _counts(labels, probabilities, weights)
    curve = Roc(called_real_fake / called_real_fake[:, -1:], found / found[:, -1:])
    called = called_real_fake + found
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    fnr = 1 - curve.tpr
    at_equal_errors = np.argmin(np.abs(curve.fpr - fnr), axis=1)[:, None]
    both_errors = np.take_along_axis(curve.fpr + fnr, at_equal_errors, axis=1)
    total = weights.sum(axis=1)
    return {
        "auc": _area(curve),
        "ap": np.sum(np.diff(curve.tpr, axis=1) * precision[:, 1:], axis=1),
        "eer": both_errors[:, 0] / 2,
        "tpr_at_1_fpr": _tpr_at(curve, 0.01),
        "tpr_at_5_fpr": _tpr_at(curve, 0.05),
        "accuracy": weights @ (called_fake == (labels == FAKE)) / total,
        "balanced_accuracy": sum(recalls.values()) / 2,
        **recalls,
        "ece": np.abs(weights @ _gaps(labels, probabilities)).sum(axis=1) / total,
        "brier": weights @ (probabilities - labels) ** 2 / total,
    }


def _counts(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """How many real pictures and how many fakes (draws, 1 + distinct scores) score as high as each
    score that occurs, the highest first, or higher; before them a 0."""
    if weights is None:
        weights = np.ones((1, len(labels)))
    order = np.argsort(-probabilities, kind="stable")
    last_of_its_score = np.flatnonzero(np.diff(probabilities[order], append=-np.inf))
    weights, labels = weights[:, order], labels[order]
    counts = []
    for label in (REAL, FAKE):
        so_far = np.cumsum(weights * (labels == label), axis=1)[:, last_of_its_score]
        counts.append(np.pad(so_far, ((0, 0), (1, 0))))
    return counts[0], counts[1]


def _area(curve: Roc) -> np.ndarray:
    return np.trapezoid(curve.tpr, curve.fpr, axis=1)


def _tpr_at(curve: Roc, share: float) -> np.ndarray:
    allowed = np.sum(curve.fpr <= share + 1e-9, axis=1)  # 29 of 100 is 0.28999… in floats
    return np.take_along_axis(curve.tpr, allowed[:, None] - 1, axis=1)[:, 0]


def _gaps(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N, bins): what each picture adds to the gap between said and true in its bin; as
    calibration.expected_calibration_error."""
    bin_of = equal_width_bins(probabilities, ECE_BINS)
    gaps = np.zeros((len(labels), ECE_BINS))
    gaps[np.arange(len(labels)), bin_of] = probabilities - labels
    return gaps


def _interval(draws: list[np.ndarray]) -> tuple[float, float]:
    low, high = np.percentile(np.concatenate(draws), [2.5, 97.5])
    return float(low), float(high)
