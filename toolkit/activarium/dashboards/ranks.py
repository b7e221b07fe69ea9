"""The largest few of every line, ties by the lower number, the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Numbers and scores of the largest in each line of `line number`, the largest first; -inf is never among them (number -1).

    Args:
        scores: float32, no NaN.
        count: How many of each line.
    """
    count = min(count, scores.shape[1])
    bits = (scores.float() + 0.0).contiguous().view(torch.int32)  # + 0.0: -0 is 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    # Score and number in one whole number: no two are equal, so nothing is left to the order of the search.
    number = torch.arange(scores.shape[1], device=scores.device)
    place = (ordered * (1 << 32) + ((1 << 32) - 1 - number)).topk(count, dim=1).indices
    found = scores.gather(1, place).float()
    return torch.where(found == -torch.inf, -1, place), found
