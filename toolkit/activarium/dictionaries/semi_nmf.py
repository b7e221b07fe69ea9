"""Semi-nonnegative factorisation of rows that are read piece by piece: A ≈ Z Y with signed, sparse Z and Y ≥ 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from activarium.dictionaries.rows import RowSource
from activarium.errors import CapacityError

PIECE = 4096  # rows that are read together: the same from a store as from memory, so both give the same bits
HELD = 1 << 30  # bytes of rows that are kept in memory between passes; more are read again in each
CODES = 8 << 30  # bytes that coefficients may take


class Pieces:
    """Rows of a site in pieces of fixed size, kept in memory where they fit.

    Attributes:
        count: How many rows there are.
        width: Numbers in each.
        dtype: Type that is computed in.
        square: Σ ‖a‖² over all rows.
        empty: Rows that are all zero, boolean.
        mean: Mean row, float64.
    """

    def __init__(self, source: RowSource, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self.count, self.width = len(source), source.width
        keeps = self.count * self.width * dtype.itemsize <= HELD
        self._held: list[tuple[slice, Tensor]] | None = [] if keeps else None
        self.square, self.empty = 0.0, torch.zeros(self.count, dtype=torch.bool)
        self.mean = torch.zeros(self.width, dtype=torch.float64)
        self.silent = torch.ones(self.width, dtype=torch.bool)
        for place, rows in self._read():
            self.square += float(rows.double().square().sum())
            self.empty[place] = (rows == 0).all(1)
            self.silent &= (rows == 0).all(0)
            self.mean += rows.double().sum(0) / self.count
            if self._held is not None:
                self._held.append((place, rows))

    @property
    def held(self) -> bool:
        """Do the rows stay in memory between passes?"""
        return self._held is not None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        return iter(self._held) if self._held is not None else self._read()

    def _read(self) -> Iterator[tuple[slice, Tensor]]:
        first = 0
        for index, rows, _ in self.source.pieces(PIECE):
            yield slice(first, first + len(index)), rows.to(self.dtype)
            first += len(index)

    def check_codes(self, features: int) -> None:
        """Refuse coefficients that take too much memory."""
        size = self.count * features * self.dtype.itemsize
        if size > CODES:
            raise CapacityError(
                f"Coefficients of {self.count:,} rows and {features} features take {size / 2**30:.1f} GiB in memory, more than {CODES >> 30} GiB. "
                "Take fewer rows (store.select(…)) or features; new rows are coded with encode afterwards."
            )


@dataclass(frozen=True, eq=False)
class Fit:
    """Where a factorisation arrived.

    Attributes:
        factors: Z of the best step, `d_in feature`.
        losses: ‖A − ZY‖² after each step.
        best: The step whose Z this is.
        stopped: Why it went no further.
    """

    factors: Tensor
    losses: list[float]
    best: int
    stopped: str

    @property
    def loss(self) -> float:
        """‖A − ZY‖² of the best step."""
        return self.losses[self.best]


def fit(
    pieces: Pieces, codes: Tensor, winners: int | None, *, steps: int, tolerance: float, patience: int, advance: Callable[..., None]
) -> Fit:
    """Go down from these coefficients; each step reads the rows once.

    The sums that the next Z needs (AG and GᵀG, with G = Yᵀ) are taken in the pass that updates G, so one pass makes a whole step.

    Args:
        pieces: The rows.
        codes: G, `row feature`, ≥ 0; changed in place.
        winners: Entries that each column of Z keeps; None for all.
        steps: Most steps.
        tolerance: Share by which the best loss must fall within `patience` steps.
        patience: See `tolerance`.
        advance: Called with 1 and a note after each step.
    """
    mixed, gram = _sums(pieces, codes)
    best, losses, factors = -1, [], torch.empty(0)
    for step in range(steps):
        norms = gram.diagonal().sqrt()
        norms = torch.where(norms > 0, norms, 1)
        z = solved(mixed / norms, gram / norms.outer(norms))
        z = z if winners is None else winner_take_all(z, winners)
        square = z.T @ z
        mixed, gram = _updated(pieces, codes, norms, z, square)
        # ‖A − ZGᵀ‖² from the sums alone: the rows need not be read once more.
        losses.append(max(0.0, pieces.square - 2 * float((z * mixed).sum()) + float((square * gram).sum())))
        if best < 0 or losses[step] < losses[best]:
            best, factors = step, z
        advance(1, note=f"error {losses[best] / max(pieces.square, 1e-300):.4f}")
        reference = min(losses[: step + 1 - patience], default=math.inf)
        if reference < math.inf and reference - losses[best] <= tolerance * reference:
            return Fit(factors, losses, best, f"the best error fell by less than {tolerance:g} of itself in {patience} steps")
    return Fit(factors, losses, best, f"all {steps} steps were taken")


def solved(mixed: Tensor, gram: Tensor) -> Tensor:
    """AG (GᵀG)⁻¹ by Cholesky, in float64; the diagonal grows a little until the matrix is positive definite."""
    jitter = 1e-12 * float(gram.diagonal().mean().clamp_min(1e-300))
    while True:
        lower, failed = torch.linalg.cholesky_ex(gram + jitter * torch.eye(len(gram), dtype=gram.dtype))
        # Pivots near rounding pass the test and would blow Z up, so they count as a failure.
        if not failed and float(lower.diagonal().min().square()) > 0.5 * jitter:
            return torch.cholesky_solve(mixed.T.contiguous(), lower).T
        jitter *= 10


def winner_take_all(z: Tensor, winners: int) -> Tensor:
    """Each column's largest entries by size; of equal ones those with the lower index."""
    kept = z.abs().sort(dim=0, descending=True, stable=True).indices[:winners]
    return torch.zeros_like(z).scatter(0, kept, z.gather(0, kept))


