"""How far a vector lies from what was seen: scores of novelty, each higher for what is farther."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Seen:
    """Vectors that count as known.

    Attributes:
        values: `example feature`, float64.
        classes: Number of the class of each, from 0.
    """

    values: np.ndarray
    classes: np.ndarray

    def means(self) -> np.ndarray:
        """Mean of each class, `class feature`."""
        return np.stack([self.values[self.classes == c].mean(0) for c in range(int(self.classes.max()) + 1)])


def maximum_probability(logits: np.ndarray) -> np.ndarray:
    """Minus the largest probability (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return -np.exp(logits.max(1) - _log_sum(logits))


def energy(logits: np.ndarray) -> np.ndarray:
    """Minus the logarithm of the summed exponentials, temperature 1 (Liu et al. 2020, arXiv:2010.03759)."""
    return -_log_sum(logits)


def mahalanobis(seen: Seen, values: np.ndarray) -> np.ndarray:
    """Squared distance from the nearest class mean under one covariance of all classes (Lee et al. 2018, arXiv:1807.03888).

    The covariance is shrunk to a multiple of the identity (Ledoit & Wolf 2004), for there are often fewer examples than features;
    it is never formed, so wide dictionaries cost examples × features.
    """
    means = seen.means()
    inside = seen.values - means[seen.classes]
    _, sizes, along = np.linalg.svd(inside, full_matrices=False)
    count, width = inside.shape
    spread = sizes**2 / count
    shrink, level = shrinkage(inside, spread)
    floor = max(shrink, np.finfo(float).eps) * max(level, 1e-12)
    alone = 1 / ((1 - shrink) * spread + floor)
    apart = values[:, None] - means[None]
    total = (apart**2).sum(2)
    inner = (apart @ along.T) ** 2
    outer = np.maximum(total - inner.sum(2), 0) / floor if count < width else np.zeros_like(total)  # no direction is left over
    return (inner @ alone + outer).min(1)


def shrinkage(centred: np.ndarray, spread: np.ndarray) -> tuple[float, float]:
    """Ledoit and Wolf's weight of the identity, and the mean variance, from the eigenvalues of the covariance.

    sklearn's function gives the same weight; it forms products of features by features.
    """
    count, width = centred.shape
    level = float(spread.sum()) / width
    off = float((spread**2).sum()) - width * level**2
    noise = (float(((centred**2).sum(1) ** 2).sum()) / count - float((spread**2).sum())) / count
    return (min(noise, off) / off if off > 0 else 1.0), level


def nearest(seen: Seen, values: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance to the k-th nearest known vector, all of length 1 (Sun et al. 2022, arXiv:2204.06507)."""
    one, other = _unit(values), _unit(seen.values)
    apart = np.sqrt(np.maximum((one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T, 0))
    return np.partition(apart, neighbours - 1, axis=1)[:, neighbours - 1]


def profile_spearman(seen: Seen, values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Minus the rank correlation with the mean vector of the predicted class; equal values share their mean rank."""
    from scipy.stats import rankdata

    one, other = (_unit(_centred(rankdata(v, axis=1))) for v in (values, seen.means()))
    return -(one * other[predicted]).sum(1)


def probe_logits(seen: Seen, values: np.ndarray, seed: int) -> np.ndarray:
    """Logits of a logistic regression that learnt the known classes, on standardised vectors, `example class`."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = seen.values.mean(0), seen.values.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    probe = LogisticRegression(C=0.1, max_iter=2000, random_state=seed).fit((seen.values - mean) / deviation, seen.classes)
    logits = probe.decision_function((values - mean) / deviation)
    return np.stack([np.zeros(len(logits)), logits], 1) if logits.ndim == 1 else logits


def _log_sum(logits: np.ndarray) -> np.ndarray:
    from scipy.special import logsumexp

    return np.asarray(logsumexp(logits, axis=1))


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(1, keepdims=True)


def _unit(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1.0)
