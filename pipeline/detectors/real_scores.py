"""How real faces score: which share of them scores as high as the face in question.

A fake_probability says how likely a fake is among as many fakes as were validated with. What share
of real faces scores as high says the same whatever the share of fakes is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SECTION = "real_scores"  # of detector.json, and of what it holds of two as one
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_NEAREST = 1e-15  # to 0 and 1, of a probability that becomes a logit


@dataclass(frozen=True)
class RealScores:
    """What real validation faces reach.

    `faces` were scored, each in so many `versions`: as it is and, where the threshold rule asks for
    them, recompressed and shrunk. `reached` holds the shares of all these, which fall, and with
    each the fake_probability that so large a share reaches or exceeds.
    """

    faces: int
    versions: int
    reached: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, versions: Sequence[np.ndarray]) -> "RealScores":
        """Those of fake_probabilities, of each version (R,). A share that is less than one of them
        all is left out."""
        scores = np.sort(np.concatenate(versions))[::-1]
        shares = [share for share in SHARES if share * len(scores) >= 1] or [SHARES[0]]
        places = [int(np.ceil(share * len(scores) - 1e-9)) - 1 for share in shares]
        reached = tuple(zip(shares, scores[places].tolist(), strict=True))
        return cls(len(versions[0]), len(versions), reached)

    @property
    def smallest(self) -> float:
        """The smallest share that is known, 0…1."""
        return self.reached[-1][0]

    @property
    def largest(self) -> float:
        """The largest share that is known, 0…1."""
        return self.reached[0][0]

    def share(self, fake_probability: float) -> float:
        """The share of real faces that score at least as high, from `smallest` to `largest`, at
        which it ends. Between two that are known it is interpolated: logits, and logarithms of the
        shares."""
        shares, probabilities = np.array(self.reached).T
        if fake_probability >= probabilities[-1]:
            return self.smallest
        if fake_probability <= probabilities[0]:
            return self.largest
        logit = _logit(np.float64(fake_probability))
        return float(np.exp(np.interp(logit, _logit(probabilities), np.log(shares))))

    def as_json(self) -> dict:
        """The section of detector.json."""
        return {"faces": self.faces, "versions": self.versions, "reached": list(self.reached)}


def real_scores_in(section: dict) -> RealScores | None:
    """What a detector.json, or its section on two as one, says; None where it says nothing, as
    those of earlier versions. Raises KeyError, TypeError or ValueError where it is malformed."""
    if SECTION not in section:
        return None
    found = section[SECTION]
    reached = tuple((float(share), float(probability)) for share, probability in found["reached"])
    shares, probabilities = np.array(reached).T
    in_range = np.all((shares > 0) & (shares <= 1) & (probabilities >= 0) & (probabilities <= 1))
    if not in_range or np.any(np.diff(shares) >= 0) or np.any(np.diff(probabilities) < 0):
        raise ValueError(f"{SECTION}: shares must fall while probabilities rise, all in 0 to 1")
    return RealScores(int(found["faces"]), int(found["versions"]), reached)


def _logit(probabilities: np.ndarray) -> np.ndarray:
    inside = np.clip(probabilities, _NEAREST, 1 - _NEAREST)
    return np.log(inside) - np.log1p(-inside)
