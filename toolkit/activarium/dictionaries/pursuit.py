"""Matching pursuit: codes one after another, each the feature that is most like what the ones before it left."""

from __future__ import annotations

import torch
from torch import Tensor


def pursue(x: Tensor, directions: Tensor, most: int, residual: float, repeats: bool) -> Tensor:
    """Codes `row feature` of rows `row d_in`, dense, never negative; gradients flow through their sizes, not through the choice.

    A row is finished when no feature is like its rest, when its rest is shorter than `residual` (0 for never) or, without `repeats`,
    when a feature was chosen again; that last code still counts, as in the library that trains such dictionaries.

    Args:
        x: Rows, `b_dec` already taken off.
        directions: `feature d_in`.
        most: Codes that are tried in a row.
        residual: Length of a rest that is short enough.
        repeats: Whether a feature may be chosen again and again, its code growing.

    Source:
        Mallat and Zhang 1993, Matching pursuits with time-frequency dictionaries, doi:10.1109/78.258082.
    """
    rest, alive = x, torch.arange(len(x), device=x.device)
    chosen = torch.zeros(len(x), len(directions), dtype=torch.bool, device=x.device)
    made: list[tuple[Tensor, Tensor, Tensor]] = []  # row, feature, code
    for _ in range(most):
        with torch.no_grad():
            best = (rest @ directions.T).argmax(1)  # of equal ones the lower feature
        along = directions[best]
        size = (rest * along).sum(1).relu()
        made.append((alive, best, size))
        rest = rest - size[:, None] * along
        with torch.no_grad():
            on = size > 0
            if not repeats:
                on &= ~chosen[alive, best]
            if residual > 0:
                on &= rest.norm(dim=1) >= residual
            chosen[alive, best] = True
        alive, rest = alive[on], rest[on]
        if not len(alive):
            break
    rows, features, sizes = (torch.cat(parts) for parts in zip(*made, strict=True))
    return x.new_zeros(len(x), len(directions)).index_put((rows, features), sizes, accumulate=True)
