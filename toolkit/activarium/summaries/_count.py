"""Count: how often each feature is not exactly zero, in whole numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.results import Grid
from activarium.rows import Rows
from activarium.summaries.base import State, Summary


class Count(Summary):
    """How often is each feature not exactly zero?

    All state is int64: a counter in the activations' own type would stop at 256 (bfloat16) or at 16 777 216 (float32).
    -0.0 equals zero and is not counted. NaN differs from zero and would be: it is counted apart, and left to the reader.

    State: `rows`, `fires` (per feature), `histogram` (rows with exactly 0, 1, … features that are not zero),
    `sequences` (per example: its number, its nonzero numbers, its rows), `negative`, `nan`, `infinite`.
    """

    needs_rows = True

    def __init__(self) -> None:
        super().__init__()

    def _bytes(self, width: int) -> int:
        return 16 * width

    def _of(self, values: Tensor, rows: Tensor | None) -> State:
        assert rows is not None
        fired = values != 0
        each = fired.sum(1, dtype=torch.int64).cpu()
        example, at = rows[:, 0].unique(return_inverse=True)
        both = torch.zeros(len(example), 2, dtype=torch.int64).index_add_(0, at, torch.stack([each, torch.ones_like(each)], 1))
        strange = 0 if bool(values.sum(dtype=torch.float64).isfinite()) else 1
        counts = {"negative": values < 0} | ({"nan": values.isnan(), "infinite": values.isinf()} if strange else {})
        whole = {k: counts[k].sum().cpu() if k in counts else torch.tensor(0) for k in ("negative", "nan", "infinite")}
        return {
            "rows": torch.tensor(len(values)),
            "fires": fired.sum(0, dtype=torch.int64).cpu(),
            "histogram": torch.bincount(each, minlength=values.shape[1] + 1),
            "sequences": torch.cat([example[:, None], both], 1),
            **whole,
        }

    def _join(self, into: State, other: State) -> None:
        for key, value in other.items():
            if key != "sequences":
                into[key] = into[key] + value
        both = torch.cat([into["sequences"], other["sequences"]])
        example, at = both[:, 0].unique(return_inverse=True)
        sums = torch.zeros(len(example), 2, dtype=torch.int64).index_add_(0, at, both[:, 1:])
        into["sequences"] = torch.cat([example[:, None], sums], 1)

    # --- what it says

    @property
    def fires(self) -> np.ndarray:
        """Rows in which each feature is not zero, flat."""
        return self.state["fires"].numpy()

    @property
    def histogram(self) -> np.ndarray:
        """Rows that have exactly 0, 1, … nonzero features."""
        return self.state["histogram"].numpy()

    @property
    def per_sequence(self) -> np.ndarray:
        """Nonzero numbers and rows of each sequence, `(sequence, 2)`, in the order of the example numbers."""
        return self.state["sequences"][:, 1:].numpy()

    @property
    def percent(self) -> float:
        """Nonzero numbers among all, in percent; one division of whole numbers, so it is exactly rounded."""
        return 100 * int(self.fires.sum()) / (self.rows * self.width) if self.rows else float("nan")

    @property
    def negative(self) -> int:
        """Numbers below zero; -0.0 is none of them."""
        return int(self.state["negative"])

    @property
    def nan(self) -> int:
        """Numbers that are NaN."""
        return int(self.state["nan"])

    @property
    def infinite(self) -> int:
        """Numbers that are infinite."""
        return int(self.state["infinite"])

    @property
    def dead(self) -> int:
        """Features that never fired."""
        return int((self.fires == 0).sum())

    @property
    def always_on(self) -> int:
        """Features that fired in every row."""
        return int((self.fires == self.rows).sum())

    def result(self, rows: Rows | None = None) -> Grid:
        """The share of rows in which each feature is not zero."""
        self._require()
        notes = {"negative": self.negative, "nan": self.nan, "infinite": self.infinite}
        return Grid(
            self._shaped(self.state["fires"]) / self.rows,
            self.axes,
            title=f"Rows in which each feature of {self.site} is not zero",
            unit="share",
            diagnostics={"rows": self.rows, "percent": self.percent, "dead": self.dead, "always on": self.always_on, **notes},
        )
