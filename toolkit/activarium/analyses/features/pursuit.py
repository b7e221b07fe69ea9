"""Gradient pursuit: codes that are looked for row by row in given directions, without an encoder."""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 1 << 24  # codes that exist at a time


@torch.no_grad()
def gradient_pursuit(rows: Tensor, directions: Tensor, counts: Tensor) -> Tensor:
    """Codes `row feature`, none below 0, that give rows back with few of the directions.

    In each step a row takes up the direction along which most of its residual lies; then all codes taken up so far move along their
    gradient, as far as the residual shrinks, and those below 0 become 0.

    Args:
        rows: `row d_out`, what the decoder adds without any code taken off.
        directions: `feature d_out`, of length 1.
        counts: How many directions each row may take up.

    Source:
        Blumensath & Davies 2008, Gradient pursuits, IEEE Transactions on Signal Processing 56; for dictionaries of activations:
        Smith 2024, Replacing SAE encoders with inference-time optimisation.
    """
    at_once = max(1, AT_ONCE // len(directions))
    parts = zip(rows.split(at_once), counts.split(at_once), strict=True)
    return torch.cat([_pursued(part, directions, allowed) for part, allowed in parts])


def _pursued(rows: Tensor, directions: Tensor, counts: Tensor) -> Tensor:
    codes = rows.new_zeros(len(rows), len(directions))
    taken = torch.zeros_like(codes, dtype=torch.bool)
    residual, tiny = rows, torch.finfo(rows.dtype).tiny
    for step in range(int(counts.max()) if len(counts) else 0):
        along = residual @ directions.T
        going = counts > step
        taken[going, along.argmax(1)[going]] = True
        gradient = along * (taken & going[:, None])
        change = gradient @ directions
        size = (change * residual).sum(1) / change.square().sum(1).clamp_min(tiny)
        codes = (codes + size[:, None] * gradient).relu()
        residual = rows - codes @ directions
    return codes
