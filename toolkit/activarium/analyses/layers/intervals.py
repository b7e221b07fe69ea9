"""Means over rows with intervals over sequences, and curves made of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from activarium.maths import bootstrap_interval
from activarium.results import Series


class Intervals:
    """Mean and interval of a ratio of sums, `(sequence, block)`, always with the same draws of sequences."""

    def __init__(self, confidence: float, resamples: int, seed: int) -> None:
        self.options = {"confidence": confidence, "resamples": resamples, "seed": seed}

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
