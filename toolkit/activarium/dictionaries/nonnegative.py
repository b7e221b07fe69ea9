"""Nonnegative least squares of many rows on the same few directions."""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 1000  # rounds through all features; a row stops by itself long before, unless directions nearly repeat one another
AT_ONCE = 1 << 17  # codes that are solved together: they stay in the processor's cache


def nonnegative(products: Tensor, gram: Tensor, *, sweeps: int = SWEEPS) -> Tensor:
    """The codes g ≥ 0 that minimise ‖x − g D‖² in each row, by cyclic coordinate descent.

    A coordinate that is better off below zero is set to exactly zero, so codes come out sparse; multiplicative steps only approach
    zero. A row stops when a round moves none of its codes by more than 6e-6 of its largest (2e-12 in float64): no row's codes depend on
    another row.

    Args:
        products: x Dᵀ, `row feature`.
        gram: D Dᵀ, `feature feature`. A feature of length zero gets the code zero.
        sweeps: Most rounds for a row.
    """
    rows = max(1, AT_ONCE // max(1, len(gram)))
    made = [_solved(part.T.contiguous(), gram, sweeps).T for part in products.split(rows)]
    return torch.cat(made) if made else torch.zeros_like(products)


def _solved(products: Tensor, gram: Tensor, sweeps: int) -> Tensor:
    """The same with features first, so that one feature's codes lie together in memory."""
    close = torch.finfo(products.dtype).eps ** 0.75  # 6e-6 of a row's largest code in float32; nearer, sums of products only jitter
    sizes = gram.diagonal().tolist()
    made, left = torch.zeros_like(products), torch.arange(products.shape[1], device=products.device)
    wanted, codes = products, torch.zeros_like(products)
    for _ in range(sweeps):
        moved = torch.zeros_like(codes[0])
        for feature, size in enumerate(sizes):
            if size <= 0:
                continue
            before = codes[feature].clone()
            codes[feature] = (before + (wanted[feature] - gram[feature] @ codes) / size).clamp_min_(0)
            torch.maximum(moved, (codes[feature] - before).abs_().mul_(size**0.5), out=moved)
        moving = moved > close * (codes * gram.diagonal().clamp_min(0).sqrt()[:, None]).amax(0)
        if moving.all():
            continue
        made[:, left[~moving]] = codes[:, ~moving]
        left, wanted, codes = left[moving], wanted[:, moving].contiguous(), codes[:, moving].contiguous()
        if not len(left):
            return made
    made[:, left] = codes
    return made
