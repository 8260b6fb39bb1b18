"""Logistic regression on features that may be too many for the memory, by L-BFGS.

Several problems that share their features, and differ in how much each picture counts, are solved
at once: a matrix of features is read once a step for all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

_ROWS = 2048  # that are float32 at a time


@dataclass(frozen=True)
class Views:
    """What is fitted: views (N, D) of the same N pictures, in any kind of float, their labels (N,),
    and how much each picture counts in each of K problems, (N, K)."""

    views: list[np.ndarray]
    labels: np.ndarray
    weights: np.ndarray

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Parts: features (n, D), labels (n, 1), shares of the loss (n, K)."""
        weights = torch.from_numpy(self.weights.astype(np.float32))
        labels = torch.from_numpy(self.labels.astype(np.float32))[:, None]
        share = weights / (weights.sum(0) * len(self.views))
        for view in self.views:
            for number, part in enumerate(parts(view)):
                rows = slice(number * _ROWS, number * _ROWS + len(part))
                yield part, labels[rows], share[rows]


def parts(features: np.ndarray) -> Iterator[torch.Tensor]:
    """(N, D) of any float, in parts, as float32."""
    for first in range(0, len(features), _ROWS):
        yield torch.from_numpy(features[first : first + _ROWS].astype(np.float32, copy=False))


def fit(head: nn.Linear, shown: Views, penalty: float, steps: int = 100) -> float:
    """Put the weights of least loss into the head, which has K outputs; return that loss, without
    the penalty, summed over the problems.

    The penalty is `penalty` times the squared distance of the weights from what they were, on the
    scale of standardized features. `steps` is how many are taken at most.
    """
    # In double precision: rounded as float32 is, the loss misleads the search along a line.
    weight, bias = head.weight.detach().cpu().double().T, head.bias.detach().cpu().double()
    mean, deviation = (value[:, None] for value in _moments(shown))
    held = weight * deviation
    learned = torch.cat([held, (bias + (weight * mean).sum(0))[None]]).requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [learned], max_iter=steps, history_size=10, line_search_fn="strong_wolfe"
    )
    loss = 0.0

    def closure() -> torch.Tensor:
        nonlocal loss
        loss = 0.0
        scaled = learned[:-1].detach() / deviation
        slope = torch.zeros_like(learned)
        constant = learned[-1].detach() - (scaled * mean).sum(0)
        for features, labels, share in shown:
            features = features.double()
            logits = features @ scaled + constant
            labels = labels.double().expand_as(logits)
            each = binary_cross_entropy_with_logits(logits, labels, reduction="none")
            loss += float((share * each).sum())
            error = share * (logits.sigmoid() - labels)
            slope[:-1] += (features.T @ error - mean * error.sum(0)) / deviation
            slope[-1] += error.sum(0)
        away = learned[:-1].detach() - held
        slope[:-1] += 2 * penalty * away
        learned.grad = slope
        return torch.tensor(loss, dtype=torch.float64) + penalty * away.square().sum()

    optimizer.step(closure)
    closure()  # the last one may have been a step that was not taken
    with torch.no_grad():
        scaled = learned[:-1] / deviation
        head.weight.copy_(scaled.T)
        head.bias.copy_(learned[-1] - (scaled * mean).sum(0))
    return loss


def _moments(shown: Views) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature, (D,) both in double precision."""
    count, total, squares = 0, 0.0, 0.0
    for features, *_ in shown:
        count += len(features)
        total = total + features.double().sum(0)
        squares = squares + features.double().square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean, deviation + 1e-6
