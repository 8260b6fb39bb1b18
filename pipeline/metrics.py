"""How good a detector is: the usual figures, with bootstrap intervals."""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline.calibration import expected_calibration_error
from pipeline.dataset import FAKE, REAL


def evaluate(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict:
    """The figures of a detector on labelled pictures, as plain numbers.

    labels (N,) of 0 real and 1 fake, both present; probabilities (N,) are fake_probabilities; a
    picture is called fake from `threshold` on. Everything but `images` lies in 0…1; higher is
    better for auc, ap, accuracy and the recalls, lower for eer (equal error rate), ece and brier.
    """
    called_fake = probabilities >= threshold
    real, fake = labels == REAL, labels == FAKE
    false_alarms, hits, _ = roc_curve(labels, probabilities, drop_intermediate=False)
    at_equal_errors = np.argmin(np.abs(false_alarms - (1 - hits)))
    return {
        "images": {"real": int(real.sum()), "fake": int(fake.sum())},
        "auc": auc(labels, probabilities),
        "ap": float(average_precision_score(labels, probabilities)),
        "eer": float((false_alarms[at_equal_errors] + 1 - hits[at_equal_errors]) / 2),
        "accuracy": float(np.mean(called_fake == fake)),
        "recall_real": recall(real, ~called_fake),
        "recall_fake": recall(fake, called_fake),
        "ece": expected_calibration_error(labels, probabilities),
        "brier": float(np.mean((probabilities - labels) ** 2)),
    }


def recall(of_class: np.ndarray, hit: np.ndarray) -> float:
    """The share of the pictures `of_class` (N,) bool that are also `hit` (N,) bool."""
    return float(np.mean(hit[of_class]))


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a fake scores above a real picture."""
    return float(roc_auc_score(labels, probabilities))


def bootstrap_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    figure: Callable[[np.ndarray, np.ndarray], float],
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of figure(labels, probabilities), by the percentile bootstrap.

    Pictures are drawn with replacement within each class, so that no draw lacks one. Efron &
    Tibshirani, "An Introduction to the Bootstrap", chapter 13.
    """
    random = np.random.default_rng(seed)
    of_class = [
        indices for label in (REAL, FAKE) if len(indices := np.flatnonzero(labels == label))
    ]
    values = []
    for _ in range(samples):
        drawn = np.concatenate([random.choice(indices, len(indices)) for indices in of_class])
        values.append(figure(labels[drawn], probabilities[drawn]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
