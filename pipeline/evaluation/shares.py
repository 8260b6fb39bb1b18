"""The intervals of shares, of k of n: Wilson's, which hold also where none or all are hit."""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest


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
    interval = binomtest(hits, number).proportion_ci(0.95, method="wilson")
    return Estimate(hits / number, float(interval.low), float(interval.high))


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
