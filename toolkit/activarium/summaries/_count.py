"""Count: how often each feature is not exactly zero, in whole numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.results import Grid
from activarium.rows import Rows
from activarium.summaries.base import CELLS, State, Summary, strange


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
        positive_less_negative, fires, each = _signs(values)
        odd = strange(values)
        nan = values.isnan() if odd else None
        if nan is not None:  # it differs from zero, but has no sign
            fires, each = fires + nan.sum(0), each + nan.sum(1)
        fires, each = fires.cpu(), each.cpu()
        example, at = rows[:, 0].unique(return_inverse=True)
        both = torch.zeros(len(example), 2, dtype=torch.int64).index_add_(0, at, torch.stack([each, torch.ones_like(each)], 1))
        missing = torch.tensor(0) if nan is None else nan.sum().cpu()
        return {
            "rows": torch.tensor(len(values)),
            "fires": fires,
            "histogram": torch.bincount(each, minlength=values.shape[1] + 1),
            "sequences": torch.cat([example[:, None], both], 1),
            "negative": (fires.sum() - missing - positive_less_negative.sum().cpu()) // 2,
            "nan": missing,
            "infinite": values.isinf().sum().cpu() if odd else torch.tensor(0),
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


def _signs(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per feature positive less negative numbers and nonzero numbers, per row nonzero numbers: int64.

    Ones and zeros are added up by matrix products, many times as fast as by booleans; a float32 sum of at most CELLS ones
    is exact.
    """
    width = values.shape[1]
    total = torch.zeros(2, width, dtype=torch.int64, device=values.device)
    each = []
    for part in values.split(max(1, min(CELLS // width, CELLS))):
        sign = part.sign().float()
        column = sign.new_ones(1, len(part))
        total[0] += (column @ sign)[0].long()
        sign.abs_()
        total[1] += (column @ sign)[0].long()
        each.append((sign @ sign.new_ones(width, 1))[:, 0].long())
    return total[0], total[1], torch.cat(each)
