"""One sequence at one layer: its median, its largest numbers and those that are massive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import column
from activarium.maths import lower_median

Columns = Mapping[str, np.ndarray]
COLUMNS = ("ratio", "value", "energy share", "example", "row", "position", "text", "kind", "where", "dim")
DELIMITERS = (".", "\n", "Ċ", "\\n", "<0x0A>")  # full stop and newline, as tokenizers write them


@dataclass(frozen=True, eq=False)
class Measured:
    """What one sequence shows at one layer.

    Attributes:
        example: Its number.
        median: Lower median of |h| over its rows and dimensions, in float64.
        top: Its three largest sizes |h|, the largest first.
        hits: (n, 2) row in the recording and dimension of each massive number.
        values: Their signed values.
        shares: Each one's share of the energy of its row.
        peak: Row, dimension, signed value and energy share of its largest number.
        finite: False if it holds NaN or infinity; then nothing else is meant.
    """

    example: int
    median: float
    top: np.ndarray
    hits: np.ndarray
    values: np.ndarray
    shares: np.ndarray
    peak: tuple[int, int, float, float]
    finite: bool = True

    @property
    def ratio(self) -> float:
        """Largest size over median; infinite where more than half of the numbers are exactly zero."""
        return self.multiple(self.top[0])

    def multiple(self, size: float) -> float:
        """A size as a multiple of the median."""
        return float(size) / self.median if self.median else float("inf")


def measure(example: int, first: int, values: Tensor, absolute: float, ratio: float) -> Measured:
    """Apply the criteria to one sequence.

    Args:
        example: Its number.
        first: Its first row in the recording.
        values: Its residual stream, `row d_model`.
        absolute: Exclusive lower bound of the size.
        ratio: Inclusive lower bound of the multiple of the median.
    """
    if not bool(values.isfinite().all()):
        nothing = np.zeros((0, 2), np.int64)
        return Measured(example, 0.0, np.zeros(3), nothing, np.zeros(0), np.zeros(0), (first, 0, 0.0, 0.0), finite=False)
    exact = values.detach().double()  # every 16- and 32-bit float is a float64, so comparing here rounds nothing
    size = exact.abs()
    median = float(lower_median(values.abs()))
    top = size.flatten().topk(min(3, size.numel())).values
    where = ((size > absolute) & (size >= ratio * median)).nonzero()
    energy = (exact**2).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    row, dim = divmod(int(size.argmax()), size.shape[1])
    signed = exact[where[:, 0], where[:, 1]]
    return Measured(
        example=example,
        median=median,
        top=np.pad(top.cpu().numpy(), (0, 3 - len(top))),
        hits=(where + torch.tensor([first, 0], device=where.device)).cpu().numpy(),
        values=signed.cpu().numpy(),
        shares=(signed**2 / energy[where[:, 0]]).cpu().numpy(),
        peak=(first + row, dim, float(exact[row, dim]), float(exact[row, dim] ** 2 / energy[row])),
    )


def describe_hits(activations: Activations, found: Sequence[Measured], *, largest: bool = False) -> dict[str, np.ndarray]:
    """Massive numbers (or the largest one of each sequence) of one layer as columns, see `COLUMNS`."""
    if largest:
        pieces = [(m, np.array([m.peak[:2]]), np.array([m.peak[2]]), np.array([m.peak[3]])) for m in found]
    else:
        pieces = [(m, m.hits, m.values, m.shares) for m in found]
    where = np.concatenate([p[1] for p in pieces]).astype(np.int64).reshape(-1, 2)
    row = where[:, 0]
    return {
        "ratio": np.array([m.multiple(abs(v)) for m, _, values, _ in pieces for v in values], dtype=np.float64),
        "value": np.concatenate([p[2] for p in pieces]),
        "energy share": np.concatenate([p[3] for p in pieces]),
        "example": np.repeat([m.example for m in found], [len(p[1]) for p in pieces]).astype(np.int64),
        "row": row,
        "position": column(activations, "position", -1)[row],
        "text": column(activations, "text", "").astype(object)[row],
        "kind": column(activations, "kind", "token").astype(object)[row],
        "where": position_classes(activations)[row],
        "dim": where[:, 1],
    }


def position_classes(activations: Activations) -> np.ndarray:
    """What each row is for massive activations: `first`, `first delimiter`, `delimiter`, `special`, `patch` or `other`."""
    kind = column(activations, "kind", "token").astype(str)
    texts = np.array([t if t in DELIMITERS else t.strip(" ▁Ġ") for t in column(activations, "text", "").astype(str)], dtype=object)
    position = column(activations, "position", -1)
    example = column(activations, "example", 0)
    delimiter = np.isin(texts.astype(str), DELIMITERS)
    made = np.full(len(kind), "other", dtype=object)
    made[kind == "patch"] = "patch"
    made[np.isin(kind, ("cls", "register", "special"))] = "special"
    made[delimiter] = "delimiter"
    at = np.flatnonzero(delimiter)
    made[at[np.unique(example[at], return_index=True)[1]]] = "first delimiter"
    made[(position == 0) & (kind != "cls") & (kind != "patch")] = "first"
    return made
