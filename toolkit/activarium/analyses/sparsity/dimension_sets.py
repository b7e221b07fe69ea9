"""Which dimensions a row uses, and what is counted about them over consecutive rows of a sequence."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LONGEST = 64  # the last bin of run lengths holds this length and every longer one


def active_set(values: Tensor, energy: float, theta: float | None) -> np.ndarray:
    """`row d` True where a dimension is used.

    Args:
        values: `row d`.
        energy: The smallest set of dimensions with this share of a row's Σh²; of equal ones the first in number.
        theta: If given, |h| > theta · rms(h) instead.
    """
    size = values.detach().double().abs()
    squares = size / size.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)  # 1800² is infinite in float16
    squares = squares.square()
    if theta is not None:
        return (squares > theta**2 * squares.mean(1, keepdim=True)).cpu().numpy()
    largest, order = squares.sort(dim=1, descending=True, stable=True)
    reached = largest.cumsum(1)
    before = reached - largest  # what is there without this dimension
    inside = (before < energy * reached[:, -1:]) & (largest > 0)
    return torch.zeros_like(inside).scatter(1, order, inside).cpu().numpy()


def follows(positions: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """For each row of a sequence but the first: is it the next one and, in an image, of the same line of patches?"""
    return (np.diff(positions) == 1) & (np.diff(lines) == 0)


class Occupancy:
    """Counts about one site. All integers are exact, whatever the batches.

    Attributes:
        rows: Rows counted.
        counts: (d,) rows in which a dimension is active.
        links: Pairs of consecutive rows.
        followed: (d,) active rows that have a next one.
        pairs: (d,) rows active together with the one before.
        runs: (d,) unbroken runs of active rows.
        lengths: (d, LONGEST) runs by length.
        within_followed: (d,) what `followed` would be on average if the rows of each sequence were shuffled.
        within_pairs: (d,) the same of `pairs`.
        shares: (d,) summed share of the energy of a row.
        empty: Rows of zeros.
        per_sequence: Per sequence: active, rows × d, pairs, followed.
    """

    def __init__(self, width: int) -> None:
        self.width, self.rows, self.links, self.empty = width, 0, 0, 0
        self.counts, self.followed, self.pairs, self.runs = (np.zeros(width, np.int64) for _ in range(4))
        self.lengths = np.zeros((width, LONGEST), np.int64)
        self.within_followed, self.within_pairs, self.shares = (np.zeros(width) for _ in range(3))
        self.per_sequence: list[tuple[int, int, int, int]] = []

    def update(self, values: Tensor, active: np.ndarray, linked: np.ndarray) -> None:
        """Add one sequence: its values `row d`, its active sets, and which row follows the one before."""
        rows, on = len(active), active.sum(0)
        now, before = active[1:][linked], active[:-1][linked]
        followed, pairs, links = before.sum(0), (now & before).sum(0), int(linked.sum())
        self.rows, self.links = self.rows + rows, self.links + links
        self.counts += on
        self.followed += followed
        self.pairs += pairs
        self.within_followed += links * on / rows
        self.within_pairs += links * on * (on - 1) / max(rows * (rows - 1), 1)
        squares = values.detach().double().square()
        total = squares.sum(1, keepdim=True)
        self.empty += int((total == 0).sum())
        self.shares += torch.where(total > 0, squares / total, 0).sum(0).cpu().numpy()
        self._runs(active, linked)
        self.per_sequence.append((int(on.sum()), rows * self.width, int(pairs.sum()), int(followed.sum())))

    def _runs(self, active: np.ndarray, linked: np.ndarray) -> None:
        length = np.zeros(self.width, np.int64)
        for row, now in enumerate(active):
            goes_on = now if row and linked[row - 1] else np.zeros(self.width, bool)
            self._ended(length, ~goes_on)
            length = np.where(goes_on, length, 0) + now
        self._ended(length, np.ones(self.width, bool))

    def _ended(self, length: np.ndarray, over: np.ndarray) -> None:
        which = np.flatnonzero(over & (length > 0))
        self.lengths[which, np.minimum(length[which], LONGEST) - 1] += 1
        self.runs[which] += 1

    @property
    def occupancy(self) -> np.ndarray:
        """(d,) share of the rows in which a dimension is active."""
        return self.counts / self.rows

    @property
    def persistence(self) -> np.ndarray:
        """(d,) share of active rows whose next row is active too; NaN where there is none."""
        return _ratio(self.pairs, self.followed)

    @property
    def within(self) -> np.ndarray:
        """(d,) the same if the rows of each sequence were shuffled: exact expectation, nothing is drawn."""
        return _ratio(self.within_pairs, self.within_followed)

    @property
    def mean_run(self) -> np.ndarray:
        """(d,) mean length of a run."""
        return _ratio(self.counts, self.runs)


def pooled(state: Occupancy) -> tuple[float, float, float]:
    """Over all dimensions: persistence, base rate (rows shuffled over all sequences) and rows shuffled within theirs.

    A dimension counts as often as it is active, so the base rate is that of the active ones.
    """
    followed = state.followed.sum()
    base = (state.followed * _ratio(state.counts - 1, np.full(state.width, state.rows - 1))).sum()
    weighted = np.where(state.followed > 0, state.within, 0) * state.followed
    sums = (state.pairs.sum(), base, weighted.sum())
    measured, everywhere, within = (float(v / followed) if followed else float("nan") for v in sums)
    return measured, everywhere, within


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
