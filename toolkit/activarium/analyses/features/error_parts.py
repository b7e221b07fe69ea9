"""A dictionary's error in two parts: what a linear map predicts of it from the rows, and the rest; fitted on one half, measured on the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.ridge import Linear, Ridge
from activarium.analyses.features.spread import Spread
from activarium.dictionaries import FeatureDictionary


@dataclass(frozen=True, eq=False)
class Parts:
    """The error of some rows.

    Attributes:
        error: e = x − x̂ (target − x̂ for a transcoder), `row d_out`, float64.
        linear: ê, what is predicted of it.
        norm: Predicted ‖e‖², `(row,)`.
    """

    error: Tensor
    linear: Tensor
    norm: Tensor

    @property
    def nonlinear(self) -> Tensor:
        """What is left: n = e − ê."""
        return self.error - self.linear


class ErrorFit:
    """The linear part of one dictionary's error; a second fit to errors of other rows says what would be found by chance."""

    def __init__(self, dictionary: FeatureDictionary) -> None:
        self.dictionary, self.width = dictionary, dictionary.d_out
        self._sums = Ridge(dictionary.d_in, 2 * self.width + 2)
        self._fitted: Linear | None = None

    @torch.no_grad()
    def errors(self, x: Tensor, y: Tensor) -> Tensor:
        """What the dictionary leaves of rows, `row d_out` in float64."""
        made = self.dictionary.forward(x.to(self.dictionary.directions.device))
        return y.double().cpu() - made.double().cpu()

    def add(self, x: Tensor, error: Tensor, generator: torch.Generator) -> None:
        """Rows of the half that is fitted to."""
        targets = torch.cat([error, error.square().sum(1, keepdim=True)], 1)
        self._sums.add(x, torch.cat([targets, targets[torch.randperm(len(x), generator=generator)]], 1))

    def fit(self, ridge: float) -> None:
        """Solve for the linear parts."""
        self._fitted = self._sums.solved(ridge)

    @property
    def linear(self) -> Linear:
        """The map from x to ê."""
        assert self._fitted is not None
        return self._fitted.columns(slice(self.width))

    def parts(self, x: Tensor, error: Tensor, *, by_chance: bool = False) -> Parts:
        """The error of rows in its parts, or in those that the fit to other rows' errors makes."""
        assert self._fitted is not None
        first = (self.width + 1) * by_chance
        found = self._fitted.columns(slice(first, first + self.width + 1))(x.cpu())
        return Parts(error, found[:, : self.width], found[:, self.width])


class Held:
    """Sums over the rows that nothing was fitted to, by group of examples."""

    def __init__(self, width: int, groups: int) -> None:
        self.rows, self.errors, self.norms = Spread(width, groups), Spread(width, groups), Spread(1, groups)
        self.sizes = {name: np.zeros(groups) for name in ("error", "linear", "nonlinear", "norm left")}
        self._by_number = np.zeros(width)

    def add(self, y: Tensor, parts: Parts, owner: np.ndarray) -> None:
        """More rows: what should be written, the parts of its error, and the group of each."""
        place, norm = torch.as_tensor(owner), parts.error.square().sum(1)
        self.rows.add(y, place)
        self.errors.add(parts.error, place)
        self.norms.add(norm[:, None], place)
        squares = {
            "error": norm,
            "linear": parts.linear.square().sum(1),
            "nonlinear": parts.nonlinear.square().sum(1),
            "norm left": (norm - parts.norm).square(),
        }
        for name, values in squares.items():
            self.sizes[name] += np.bincount(owner, values.numpy(), len(self.sizes[name]))
        self._by_number += parts.nonlinear.square().sum(0).numpy()

    def mean_explained(self) -> float:
        """R² of each number of the error, averaged without weights; numbers whose error never varies are left out."""
        varies = self.errors.by_number()
        some = varies > 1e-12 * max(varies.max(), 1e-300)
        return float((1 - self._by_number[some] / varies[some]).mean()) if some.any() else float("nan")
