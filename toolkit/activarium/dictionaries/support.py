"""Arithmetic on the active codes alone: exact values and exact gradients, in which only the encode product is dense.

With k of F features active, decoding and every gradient cost k/F of a dense product (the idea: Gao et al. 2024,
arXiv:2406.04093, appendix D.2).
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Support:
    """Which features are active in which rows: one entry per active code, row by row.

    Attributes:
        features: Feature of each entry, int64.
        starts: `(row + 1,)` int64: entries of row i are those from `starts[i]` to `starts[i + 1]`.
        width: How many features there are.
    """

    def __init__(self, features: Tensor, starts: Tensor, width: int) -> None:
        self.features, self.starts, self.width = features, starts, width

    @staticmethod
    def of_top(features: Tensor, width: int) -> Support:
        """The same number of features in each row, `row k`."""
        rows, k = features.shape
        return Support(features.flatten(), torch.arange(0, rows * k + 1, k, device=features.device), width)

    @staticmethod
    def of_flat(places: Tensor, rows: int, width: int) -> Support:
        """From ascending places in a table `row feature` laid out row by row."""
        starts = torch.searchsorted(places, torch.arange(0, rows + 1, device=places.device) * width)
        return Support(places % width, starts, width)

    @cached_property
    def rows(self) -> Tensor:
        """Row of each entry, int64."""
        counts = self.starts.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=len(self.features))

    @cached_property
    def _by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        # Sorted once; the gradients of both weights use it.
        ascending, order = self.features.sort(stable=True)
        starts = torch.searchsorted(ascending, torch.arange(self.width + 1, device=order.device))
        return order, starts, self.rows[order]

    def sums(self, weights: Tensor, values: Tensor) -> Tensor:
        """`feature column`: for each feature, the rows of `values` `row column` in which it is active, times the entry's weight."""
        order, starts, rows = self._by_feature
        # Bags, not a product of a sparse matrix: the same sums in less than half the time, and less when memory is busy.
        return embedding_bag(rows, values, starts, mode="sum", per_sample_weights=weights[order], include_last_offset=True)

    def dots(self, rows: Tensor, directions: Tensor) -> Tensor:
        """For each entry, its row of `row column` times its feature's direction, `feature column`; no row is gathered."""
        # 32-bit places: the library beneath takes no others and would convert them each time.
        pattern = _sparse(self.starts.int(), self.features.int(), rows.new_zeros(len(self.features)), (len(rows), self.width))
        return torch.sparse.sampled_addmm(pattern, rows, directions.T, beta=0.0).values()

    def totals(self, weights: Tensor) -> Tensor:
        """`feature`: the sum of its entries' weights."""
        return torch.zeros(self.width, dtype=weights.dtype, device=weights.device).index_add_(0, self.features, weights)

    def mix(self, codes: Tensor, directions: Tensor) -> Tensor:
        """`row column`: for each row, the directions `feature column` of its features times their codes."""
        return embedding_bag(self.features, directions, self.starts, mode="sum", per_sample_weights=codes, include_last_offset=True)


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


class _Encode(torch.autograd.Function):
    """Codes as they are; their slopes reach encoder, bias and shift through the active entries."""

    @staticmethod
    def forward(ctx: Any, encoder: Tensor, bias: Tensor, shift: Tensor | None, codes: Tensor, x: Tensor, support: Support) -> Tensor:
        ctx.save_for_backward(encoder, codes, x)
        ctx.support, ctx.shifted = support, shift is not None
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        encoder, codes, x = ctx.saved_tensors
        slope = slopes[0] * (codes != 0)  # what the rectifier set to zero has no slope
        of_bias = ctx.support.totals(slope)
        # The shift is taken from every row alike, so the sum over rows is all that it sees: F·d, not B·F·d.
        of_shift = -(of_bias @ encoder) if ctx.shifted else None
        return ctx.support.sums(slope, x), of_bias, of_shift, None, None, None


class _Decode(torch.autograd.Function):
    """Sum over active codes of code times direction."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, directions: Tensor, support: Support) -> Tensor:
        ctx.save_for_backward(codes, directions)
        ctx.support = support
        return support.mix(codes, directions)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        codes, directions = ctx.saved_tensors
        slope = slopes[0].contiguous()
        return ctx.support.dots(slope, directions), ctx.support.sums(codes, slope), None


def encode(encoder: Tensor, bias: Tensor, shift: Tensor | None, codes: Tensor, x: Tensor, support: Support) -> Tensor:
    """Give codes their gradients: to encoder, bias and shift, on the active entries alone (none to the rows).

    Args:
        encoder: `feature d_in`.
        bias: `feature`.
        shift: `d_in`, what was taken from every row; None for nothing.
        codes: Of each entry of `support`, computed without gradients; 0 where a rectifier made it so, else the pre-activation.
        x: Rows as the encoder saw them, `row d_in`.
        support: Where the codes are.
    """
    return _Encode.apply(encoder, bias, shift, codes, x, support)  # pyright: ignore[reportReturnType]


def decode(codes: Tensor, directions: Tensor, support: Support) -> Tensor:
    """`row d_out`: for each row its codes times their directions `feature d_out`, with gradients to both."""
    return _Decode.apply(codes, directions, support)  # pyright: ignore[reportReturnType]
