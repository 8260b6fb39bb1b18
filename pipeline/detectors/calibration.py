"""From a network's logit to a probability that means what it says, and to a verdict.

A network's own sigmoid is too sure of itself and its 0.5 means little on other data. One number,
the temperature, mends the first (Guo, Pleiss, Sun, Weinberger: "On Calibration of Modern Neural
Networks", ICML 2017); a threshold chosen on validation pictures mends the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.labels import FAKE, REAL

DEFAULT_RULE = "fpr=0.05"
RULES = (
    "fpr=SHARE (at most this share of real faces is called fake), each-fpr=SHARE (of the real "
    "faces of each source, too), degraded-fpr=SHARE (the same where they come recompressed or "
    "shrunk), eer (both mistakes equally often), accuracy (fewest mistakes if both classes are "
    "equally common), or a number 0…1"
)
DEGRADED_RULE = "degraded-fpr"
ECE_BINS = 15
FEWEST_OF_A_SOURCE = 50  # real faces, to choose a threshold by
# A face counts as real only where no more than this share of the validation fakes scores as low.
MISSED_FAKES = 0.05


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities and verdicts.

    From `threshold` on a face is called fake, below `uncertain_from` real, between them uncertain;
    both are fake_probabilities, uncertain_from ≤ threshold. `rule` says how they were chosen.
    """

    temperature: float
    threshold: float
    uncertain_from: float
    rule: str

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """Logits of any shape → fake_probability 0…1, float64 of the same shape."""
        return sigmoid(np.asarray(logits, np.float64) / self.temperature)

    def verdict(self, fake_probability: float) -> str:
        """ "real", "uncertain" or "fake"."""
        if fake_probability >= self.threshold:
            return "fake"
        return "uncertain" if fake_probability >= self.uncertain_from else "real"

    def at(self, threshold: float) -> "Calibration":
        """The same with a threshold that the user has chosen, 0…1.

        The uncertain band ends at it, and shrinks to nothing if it was above.
        """
        return Calibration(
            self.temperature, threshold, min(self.uncertain_from, threshold), "chosen by the user"
        )


_PROMISES = {
    "fpr": "at most {share:.3g} % of the real validation faces score as high",
    "each-fpr": "at most {share:.3g} % of the real validation faces of each source score as high",
    DEGRADED_RULE: "at most {share:.3g} % of the real validation faces of each source score as "
    "high, whether unchanged, recompressed or shrunk",
    "eer": "both kinds of mistake are equally common on the validation pictures",
    "accuracy": "the fewest mistakes on the validation pictures",
}


def calibrate(
    labels: np.ndarray,
    logits: np.ndarray,
    rule: str = DEFAULT_RULE,
    sources: Sequence[str] = (),
    degraded: Sequence[np.ndarray] = (),
) -> Calibration:
    """Fit temperature and threshold on validation pictures that the network was not trained on.

    labels (N,) of 0 real and 1 fake, logits (N,) float; `rule` is one of `RULES`; `sources` names
    the generator or source of each picture, for the rules that ask for them, and `degraded` holds
    the logits (R,) of the real ones, in their order, after each degradation that DEGRADED_RULE
    shall hold for. Raises UserError for another rule and ValueError where a class is missing.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, np.float64)
    if not (np.any(labels == REAL) and np.any(labels == FAKE)):
        raise ValueError("calibration needs pictures of both classes")
    temperature = fit_temperature(labels, logits)
    probabilities = sigmoid(logits / temperature)
    degraded = [sigmoid(np.asarray(real, np.float64) / temperature) for real in degraded]
    threshold = choose_threshold(labels, probabilities, rule, sources, degraded)
    fakes = np.sort(probabilities[labels == FAKE])
    uncertain_from = fakes[int(MISSED_FAKES * len(fakes))]
    return Calibration(temperature, threshold, float(min(uncertain_from, threshold)), rule)


def in_words(rule: str) -> str:
    """What one of the `RULES` says of its threshold, as the end of a sentence."""
    name, _, share = rule.partition("=")
    return _PROMISES.get(name, "a number chosen by hand").format(share=100 * float(share or 0))


def is_rule(rule: str) -> bool:
    """Whether a threshold can be chosen by it again: one of the `RULES`, not a number by hand."""
    return rule.partition("=")[0] in _PROMISES


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The T > 0 for which sigmoid(logits / T) has the least cross entropy with the labels."""
    from scipy.optimize import minimize_scalar

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - labels * scaled))

    # Beyond these bounds (T = 0.02…50) the classes are apart, or the logits tell nothing.
    return float(np.exp(minimize_scalar(cross_entropy, bounds=(-4, 4), method="bounded").x))


