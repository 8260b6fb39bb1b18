"""The intervals of shares, of k of n: Wilson's, which hold also where none or all are hit."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

_Z = NormalDist().inv_cdf(0.975)  # of 95 % intervals


class Estimate(NamedTuple):
    """A figure of a sample, with its 95 % interval."""

    value: float
    low: float
    high: float


def share_of(hit: np.ndarray) -> Estimate:
    """The share of pictures that are hit, hit (N,) being true or false, N at least 1; see
    `wilson`."""
    return wilson(int(np.sum(hit)), len(hit))


def wilson(hits: int, number: int) -> Estimate:
    """The share hits / number, with its 95 % score interval.

    Wilson: "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the
    American Statistical Association 22, 1927. The bootstrap sees no spread at all in 0 of 250; here
    that is 0 to 1.5 %.
    """
    share, shrunk = hits / number, 1 + _Z**2 / number
    middle = (share + _Z**2 / (2 * number)) / shrunk
    half = _Z / shrunk * math.sqrt(share * (1 - share) / number + (_Z / number / 2) ** 2)
    # At the ends both are the same but for rounding.
    low = 0.0 if hits == 0 else middle - half
    high = 1.0 if hits == number else middle + half
    return Estimate(share, low, high)


def mean_of_shares(first: Estimate, second: Estimate) -> Estimate:
    """The mean of the shares of two independent samples, such as the balanced accuracy.

    Their Wilson intervals are added by squares, as in method 10 of Newcombe: "Interval Estimation
    for the Difference between Independent Proportions", Statistics in Medicine 17, 1998.
    """
    mean = (first.value + second.value) / 2
    below = math.hypot(first.value - first.low, second.value - second.low) / 2
    above = math.hypot(first.high - first.value, second.high - second.value) / 2
    return Estimate(mean, mean - below, mean + above)


def wider(first: tuple[float, float], second: Estimate) -> Estimate:
    """The second estimate, with the wider of the intervals of both on either side."""
    return Estimate(second.value, min(first[0], second.low), max(first[1], second.high))
