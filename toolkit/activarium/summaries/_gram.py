"""Gram: products of all pairs of features, for covariance, principal directions and effective rank."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.results import Series
from activarium.rows import Rows
from activarium.summaries.base import State, Summary, refuse_strange


class Gram(Summary):
    """In how many directions does a site vary?

    State, float64: `gram` (sum of x xᵀ over rows, feature × feature), `total` (sum of x); and `rows`. One massive activation
    alone draws every measure of rank to one: compare with and without such features (`without=`).

    Source:
        Effective rank: Roy & Vetterli 2007, The effective rank: a measure of effective dimensionality, EUSIPCO.
    """

    def __init__(self) -> None:
        super().__init__()

    def _bytes(self, width: int) -> int:
        return 16 * width * width  # the state, and the batch's own before they are added

    def _of(self, values: Tensor, rows: Tensor | None) -> State:
        refuse_strange(values, f"Gram of {self.site or 'a site'}")
        numbers = values.double()
        return {"rows": torch.tensor(len(values)), "total": numbers.sum(0).cpu(), "gram": (numbers.T @ numbers).cpu()}

    def _join(self, into: State, other: State) -> None:
        for key in ("rows", "total", "gram"):
            into[key] = into[key] + other[key]

    # --- what it says

    def covariance(self, without: list[int] | None = None) -> Tensor:
        """Covariance of the features (divided by the rows), less some of them."""
        self._require()
        mean = self.state["total"] / self.rows
        found = self.state["gram"] / self.rows - mean[:, None] * mean[None]
        keep = [i for i in range(self.width) if i not in set(without or ())]
        return found[keep][:, keep]

    def spectrum(self, without: list[int] | None = None) -> np.ndarray:
        """Eigenvalues of the covariance, largest first; rounding below zero is cut."""
        return torch.linalg.eigvalsh(self.covariance(without)).flip(0).clamp_min(0).numpy()

    def effective_rank(self, without: list[int] | None = None) -> float:
        """Exponential of the entropy of the singular values' shares, over centred rows; NaN where nothing varies."""
        sizes = np.sqrt(self.spectrum(without))
        share = sizes[sizes > 0] / sizes.sum() if sizes.sum() else np.empty(0)
        return float(np.exp(-(share * np.log(share)).sum())) if len(share) else float("nan")

    def participation_ratio(self, without: list[int] | None = None) -> float:
        """(tr C)² / tr C²: how many directions share the variance evenly; NaN where nothing varies."""
        found = self.spectrum(without)
        return float(found.sum() ** 2 / (found**2).sum()) if found.sum() else float("nan")

    def result(self, rows: Rows | None = None) -> Series:
        """Share of the variance that the first directions hold."""
        found = self.spectrum()
        share = found.cumsum() / found.sum() if found.sum() else np.full(len(found), np.nan)
        notes = {"effective rank": self.effective_rank(), "participation ratio": self.participation_ratio()}
        return Series(
            np.arange(1, len(found) + 1),
            {"share of variance": share},
            "directions",
            title=f"Variance of {self.site} in its principal directions",
            unit="share",
            diagnostics={"rows": self.rows, **notes, "first direction": float(share[0])},
        )
