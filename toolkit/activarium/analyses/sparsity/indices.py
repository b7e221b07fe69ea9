"""Six numbers that say how unevenly a row is spread; none needs a threshold."""

from __future__ import annotations

import torch
from torch import Tensor

INDICES = ("hoyer", "gini", "participation ratio", "entropy count", "energy 90", "kurtosis")


def indices(values: Tensor) -> Tensor:
    """`row index` of values `row neuron`: six numbers in the order of `INDICES`, NaN where one is not defined."""
    a = values.double()
    n = a.shape[1]
    a = a / a.abs().amax(1, keepdim=True)  # nothing overflows; a row of zeros becomes NaN, and so do its indices
    size = a.abs().sort(1).values
    energy = size.square()
    total = energy.sum(1)
    root = n**0.5
    hoyer = (root - size.sum(1) / total.sqrt()) / (root - 1)
    weights = 2 * torch.arange(1, n + 1, dtype=a.dtype, device=a.device) - n - 1
    gini = (size @ weights) / (n * size.sum(1))
    participation = total.square() / energy.square().sum(1) / n
    entropy = torch.special.entr(energy / total[:, None]).sum(1).exp() / n
    largest_first = energy.flip(1).cumsum(1)
    energy_90 = ((largest_first < 0.9 * largest_first[:, -1:]).sum(1) + 1).to(a.dtype) / n
    away = (a - a.mean(1, keepdim=True)).square()
    kurtosis = away.square().mean(1) / away.mean(1).square()
    kurtosis[a.amax(1) == a.amin(1)] = torch.nan  # equal numbers: what is left of their variance is rounding
    answer = torch.stack([hoyer, gini, participation, entropy, energy_90, kurtosis], 1)
    return torch.where(total.isnan()[:, None], torch.nan, answer)
