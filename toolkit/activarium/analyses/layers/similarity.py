"""Linear CKA of two sites, row by row in one pass: how alike two representations are up to a rotation and a scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example
from activarium.analyses.layers.redundancy import left_out

WIDEST = 512  # features; wider sites are projected first, since their products would take D² numbers each
DIRECTIONS = 256


def projection(width: int, seed: int = 0) -> Tensor | None:
    """Random directions `width × 256` for sites that are too wide; the same ones for both, so that equal sites stay equal."""
    if width <= WIDEST:
        return None
    random = torch.Generator().manual_seed(seed)
    return torch.randn(width, DIRECTIONS, generator=random, dtype=torch.float64) / DIRECTIONS**0.5


def linear_cka(x: Activations, y: Activations, without: Sequence[int] = (), seed: int = 0) -> float:
    """Linear CKA over all rows, features centred, in float64: 1 for equal, rotated or rescaled rows; NaN where a site is constant.

    One example is in memory at a time. Beyond 512 features both are projected to the same 256 random directions first, which
    makes this an estimate.

    Source:
        Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, arXiv:1905.00414.
    """
    directions = projection(x.shape[-1], seed)
    rows, sums, products = 0, [], []
    for (_, _, a), (_, _, b) in zip(by_example(x), by_example(y), strict=True):
        both = [left_out(v, without).cpu() for v in (a, b)]
        u, v = (h if directions is None else h @ directions for h in both)
        rows += len(u)
        sums = _added(sums, [u.sum(0), v.sum(0)])
        products = _added(products, [u.T @ u, u.T @ v, v.T @ v])
    means = [s / rows for s in sums]
    pairs = ((0, 0), (0, 1), (1, 1))
    xx, xy, yy = (p / rows - torch.outer(means[i], means[j]) for p, (i, j) in zip(products, pairs, strict=True))
    scale = xx.norm() * yy.norm()
    return float(xy.square().sum() / scale) if scale > 0 else float("nan")


def _added(totals: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [t + m for t, m in zip(totals, more, strict=True)] if totals else more
