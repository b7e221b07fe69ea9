"""Features that fire together: counted over rows that are drawn evenly, a few features against all others at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.dashboards.ranks import best
from activarium.dashboards.running import drawn

LEAST = 5  # rows in which two features must fire together before their ratio is looked at
HELD = 1 << 24  # pairs that are looked at a time


class SampledRows:
    """Rows drawn evenly, with all of their codes.

    Attributes:
        rows: How many rows were drawn so far.
    """

    def __init__(self, features: int, rows: int, wanted: int, seed: int) -> None:
        self.features, self.rows, self._seed = features, 0, seed
        self._below = min(1 << 32, (wanted << 32) // max(1, rows))
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, index: np.ndarray, codes: Any) -> None:
        """Keep those of the rows that are drawn."""
        kept = drawn(self._seed ^ 0x5EED, index).astype(np.uint64) < np.uint64(self._below)
        if not kept.any():
            return
        entry = kept[codes.rows.numpy()]
        active = codes.active.numpy()[kept]
        self._parts.append((active, codes.features.numpy()[entry], codes.values.float().numpy()[entry]))
        self.rows += len(active)

    def matrix(self) -> Any:
        """Codes `row feature` of the rows that were drawn, as scipy's compressed rows."""
        from scipy.sparse import csr_array

        parts = self._parts or [(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))]
        active, feature, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        return csr_array((value, feature, np.r_[0, active.cumsum()]), shape=(len(active), self.features))


def fired_together(sample: SampledRows, count: int) -> tuple[Tensor, Tensor]:
    """The features that each fires together with more often than chance, by pointwise mutual information.

    log of how often both fire over what their own frequencies make of it, in nats, over the rows drawn; only pairs that
    fire together in at least five of them, and more often than chance.

    Returns:
        Numbers `feature rank` (-1: none) and nats.
    """
    fired = sample.matrix()
    fired.data = np.ones_like(fired.data)
    fires = torch.from_numpy(np.asarray(fired.sum(0), np.float64))

    def score(both: Tensor, first: int) -> Tensor:
        ratio = both * sample.rows / (fires[first : first + len(both), None] * fires).clamp_min(1)
        told = torch.log(ratio.clamp_min(1e-300))
        return torch.where((both >= LEAST) & (told > 0), told, -torch.inf)

    return _ranked(fired, count, score)


def correlated(sample: SampledRows, count: int) -> tuple[Tensor, Tensor]:
    """The features whose codes go up and down with each one's most: Pearson's r over the rows drawn, zeros included.

    Returns:
        Numbers `feature rank` (-1: none) and r.
    """
    codes = sample.matrix().astype(np.float64)
    mean = torch.from_numpy(np.asarray(codes.sum(0))) / max(1, sample.rows)
    square = torch.from_numpy(np.asarray(codes.multiply(codes).sum(0))) / max(1, sample.rows)
    spread = (square - mean.square()).clamp_min(0).sqrt()

    def score(both: Tensor, first: int) -> Tensor:
        here = slice(first, first + len(both))
        scale = spread[here, None] * spread
        r = (both / max(1, sample.rows) - mean[here, None] * mean) / scale.clamp_min(1e-300)
        return torch.where(scale > 0, r, -torch.inf)

    return _ranked(codes, count, score)


def _ranked(codes: Any, count: int, score: Any) -> tuple[Tensor, Tensor]:
    width = codes.shape[1]
    across = codes.tocsc()
    numbers, figures = [torch.zeros(0, min(count, width), dtype=torch.int64)], [torch.zeros(0, min(count, width))]
    step = max(1, min(256, HELD // max(1, width)))
    for first in range(0, width, step):
        both = torch.from_numpy((across[:, first : first + step].T @ codes).toarray()).double()
        told = score(both, first)
        told[torch.arange(len(told)), first + torch.arange(len(told))] = -torch.inf  # itself
        number, figure = best(told.float(), count)
        numbers.append(number)
        figures.append(figure)
    return torch.cat(numbers), torch.cat(figures)
