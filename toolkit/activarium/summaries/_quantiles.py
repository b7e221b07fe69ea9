"""Quantiles: each feature's distribution, from a sample of rows that no split or order can change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError
from activarium.results import Grid
from activarium.rows import Rows
from activarium.summaries.base import State, Summary

SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Quantiles(Summary):
    """Which quantiles does each feature have?

    One histogram per feature would not fit, so a fixed number of rows is kept: those whose hash of example and position is
    smallest. It is a uniform sample that depends on the rows alone, not on batches, order or workers. Up to that many
    rows the quantiles are exact; beyond, the share that lies below each is off by at most `rank_error` with 95 %
    confidence, for all quantiles of a feature at once.

    State: `rows`, `hash` and `row` (example, position) of the kept rows, `values` (`row feature`, in the captured type).

    Attributes:
        settings: `keep`, the number of rows; `seed` draws another sample.

    Source:
        Bottom-k sampling: Cohen & Kaplan 2007, Summarizing data using bottom-k sketches, PODC. Bound: Massart 1990, The tight
        constant in the Dvoretzky–Kiefer–Wolfowitz inequality.
    """

    needs_rows = True

    def __init__(self, keep: int = 1024, seed: int = 0) -> None:
        if keep < 1:
            raise InputError(f"Quantiles keep {keep} rows; wanted at least one.")
        super().__init__(keep=keep, seed=seed)

    def _bytes(self, width: int) -> int:
        return 4 * self.settings["keep"] * (width + 6)

    def _of(self, values: Tensor, rows: Tensor | None) -> State:
        assert rows is not None
        hashes = _hash(rows, self.settings["seed"])
        if self.state and len(self.state["hash"]) == self.settings["keep"]:
            chosen = (hashes <= self.state["hash"][-1]).nonzero().flatten()  # the rest could not stay
        else:
            chosen = torch.arange(len(rows))
        chosen = chosen[_order(hashes[chosen], rows[chosen])[: self.settings["keep"]]]
        kept = values.index_select(0, chosen.to(values.device)).cpu()
        return {"rows": torch.tensor(len(values)), "hash": hashes[chosen], "row": rows[chosen], "values": kept}

    def _join(self, into: State, other: State) -> None:
        hashes, rows = torch.cat([into["hash"], other["hash"]]), torch.cat([into["row"], other["row"]])
        chosen = _order(hashes, rows)[: self.settings["keep"]]
        into["values"] = torch.cat([into["values"], other["values"]]).index_select(0, chosen)
        into["hash"], into["row"] = hashes[chosen], rows[chosen]
        into["rows"] = into["rows"] + other["rows"]

    # --- what it says

    @property
    def rank_error(self) -> float:
        """By how much the share below a quantile may be off, with 95 % confidence; 0 while every row is kept."""
        kept = len(self.state["hash"])
        return 0.0 if kept == self.rows else float(np.sqrt(np.log(2 / 0.05) / (2 * kept)))

    def quantile(self, shares: float | Sequence[float]) -> Tensor:
        """Quantiles of each feature: the smallest kept value that at least this share do not exceed.

        Args:
            shares: From 0 to 1.

        Returns:
            `feature`, with a leading axis for several shares, in the captured type.
        """
        self._require()
        wanted = np.atleast_1d(np.asarray(shares, dtype=np.float64))
        if ((wanted < 0) | (wanted > 1)).any():
            raise InputError(f"A quantile's share lies between 0 and 1; found {shares}.")
        values = self.state["values"]
        # 16-bit floats are sorted as float32, which holds them exactly.
        ordered = (values.float() if values.dtype.itemsize == 2 else values).sort(0).values
        at = np.maximum(np.ceil(wanted * len(ordered) * (1 - 1e-15)).astype(int) - 1, 0)
        found = ordered[torch.as_tensor(at)].to(values.dtype)
        return found[0] if np.ndim(shares) == 0 else found

    def result(self, rows: Rows | None = None) -> Grid:
        """Seven quantiles of each feature."""
        found = self.quantile(SHARES).double()
        notes = {"rows": self.rows, "rows kept": len(self.state["hash"]), "rank error, 95 %": self.rank_error}
        title = f"Quantiles of each feature of {self.site}"
        labels = {"quantity": [f"{s:g}" for s in SHARES]}
        return Grid(self._shaped(found), ("quantity", *self.axes), labels, title=title, unit="model units", diagnostics=notes)


def _order(hashes: Tensor, rows: Tensor) -> Tensor:
    """Smallest hash first; of equal ones the earlier example and position."""
    return torch.from_numpy(np.lexsort((rows[:, 1].numpy(), rows[:, 0].numpy(), hashes.numpy())))


def _hash(rows: Tensor, seed: int) -> Tensor:
    """A well-mixed whole number from 0 to 2^63 per row (the finalizer of splitmix64 over example and position)."""
    state = np.full(len(rows), np.uint64(seed & (1 << 64) - 1))
    for column in rows.numpy().astype(np.uint64).T:
        state = _mix(state ^ _mix(column))
    return torch.from_numpy((state >> np.uint64(1)).astype(np.int64))


def _mix(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
