"""Exact quantiles of more numbers than fit in memory: a histogram first, then the numbers of the few bins that matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.summaries import Magnitudes


class ExactQuantiles:
    """Show it all numbers with `count`, then all again with `refine`; whole numbers and order statistics, so any order does.

    The lower convention: the smallest number that at least this share of them does not exceed.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares, self.bins = shares, Magnitudes()
        self._held: dict[tuple[float, float], list[Tensor]] = {}

    def count(self, numbers: Tensor) -> None:
        """First pass: numbers from 0 up, any shape."""
        self.bins.update(Activations(numbers.reshape(-1, 1).float(), "row feature"))

    def refine(self, numbers: Tensor) -> None:
        """Second pass over the same numbers."""
        flat = numbers.reshape(-1)
        rounded = flat.float()  # as the bins saw them
        for low, high in {self._bin(share)[:2] for share in self.shares}:
            if low > 0:
                self._held.setdefault((low, high), []).append(flat[(rounded >= low) & (rounded < high)])

    def answers(self) -> list[float]:
        """One number per share."""
        return [self._answer(share) for share in self.shares]

    def _answer(self, share: float) -> float:
        low, high, rank = self._bin(share)
        return 0.0 if low == 0 else float(torch.cat(self._held[low, high]).kthvalue(rank).values)  # the first bin holds the zeros

    def _bin(self, share: float) -> tuple[float, float, int]:
        """Lower and upper edge of the bin that holds this quantile, and its rank in there, from 1."""
        reached = self.bins.counts.cumsum()
        # A product of floats may land just above a whole number: 0.1 * 30 asks for the third value, not the fourth.
        wanted = max(1, int(np.ceil(share * int(reached[-1]) * (1 - 1e-15))))
        at = int(np.searchsorted(reached, wanted))
        edges = self.bins.edges
        return float(edges[at]), float(edges[at + 1]), wanted - (int(reached[at - 1]) if at else 0)
