"""Linear prediction from rows by ridge regression: normal equations summed in float64, a piece of the rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Linear:
    """x ↦ x W + b in float64, `row d_in` to `row output`.

    Attributes:
        weight: `d_in output`.
        bias: `output`.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.double() @ self.weight.to(x.device) + self.bias.to(x.device)

    def columns(self, chosen: slice) -> Linear:
        """The prediction of some outputs alone."""
        return Linear(self.weight[:, chosen], self.bias[chosen])


class Ridge:
    """Sums from which the best linear prediction follows; x is summed around a first guess of its mean."""

    def __init__(self, width: int, outputs: int) -> None:
        self.rows = 0
        self._guess: Tensor | None = None
        self._x, self._y = torch.zeros(width, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        self._xx = torch.zeros(width, width, dtype=torch.float64)
        self._xy = torch.zeros(width, outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """More rows `row d_in` with what should be predicted of them, `row output`."""
        x, y = x.double().cpu(), y.double().cpu()
        if self._guess is None:
            self._guess = x.mean(0)
        x = x - self._guess
        self.rows += len(x)
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._xx += x.T @ x
        self._xy += x.T @ y

    def solved(self, ridge: float) -> Linear:
        """The prediction with the least squared error and a penalty on its weights: `ridge` times the mean variance of x.

        Args:
            ridge: Above 0, so that directions in which x does not vary are given no weight.
        """
        assert self._guess is not None
        mean, wanted = self._x / self.rows, self._y / self.rows
        square = self._xx - self.rows * mean.outer(mean)
        cross = self._xy - self.rows * mean.outer(wanted)
        width = len(square)
        penalty = ridge * float(square.trace()) / width
        factor = torch.linalg.cholesky(square + max(penalty, 1e-300) * torch.eye(width, dtype=torch.float64))
        weight = torch.cholesky_solve(cross, factor)
        return Linear(weight, wanted - (mean + self._guess) @ weight)
