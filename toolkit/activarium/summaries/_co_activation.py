"""CoActivation: how often two features fire in the same row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.results import Ranking
from activarium.rows import Rows
from activarium.summaries.base import State, Summary

SHOWN = 200
EXACT = 1 << 22  # rows whose coincidences a float32 product counts exactly (it could: 2^24)


class CoActivation(Summary):
    """Which features fire in the same rows?

    A feature fires where it exceeds the threshold. State, int64: `rows`, `pairs` (rows in which both fire, feature × feature;
    the diagonal is how often each fires).

    Attributes:
        settings: `threshold`, in model units.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__(threshold=threshold)

    def _bytes(self, width: int) -> int:
        return 16 * width * width

    def _of(self, values: Tensor, rows: Tensor | None) -> State:
        pairs = torch.zeros(values.shape[1], values.shape[1], dtype=torch.int64)
        for part in values.split(EXACT):
            fired = (part > self.settings["threshold"]).float()
            pairs += (fired.T @ fired).cpu().long()
        return {"rows": torch.tensor(len(values)), "pairs": pairs}

    def _join(self, into: State, other: State) -> None:
        for key in ("rows", "pairs"):
            into[key] = into[key] + other[key]

    # --- what it says

    @property
    def fires(self) -> Tensor:
        """Rows in which each feature fires."""
        return self.state["pairs"].diagonal()

    @property
    def overlap(self) -> Tensor:
        """Rows in which both fire / rows in which either does (Jaccard), feature × feature; NaN where neither ever does."""
        pairs, fires = self.state["pairs"].double(), self.fires.double()
        return pairs / (fires[:, None] + fires[None] - pairs)

    @property
    def lift(self) -> Tensor:
        """How much more often both fire than if they fired independently: 1 is chance; NaN where one never fires."""
        pairs, fires = self.state["pairs"].double(), self.fires.double()
        return pairs * self.rows / (fires[:, None] * fires[None])

    def result(self, rows: Rows | None = None) -> Ranking:
        """The pairs that overlap most."""
        self._require()
        first, second = np.triu_indices(self.width, 1)
        overlap = self.overlap.numpy()[first, second]
        order = np.argsort(-np.nan_to_num(overlap, nan=-1), kind="stable")[:SHOWN]
        a, b = first[order], second[order]
        columns = {"rows with both": self.state["pairs"].numpy()[a, b], "lift": self.lift.numpy()[a, b], "first": a, "second": b}
        names = tuple(f"{i} and {j}" for i, j in zip(a, b, strict=True))
        notes = {"rows": self.rows, "dead": int((self.fires == 0).sum()), **self.settings}
        return Ranking(names, overlap[order], columns, title=f"Features of {self.site} that fire together", unit="share", diagnostics=notes)
