"""Sums of squares about a mean in one pass, kept apart by groups of examples so that they can be drawn again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.layer_sites import examples_of
from activarium.dictionaries import RowSource

GROUPS = 256  # beyond so many examples, several are drawn together: memory stays flat


class Spread:
    """Rows `row …` summed in float64 around a first guess of their mean, so that a large mean takes no digits away.

    Attributes:
        rows: How many rows there are in each group.
    """

    def __init__(self, width: int, groups: int) -> None:
        self.rows = torch.zeros(groups, dtype=torch.float64)
        self._guess: Tensor | None = None
        self._sums = torch.zeros(groups, width, dtype=torch.float64)
        self._sizes = torch.zeros(groups, dtype=torch.float64)
        self._squares = torch.zeros(width, dtype=torch.float64)

    def add(self, values: Tensor, owner: Tensor) -> None:
        """More rows, `row width`, and the group of each."""
        wide = values.double().cpu()
        if self._guess is None:
            self._guess = wide.mean(0)
        apart = wide - self._guess
        self.rows.index_add_(0, owner, torch.ones(len(owner), dtype=torch.float64))
        self._sums.index_add_(0, owner, apart)
        self._sizes.index_add_(0, owner, apart.square().sum(1))
        self._squares += apart.square().sum(0)

    @property
    def _shift(self) -> Tensor:
        return self._sums.sum(0) / self.rows.sum()

    @property
    def mean(self) -> Tensor:
        """Of all rows, `width`."""
        assert self._guess is not None
        return self._guess + self._shift

    def about_mean(self) -> np.ndarray:
        """Sum over a group's rows of ‖row − mean of all rows‖², `group`."""
        shift = self._shift
        return (self._sizes - 2 * self._sums @ shift + self.rows * shift.square().sum()).clamp_min(0).numpy()

    def by_number(self) -> np.ndarray:
        """Sum over all rows of (value − mean)², for each number of a row, `width`."""
        return (self._squares - self.rows.sum() * self._shift.square()).clamp_min(0).numpy()


def groups_of(source: RowSource) -> np.ndarray:
    """The group of each row of a recording, from 0: its example, or several examples together where there are many."""
    return np.unique(examples_of(source.inputs), return_inverse=True)[1] % GROUPS
