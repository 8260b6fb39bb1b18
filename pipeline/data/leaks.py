"""Leaks: what do the properties of the files alone, without a look at any face, tell of the class?

A property is rated by the share of fakes among the other pictures with about the same value. As a
score this finds any relation, also one that neither rises nor falls.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import TargetEncoder

from pipeline.common.labels import FAKE, REAL
from pipeline.data.dataset import Sample

_BINS = 20  # at most, for a property that is a number
_FEWEST = 10  # pictures in a bin
_FOLDS = 5


def measure_leaks(samples: Sequence[Sample], properties: Sequence[dict]) -> dict[str, dict]:
    """With which AUC each property of the files tells real from fake.

    `properties` has for each sample the same names → number, text, or None where it has no such
    property. The result has `overall` and, in `by_generator`, each kind of fake against the real
    pictures of the same name, or else against all real ones: property → AUC from 0.5 (tells
    nothing) to 1 (tells all), None where fewer than two pictures of a class have the property.
    """
    labels = np.array([sample.label for sample in samples])
    generators = np.array([sample.generator for sample in samples])
    leaks: dict = {"overall": {}, "by_generator": {}}
    kinds = sorted({sample.generator for sample in samples if sample.label == FAKE})
    for name in properties[0] if properties else ():
        values = np.array([of_picture[name] for of_picture in properties], dtype=object)
        evidence = share_of_fakes(labels, values)
        leaks["overall"][name] = _auc(labels, evidence)
        for kind in kinds if len(kinds) > 1 else ():
            of_kind = generators == kind
            if (labels[of_kind] == REAL).any():  # its own real pictures: what tells these two?
                chosen = of_kind
                score = share_of_fakes(labels[chosen], values[chosen])
            else:  # a size, say, that other real pictures have too gives no fake away
                chosen = of_kind | (labels == REAL)
                score = evidence[chosen]
            auc = _auc(labels[chosen], score)
            leaks["by_generator"].setdefault(kind, {})[name] = auc
    return leaks


def share_of_fakes(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) for each picture the share of fakes among others with the same or about the same value.

    labels (N,) of 0 real and 1 fake; values (N,) of numbers, or texts, or None. Cross-fitted: a
    picture's own label never counts for its score, nor do those of its fold (Micci-Barreca: "A
    Preprocessing Scheme for High-Cardinality Categorical Attributes", SIGKDD Explorations 3, 2001;
    scikit-learn's TargetEncoder). Counted in sample, pure chance would look like an AUC of 0.67.

    NaN where the value is None: a file that is no JPEG has no quality, and its format tells on it
    already. All NaN where fewer than two pictures of a class have a value.
    """
    shares = np.full(len(values), np.nan)
    known = np.flatnonzero([value is not None for value in values])
    smaller_class = np.bincount(labels[known], minlength=2).min()
    if smaller_class < 2:
        return shares
    folds = StratifiedKFold(min(_FOLDS, smaller_class), shuffle=True, random_state=0)
    encoder = TargetEncoder(target_type="binary", cv=folds)
    shares[known] = encoder.fit_transform(_groups(values[known])[:, None], labels[known])[:, 0]
    return shares


def _groups(values: np.ndarray) -> np.ndarray:
    """(N,) a number for each value, the same for the same; many different ones share bins."""
    plain = values.tolist()
    if not isinstance(plain[0], str) and len(set(plain)) > len(plain) / _FEWEST:
        bins = min(_BINS, max(2, len(plain) // _FEWEST))
        edges = np.quantile(plain, np.linspace(0, 1, bins + 1)[1:-1])
        return np.digitize(plain, edges, right=True)
    return np.unique(plain, return_inverse=True)[1]


def _auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    known = ~np.isnan(scores)
    if len(set(labels[known].tolist())) < 2:
        return None
    return round(max(0.5, float(roc_auc_score(labels[known], scores[known]))), 4)