def winners_of(share: float, width: int) -> int:
    """⌈share · width⌉, without the last digit that a product of floats may be too large by: 0.07 · 100 keeps 7."""
    return max(1, math.ceil(share * width * (1 - 1e-12)))


def multiplied(codes: Tensor, products: Tensor, square: Tensor, floor: float) -> Tensor:
    """One multiplicative step on G with Z fixed: G ⊙ √((P⁺ + GQ⁻) / (P⁻ + GQ⁺)), P = AᵀZ, Q = ZᵀZ."""
    up, down = products.clamp_min(0), (-products).clamp_min(0)
    up = up.addmm(codes, (-square).clamp_min(0))
    down = down.addmm(codes, square.clamp_min(0))
    return codes * (up / (down + floor)).sqrt_()


def _updated(pieces: Pieces, codes: Tensor, norms: Tensor, z: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Scale G's columns to length 1 (Z already has their lengths), move G, and take the sums of what it became."""
    norms, z, square = norms.to(codes.dtype), z.to(codes.dtype), square.to(codes.dtype)
    # Keeps a ratio of zeros finite; relative to the size that denominators have, so that units do not matter.
    floor = torch.finfo(codes.dtype).eps * float(square.diagonal().max()) / math.sqrt(pieces.count) + torch.finfo(codes.dtype).tiny
    mixed, gram = _zeros(pieces, codes)
    for place, rows in pieces:
        here = multiplied(codes[place] / norms, rows @ z, square, floor)
        codes[place] = here
        mixed += (rows.T @ here).double()
        gram += (here.T @ here).double()
    return mixed, gram


def _sums(pieces: Pieces, codes: Tensor) -> tuple[Tensor, Tensor]:
    mixed, gram = _zeros(pieces, codes)
    for place, rows in pieces:
        mixed += (rows.T @ codes[place]).double()
        gram += (codes[place].T @ codes[place]).double()
    return mixed, gram


def _zeros(pieces: Pieces, codes: Tensor) -> tuple[Tensor, Tensor]:
    features = codes.shape[1]
    return torch.zeros(pieces.width, features, dtype=torch.float64), torch.zeros(features, features, dtype=torch.float64)
