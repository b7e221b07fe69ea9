"""Magnitudes: an exact histogram of |x| over the bit patterns of 16-bit floats."""

from __future__ import annotations

import sys
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError
from activarium.results import Series
from activarium.rows import Rows
from activarium.summaries.base import State, Summary

BINS = 1 << 15
Layout = Literal["bfloat16", "float16"]


class Magnitudes(Summary):
    """How large are the numbers of a site: median, quantiles, zeros, largest?

    The 15 bits beside the sign of a 16-bit float order its magnitudes, so 32 768 counters hold the whole distribution:
    for bfloat16 and float16 every quantile and every count below a threshold is exact. float32 and float64 are cut to the
    top 15 bits of a bfloat16: an answer names a bin, no wider than 2^-7 of its lower end. Infinity and NaN have bins of
    their own, so an overflow shows.

    State, int64: `rows`, `bins`; `half` says whether the bins are those of float16; `exact` whether values were kept whole.
    """

    def __init__(self) -> None:
        super().__init__()

    def _bytes(self, width: int) -> int:
        return 8 * BINS

    def _of(self, values: Tensor, rows: Tensor | None) -> State:
        half, exact = values.dtype == torch.float16, values.dtype in (torch.float16, torch.bfloat16)
        counts = torch.bincount(_patterns(values), minlength=BINS).cpu()
        return {"rows": torch.tensor(len(values)), "bins": counts, "half": torch.tensor(int(half)), "exact": torch.tensor(int(exact))}

    def _join(self, into: State, other: State) -> None:
        if int(into["half"]) != int(other["half"]):
            raise InputError(
                f"Magnitudes of {self.site} hold float16 bins on one side and bfloat16 bins on the other. Run both in one dtype."
            )
        into["bins"] = into["bins"] + other["bins"]
        into["rows"] = into["rows"] + other["rows"]
        into["exact"] = torch.minimum(into["exact"], other["exact"])

    # --- what it says

    @property
    def exact(self) -> bool:
        """Are the bins the values themselves?"""
        return bool(self.state["exact"])

    @property
    def counts(self) -> np.ndarray:
        """Numbers in each bin, int64."""
        return self.state["bins"].numpy()

    @property
    def edges(self) -> np.ndarray:
        """Magnitude at the lower end of each bin, float64; infinity and NaN at the end."""
        patterns = torch.arange(BINS, dtype=torch.int16)
        return patterns.view(torch.float16 if int(self.state["half"]) else torch.bfloat16).double().numpy()

    @property
    def zeros(self) -> int:
        """Numbers that are exactly zero, -0.0 included; for float32 also those nearer to zero than 9.2e-41."""
        return int(self.counts[0])

    @property
    def nan(self) -> int:
        """Numbers that are NaN."""
        return int(self.counts[self._infinity + 1 :].sum())

    @property
    def infinite(self) -> int:
        """Numbers that are infinite."""
        return int(self.counts[self._infinity])

    @property
    def _infinity(self) -> int:
        return 0x7C00 if int(self.state["half"]) else 0x7F80  # its bit pattern; all beyond is NaN

    def quantile(self, share: float) -> tuple[float, float]:
        """Between which magnitudes does this quantile lie? Both ends are the value itself where the bins are exact.

        The lower convention: the smallest value that at least this share of the finite numbers do not exceed; NaN is left out.

        Args:
            share: From 0 to 1; 0.5 is the lower median.

        Returns:
            Lower and upper end, in model units.
        """
        self._require()
        if not 0 <= share <= 1:
            raise InputError(f"A quantile's share lies between 0 and 1; found {share}.")
        reached = self.counts[: self._infinity + 1].cumsum()
        # A product of floats may land just above a whole number: 0.1 * 30 asks for the third value, not the fourth.
        wanted = max(1, int(np.ceil(share * int(reached[-1]) * (1 - 1e-15))))
        at = int(np.searchsorted(reached, wanted))
        low = float(self.edges[at])
        return low, low if self.exact else float(self.edges[min(at + 1, self._infinity)])

    @property
    def median(self) -> float:
        """Lower median of |x|: exact, or the middle of its bin."""
        return self._middle(0.5)

    @property
    def largest(self) -> float:
        """Largest finite or infinite magnitude: exact, or the middle of its bin."""
        return self._middle(1.0)

    def _middle(self, share: float) -> float:
        low, high = self.quantile(share)
        return low if not np.isfinite(high) else (low + high) / 2

    def share_below(self, threshold: float) -> tuple[float, float]:
        """Share of the numbers with |x| below a threshold: least and most; the same where the bins are exact."""
        self._require()
        counts, edges = self.counts[: self._infinity + 1], self.edges[: self._infinity + 1]
        total, below = int(counts.sum()), edges < threshold
        sure = below if self.exact else np.append(edges[1:], np.inf) <= threshold
        return int(counts[sure].sum()) / total, int(counts[below].sum()) / total

    def result(self, rows: Rows | None = None) -> Series:
        """The share of numbers up to each magnitude."""
        self._require()
        counts, edges = self.counts[: self._infinity], self.edges[: self._infinity]
        used = np.flatnonzero(counts)
        share = counts.cumsum()[used] / max(int(self.counts.sum()), 1)
        told = {f"{q:g}": self._middle(q) for q in (0.5, 0.9, 0.99, 0.999, 1.0)}
        notes = {"zeros": self.zeros, "nan": self.nan, "infinite": self.infinite, "exact": self.exact}
        return Series(
            edges[used],
            {"share of numbers up to here": share},
            "magnitude, model units",
            title=f"Magnitudes at {self.site}",
            unit="share",
            noise=None if self.exact else 2**-7,
            diagnostics={"rows": self.rows, "quantiles": told, **notes},
        )


def _patterns(values: Tensor) -> Tensor:
    """The 15 magnitude bits of each number, flat int16; of float32 those of the bfloat16 it is cut to."""
    if values.dtype in (torch.float16, torch.bfloat16):
        return values.reshape(-1).view(torch.int16) & 0x7FFF
    # float64 is rounded to float32 first: within the stated width of a bin. The upper half of a float32 is a bfloat16.
    halves = values.reshape(-1).float().view(torch.int16).view(-1, 2)
    return halves[:, 1 if sys.byteorder == "little" else 0] & 0x7FFF
