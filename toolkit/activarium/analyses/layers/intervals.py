"""Means over rows with intervals over sequences, and curves made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from activarium.maths import bootstrap_interval
from activarium.results import Series


class Intervals:
    """Mean and interval of a ratio of sums, `(sequence, block)`, always with the same draws of sequences."""

    def __init__(self, confidence: float, resamples: int, seed: int) -> None:
        self.options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}

    def __call__(self, above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = np.broadcast_to(below, above.shape)
        total = below.sum(0)
        some = total > 0  # a kind whose rows are all zero vectors has nothing to draw
        ends = np.full((2, len(total)), np.nan)
        if some.any():
            ends[:, some] = bootstrap_interval(above[:, some], below[:, some], **self.options)[:2]
        return np.divide(above.sum(0), total, out=np.full(len(total), np.nan), where=some), ends

    def series(self, numbers: np.ndarray, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, unit: str) -> Series:
        """A curve with its band for each pair of sums."""
        made = {name: self(*pair) for name, pair in curves.items()}
        values, bands = {n: m[0] for n, m in made.items()}, {n: m[1] for n, m in made.items()}
        return Series(numbers, values, "block", bands, title=title, unit=unit)

    def difference(self, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """One ratio of sums minus another, and its interval with the same draws of sequences for both."""
        above = np.concatenate([one[0], other[0]], 1)
        below = np.concatenate([np.broadcast_to(b, a.shape) for a, b in (one, other)], 1)
        means = np.split(above.sum(0) / below.sum(0), 2)
        drawn = np.split(bootstrap_interval(above, below, **self.options)[2], 2, axis=1)
        tail = (1 - self.options["confidence"]) / 2
        apart = drawn[0] - drawn[1]
        ends = np.nanquantile(apart, [tail, 1 - tail], axis=0) if len(apart) else np.full((2, above.shape[1] // 2), np.nan)
        return means[0] - means[1], ends
