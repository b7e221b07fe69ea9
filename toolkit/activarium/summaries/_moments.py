"""Moments: mean, spread, skewness, kurtosis and extremes of each feature, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from activarium.results import Grid
from activarium.rows import Rows
from activarium.summaries.base import CELLS, State, Summary, refuse_strange

QUANTITIES = ("mean", "std", "skewness", "kurtosis", "mean magnitude", "least", "largest")


class Moments(Summary):
    """What are mean, spread, skewness, kurtosis and extremes of each feature?

    State, per feature in float64: `mean`, `m2`, `m3`, `m4` (sums of powers of the distance from the mean), `magnitude` (sum
    of |x|), `least`, `largest`; and `rows`. Kurtosis is the plain fourth standardised moment: 3 for a Gaussian.

    Source:
        Chan, Golub & LeVeque 1983, Algorithms for Computing the Sample Variance; Pébay 2008, SAND2008-6212, equations
        1.5, 2.4 and 2.5 for the third and fourth moments of a union.
    """

    def __init__(self) -> None:
        super().__init__()

    def _of(self, values: Tensor, rows: Tensor | None) -> State:
        refuse_strange(values, f"Moments of {self.site or 'a site'}")
        names = ("mean", "m2", "m3", "m4", "magnitude")
        found = torch.empty(len(names), values.shape[1], dtype=torch.float64, device=values.device)
        step = max(1, CELLS // len(values))
        for start in range(0, values.shape[1], step):
            _powers(values[:, start : start + step], found[:, start : start + step])
        made = {name: row.clone() for name, row in zip(names, found.cpu(), strict=True)}
        # Two passes: torch finds either extreme several times as fast as both together.
        return {"rows": torch.tensor(len(values)), **made, "least": values.amin(0).double().cpu(), "largest": values.amax(0).double().cpu()}

    def _join(self, into: State, other: State) -> None:
        a, b = into, other
        n, m = float(a["rows"]), float(b["rows"])
        total, d = n + m, b["mean"] - a["mean"]
        square = d * d
        fourth = square * square * (n * m * (n * n - n * m + m * m) / total**3)
        fourth += 6 * square * (n * n * b["m2"] + m * m * a["m2"]) / total**2 + 4 * d * (n * b["m3"] - m * a["m3"]) / total
        third = square * d * (n * m * (n - m) / total**2) + 3 * d * (n * b["m2"] - m * a["m2"]) / total
        into["m4"] = a["m4"] + b["m4"] + fourth
        into["m3"] = a["m3"] + b["m3"] + third
        into["m2"] = a["m2"] + b["m2"] + square * (n * m / total)
        # Weighted from the larger side: the mean of equal means is that mean, to the bit.
        into["mean"] = a["mean"] + d * (m / total) if n >= m else b["mean"] - d * (n / total)
        into["magnitude"] = a["magnitude"] + b["magnitude"]
        into["least"], into["largest"] = torch.minimum(a["least"], b["least"]), torch.maximum(a["largest"], b["largest"])
        into["rows"] = a["rows"] + b["rows"]

    # --- what it says, each flat over features, float64

    @property
    def mean(self) -> Tensor:
        """Mean, in model units."""
        return self.state["mean"]

    @property
    def variance(self) -> Tensor:
        """Mean square distance from the mean (divided by the rows, not by one less)."""
        return self.state["m2"] / self.rows

    @property
    def skewness(self) -> Tensor:
        """Third standardised moment; NaN where nothing varies."""
        return self.state["m3"] / self.rows / self.variance**1.5

    @property
    def kurtosis(self) -> Tensor:
        """Fourth standardised moment, 3 for a Gaussian; NaN where nothing varies."""
        return self.state["m4"] / self.rows / self.variance**2

    @property
    def mean_square(self) -> Tensor:
        """Mean of x², as an RMS norm sees it."""
        return self.variance + self.mean**2

    @property
    def mean_magnitude(self) -> Tensor:
        """Mean of |x|."""
        return self.state["magnitude"] / self.rows

    def result(self, rows: Rows | None = None) -> Grid:
        """All of them per feature."""
        self._require()
        columns = [self.mean, self.variance.sqrt(), self.skewness, self.kurtosis, self.mean_magnitude]
        values = torch.stack([*columns, self.state["least"], self.state["largest"]])
        return Grid(
            self._shaped(values),
            ("quantity", *self.axes),
            {"quantity": QUANTITIES},
            title=f"Moments of each feature of {self.site}",
            unit="model units (skewness and kurtosis without)",
            diagnostics={"rows": self.rows},
        )


def _powers(values: Tensor, into: Tensor) -> None:
    """Mean, sums of the second to fourth power of the distance from it, and sum of magnitudes, of a few features."""
    numbers = values.double()
    torch.sum(numbers.abs(), 0, out=into[4])
    torch.mean(numbers, 0, out=into[0])
    distance = numbers - into[0]
    square = distance * distance
    torch.sum(square, 0, out=into[1])
    torch.sum(distance.mul_(square), 0, out=into[2])
    torch.sum(square.mul_(square), 0, out=into[3])
