"""Probes: a logistic regression on some columns of numbers, which columns it is given, and how sure a share of right answers is."""

from __future__ import annotations

from typing import Any

import numpy as np

from activarium.maths import bootstrap_interval


def difference_of_means(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """`(feature,)`: mean over the positive rows less that over the others."""
    return values[positive].mean(0) - values[~positive].mean(0)


def widest(differences: np.ndarray, count: int) -> np.ndarray:
    """The `count` columns of largest size, the largest first; of equal ones the lower. Columns of difference 0 tell nothing and stay out."""
    order = np.argsort(-np.abs(differences), kind="stable")[:count]
    return order[differences[order] != 0]


class Probe:
    """A logistic regression with an L2 penalty of 1 on its weights: those of standardised columns, or of the columns as they are.

    Attributes:
        weights: One per column, in the units of the columns.
        bias: Its constant.
    """

    def __init__(self, values: np.ndarray, positive: np.ndarray, *, balanced: bool = False, standardised: bool = True) -> None:
        from sklearn.linear_model import LogisticRegression

        mean, deviation = values.mean(0), values.std(0)
        scale = np.where((deviation > 0) & standardised, deviation, 1)
        if values.shape[1] == 0:  # no column tells anything: the larger class
            self.weights, self.bias = np.zeros(0), 1.0 if positive.mean() >= 0.5 else -1.0
            return
        fitted = LogisticRegression(max_iter=2000, class_weight="balanced" if balanced else None).fit((values - mean) / scale, positive)
        self.weights = fitted.coef_[0] / scale
        self.bias = float(fitted.intercept_[0] - self.weights @ mean)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Boolean per row: does it say yes?"""
        return values @ self.weights + self.bias > 0


def f1_score(said: np.ndarray, positive: np.ndarray) -> float:
    """2 · both / (said + positive), booleans per row; 0 where there is neither."""
    below = said.sum() + positive.sum()
    return float(2 * (said & positive).sum() / below) if below else 0.0


def balanced_halves(positive: np.ndarray, share: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to test on: as many of each class, `share` of them to test; the rest of the larger class is left out."""
    train, test = [], []
    least = min(int(positive.sum()), int((~positive).sum()))
    held = max(1, round(share * least))
    for side in (True, False):
        rows = generator.permutation(np.flatnonzero(positive == side))[:least]
        test.append(rows[:held])
        train.append(rows[held:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def share_with_interval(right: np.ndarray, asked: np.ndarray, draw: dict[str, Any]) -> tuple[float, float, float]:
    """Right answers over questions, summed over examples, with an interval.

    Args:
        right: Right answers of each example.
        asked: Questions about each example.
        draw: `confidence`, `resamples` and `seed`.

    Returns:
        Share, and ends: a bootstrap over examples, or Wilson's (which does not close up at 0 and 1) where no example is asked twice or all
        have the same share.
    """
    right, asked = right[asked > 0], asked[asked > 0]
    share = float(right.sum() / asked.sum())
    if asked.max() <= 1 or len(np.unique(right / asked)) == 1:
        from scipy.stats import binomtest

        yes = right.sum() if asked.max() <= 1 else share * len(asked)
        ends = binomtest(round(float(yes)), len(asked)).proportion_ci(draw["confidence"], method="wilson")
        return share, float(ends.low), float(ends.high)
    low, high, _ = bootstrap_interval(right[:, None].astype(float), asked[:, None].astype(float), **draw)
    return share, float(low[0]), float(high[0])