def choose_threshold(
    labels: np.ndarray,
    probabilities: np.ndarray,
    rule: str,
    sources: Sequence[str] = (),
    degraded: Sequence[np.ndarray] = (),
) -> float:
    """The fake_probability from which a face shall be called fake, by one of the `RULES`.

    `sources` and, as probabilities, `degraded` are as in `calibrate`; sources with fewer than
    FEWEST_OF_A_SOURCE real faces have no say of their own.
    """
    real = probabilities[labels == REAL]
    fake = np.sort(probabilities[labels == FAKE])
    names = np.asarray(sources or [""] * len(labels))[labels == REAL]
    kind, equals, share = rule.partition("=")
    if equals and kind in ("fpr", "each-fpr", DEGRADED_RULE):
        share = _share(share, rule)
        if kind == "fpr":
            return _passing(real, fake, share)
        versions = (real, *degraded) if kind == DEGRADED_RULE else (real,)
        return max(_passing_of_each(scores, names, fake, share) for scores in versions)
    if rule in ("eer", "accuracy"):
        candidates = np.unique(np.concatenate([real, fake]))
        fpr = 1 - np.searchsorted(np.sort(real), candidates) / len(real)
        fnr = np.searchsorted(fake, candidates) / len(fake)
        cost = np.abs(fpr - fnr) if rule == "eer" else fpr + fnr
        return float(candidates[np.argmin(cost)])
    return _share(rule, rule)


def _passing_of_each(real: np.ndarray, names: np.ndarray, fake: np.ndarray, share: float) -> float:
    """The threshold that `_passing` gives to the real scores as a whole and to those of each name
    (of the same shape) that has enough of them."""
    groups = [real[names == name] for name in np.unique(names)]
    large = [group for group in groups if len(group) >= FEWEST_OF_A_SOURCE]
    return max(_passing(group, fake, share) for group in (real, *large))


def _passing(real: np.ndarray, fake: np.ndarray, share: float) -> float:
    """The lowest threshold at or above which at most `share` of the real scores lie, as far from
    the scores on both sides as can be; `fake` rises."""
    real = np.sort(real)[::-1]
    # (29 % of 100 is 28.999… in floats.)
    allowed = np.searchsorted(np.arange(1, len(real) + 1) / len(real), share, side="right")
    if allowed >= len(real):
        return 0.0
    highest_below = real[allowed]
    above = np.concatenate([real[:allowed], fake])
    above = above[above > highest_below]
    middle = (highest_below + (above.min() if len(above) else 1.0)) / 2
    # Between two neighbouring floats there is no middle, and above 1.0 no other score.
    return float(max(middle, np.nextafter(highest_below, 2)))


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS
) -> float:
    """ECE, 0…1: how far fake_probability is from the share of fakes, over bins of equal width.

    Each bin counts by its share of the pictures (Guo et al. 2017, equation 3, with the predicted
    probability of one class in the place of the confidence).
    """
    bin_of = equal_width_bins(probabilities, bins)
    gaps = np.bincount(bin_of, weights=probabilities - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def equal_width_bins(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """Which of so many bins of equal width each probability (0…1, of any shape) falls into, from 0;
    1 falls into the last."""
    return np.minimum((probabilities * bins).astype(int), bins - 1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0, -np.asarray(x, np.float64)))


def logit(probability: np.ndarray) -> np.ndarray:
    """What `sigmoid` makes this probability of, float64: -inf at 0, inf at 1, NaN beyond."""
    probability = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(probability) - np.log1p(-probability)


def _share(text: str, rule: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"--threshold-rule {rule}: there is no such rule; choose {RULES}.")
    return share
