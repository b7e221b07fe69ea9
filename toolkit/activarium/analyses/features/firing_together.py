"""How features of one dictionary, or of two, are active in the same rows: sums over one pass, from which all shares follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium.dictionaries.coded import CodedRows, LiveCodes, rows_for
from activarium.dictionaries.codes import Codes
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.errors import InputError
from activarium.recording import Recording


@dataclass(frozen=True)
class Together:
    """Sums over rows, in float64 and exact counts: all that shares and correlations of codes need.

    Attributes:
        rows: How many rows.
        sums: Sum of the codes of each feature, one array per side.
        squares: Sum of their squares, one array per side.
        fires: Rows in which each is active, one array per side.
        products: Sum of code times code, sparse `feature feature`.
        both: Rows in which both are active, sparse.
    """

    rows: int
    sums: tuple[np.ndarray, np.ndarray]
    squares: tuple[np.ndarray, np.ndarray]
    fires: tuple[np.ndarray, np.ndarray]
    products: Any
    both: Any

    def correlation(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Pearson correlation of the codes of pairs; NaN where one never changes."""
        product = pick(self.products, first, second)
        return self._correlation(first, second, product)

    def strongest(self) -> tuple[np.ndarray, np.ndarray]:
        """For each feature of the first side, the largest correlation with another one and its number (-1: none is above 0).

        Only pairs that are active together can lie above 0, unless codes are negative.
        """
        table = self.products.tocoo()
        first, second = table.coords if hasattr(table, "coords") else (table.row, table.col)
        apart = first != second
        first, second, product = first[apart], second[apart], table.data[apart]
        found = self._correlation(first, second, product)
        size = len(self.sums[0])
        best, number = np.zeros(size), np.full(size, -1)
        order = np.lexsort((second, -np.nan_to_num(found, nan=-2), first))
        top = order[np.r_[True, np.diff(first[order]) > 0]] if len(order) else order
        top = top[np.nan_to_num(found[top], nan=-1) > 0]
        best[first[top]], number[first[top]] = found[top], second[top]
        return best, number

    def _correlation(self, first: np.ndarray, second: np.ndarray, product: np.ndarray) -> np.ndarray:
        (a, b), (aa, bb) = self.sums, self.squares
        spread = [np.clip(q - s * s / self.rows, 0, None) for s, q in ((a, aa), (b, bb))]
        # Rounding leaves about 1e-16 of the squares where a code never changes.
        flat = [v <= 1e-12 * np.maximum(q, 1e-300) for v, q in zip(spread, (aa, bb), strict=True)]
        below = np.sqrt(spread[0][first] * spread[1][second])
        made = np.divide(product - a[first] * b[second] / self.rows, below, out=np.full(len(first), np.nan), where=below > 0)
        made[flat[0][first] | flat[1][second]] = np.nan
        return made.clip(-1, 1)


def together(one: CodedRows, other: CodedRows | None = None, *, shuffle: int | None = None, rows: int = 4096) -> Together:
    """One pass over the rows.

    Args:
        one: Codes of one side.
        other: Codes of the other, on the same rows; None takes the first again.
        shuffle: A seed: deal the other side's rows out anew within each piece, which leaves only what chance brings together.
        rows: Rows in a piece.

    Raises:
        InputError: The two are of different rows.
    """
    if other is not None and not np.array_equal(one.chosen, other.chosen):
        raise InputError(f"One dictionary reads {len(one.chosen):,} rows and the other {len(other.chosen):,}: give both the same exclude=.")
    generator = np.random.default_rng(shuffle)
    widths = (one.width, (other or one).width)
    sums, squares = ((np.zeros(widths[0]), np.zeros(widths[1])) for _ in range(2))
    fires = (np.zeros(widths[0], np.int64), np.zeros(widths[1], np.int64))
    products: Any = 0
    both: Any = 0
    count = 0
    others = iter(other.pieces(rows)) if other is not None else None
    for _, codes in one.pieces(rows):
        a = matrix(codes)
        b = a if others is None else matrix(next(others)[1])
        b = b if shuffle is None else b[generator.permutation(b.shape[0])]
        for side, x in enumerate((a, b)):
            sums[side][:] += np.asarray(x.sum(0)).ravel()
            squares[side][:] += np.asarray(x.multiply(x).sum(0)).ravel()
            fires[side][:] += np.asarray((x != 0).sum(0)).ravel().astype(np.int64)
        products = products + a.T @ b
        both = both + (a != 0).astype(np.int64).T @ (b != 0).astype(np.int64)
        count += a.shape[0]
    return Together(count, sums, squares, fires, products.tocsr(), both.tocsr())


def pick(table: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Entries of a sparse table at pairs of places; no pairs give a sparse answer in scipy, here an empty array."""
    return np.asarray(table[first, second]).ravel() if len(first) else np.empty(0)


def matrix(codes: Codes) -> Any:
    """Codes as scipy's sparse rows, in float64."""
    from scipy.sparse import csr_array

    parts = (codes.values.double().cpu().numpy(), codes.features.cpu().numpy(), codes.starts.cpu().numpy())
    return csr_array(parts, shape=(len(codes), codes.width))


def coded(
    dictionaries: Sequence[FeatureDictionary], recording: Recording, site: str | None = None, exclude: Sequence[str] | None = None
) -> list[LiveCodes]:
    """Codes of several dictionaries on the same rows: what one of them leaves out is left out of all.

    Raises:
        InputError: They read different sites.
    """
    names = {d.origin.site for d in dictionaries if d.origin.site}
    if site is None and len(names) > 1:
        raise InputError(f"These dictionaries read {', '.join(sorted(names))}; their features fire on the same rows of one site only.")
    kinds = sorted({k for d in dictionaries for k in d.origin.exclude}) if exclude is None else exclude
    place = site or next(iter(names), None)
    return [LiveCodes(rows_for(d, recording, site=place, exclude=kinds), d) for d in dictionaries]
