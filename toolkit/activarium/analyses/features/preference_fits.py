"""Logistic regressions of a preference: one feature at a time with intervals that know of clusters, and all at once with an L1 penalty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS = 100
FAR = 30.0  # a coefficient (log-odds per standard deviation) beyond this means that the classes are separated


@dataclass(frozen=True)
class Effect:
    """One coefficient of a logistic regression.

    Attributes:
        value: Log-odds.
        error: Its standard error, with clusters of pairs kept together.
        chance: Two-sided p of the Wald test with that error.
        ratio_chance: p of the likelihood-ratio test, which takes pairs for independent.
    """

    value: float
    error: float
    chance: float
    ratio_chance: float


def likelihood(design: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> float:
    """Log-likelihood in nats, summed over pairs."""
    logits = design @ weights
    return float((answers * logits - np.logaddexp(0, logits)).sum())


def fitted(design: np.ndarray, answers: np.ndarray) -> np.ndarray | None:
    """Coefficients of largest likelihood (Newton's method), or None where the classes are separated and there are none."""
    weights = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        shares = _share(design @ weights)
        curvature = (design * (shares * (1 - shares))[:, None]).T @ design
        try:
            step = np.linalg.solve(curvature, design.T @ (answers - shares))
        except np.linalg.LinAlgError:
            return None
        weights = weights + step
        if np.abs(weights).max() > FAR:
            return None
        if np.abs(step).max() < 1e-10:
            return weights
    return None


def effect(design: np.ndarray, answers: np.ndarray, column: int, clusters: np.ndarray) -> Effect:
    """The coefficient of one column; NaN where it cannot be told."""
    from scipy.stats import chi2, norm

    weights, without = fitted(design, answers), fitted(np.delete(design, column, 1), answers)
    if weights is None or without is None:
        return Effect(*(float("nan"),) * 4)
    shares = _share(design @ weights)
    bread = np.linalg.inv((design * (shares * (1 - shares))[:, None]).T @ design)
    slopes = design * (answers - shares)[:, None]
    count = int(clusters.max()) + 1
    meat = np.zeros((count, design.shape[1]))
    np.add.at(meat, clusters, slopes)
    own = len(np.unique(clusters))
    variance = float((bread @ (meat.T @ meat) @ bread)[column, column]) * own / max(1, own - 1)
    if not variance > 0:  # too few pairs, or columns that say the same
        return Effect(*(float("nan"),) * 4)
    error = variance**0.5
    ratio = 2 * (likelihood(design, answers, weights) - likelihood(np.delete(design, column, 1), answers, without))
    chance = 2 * norm.sf(abs(weights[column]) / error)
    return Effect(float(weights[column]), error, float(chance), float(chi2.sf(max(ratio, 0), 1)))


def penalised(design: np.ndarray, answers: np.ndarray, penalty: float, free: int) -> np.ndarray:
    """Coefficients of least mean loss plus `penalty` times the sizes of all but the first `free` columns' coefficients.

    Each penalised coefficient is a difference of two numbers that cannot be negative, so that the optimiser (L-BFGS-B with bounds) meets
    a smooth function, and zeros are exact.
    """
    from scipy.optimize import minimize

    count, columns = design.shape
    doubled = np.concatenate([design, -design[:, free:]], 1)
    weight = np.r_[np.zeros(free), np.full(2 * (columns - free), penalty)]

    def loss(given: np.ndarray) -> tuple[float, np.ndarray]:
        logits = doubled @ given
        value = (np.logaddexp(0, logits) - answers * logits).mean() + weight @ given
        return float(value), doubled.T @ (_share(logits) - answers) / count + weight

    bounds = [(None, None)] * free + [(0, None)] * (2 * (columns - free))
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(loss, np.zeros(doubled.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    positive, negative = found[free:columns], found[columns:]
    return np.r_[found[:free], positive - negative]


def sparse_fit(design: np.ndarray, answers: np.ndarray, free: int, wanted: int) -> tuple[np.ndarray, float]:
    """The penalised fit with `wanted` coefficients that are not 0, found by bisecting the penalty; fewer where none has exactly so many."""
    count = design.shape[0]
    alone = fitted(design[:, :free], answers)
    start = np.zeros(free) if alone is None else alone
    slopes = design[:, free:].T @ (answers - _share(design[:, :free] @ start)) / count
    high = float(np.abs(slopes).max()) * 1.001 + 1e-12  # at this penalty all are 0
    low = high * 1e-4
    best, at = np.r_[start, np.zeros(design.shape[1] - free)], high
    for _ in range(30):
        middle = float(np.sqrt(low * high))
        found = penalised(design, answers, middle, free)
        kept = int((found[free:] != 0).sum())
        if kept <= wanted:
            best, at, high = found, middle, middle
        else:
            low = middle
        if kept == wanted:
            break
    return best, at


def _share(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(logits))
