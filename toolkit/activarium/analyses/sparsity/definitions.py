"""What people call sparse in a smooth layer, each as a score: a number is set to zero where it scores no higher than a threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from activarium.edits import Edit, Replace, Threshold, Where


def size(values: Tensor) -> Tensor:
    """|a|, in float32 or better, which holds every 16-bit number exactly."""
    return (values if values.dtype == torch.float64 else values.float()).abs()


def share_of_largest(values: Tensor) -> Tensor:
    """|a| over the largest |a| of its row; a row of zeros scores 0."""
    sizes = size(values)
    return (sizes / sizes.amax(-1, keepdim=True)).nan_to_num(0.0)


def positive_part(values: Tensor) -> Tensor:
    """A where it is positive, else 0."""
    return (values if values.dtype == torch.float64 else values.float()).clamp_min(0)


def energy_below(values: Tensor) -> Tensor:
    """Share of the row's Σa² held by this number and all smaller ones, float64; a row of zeros scores 0."""
    sizes = size(values).double()
    scaled = (sizes / sizes.amax(-1, keepdim=True)).nan_to_num(0.0)  # squares of huge numbers do not overflow
    order = scaled.argsort(stable=True, dim=-1)
    reached = scaled.gather(-1, order).square().cumsum(-1)
    shares = (reached / reached[..., -1:]).nan_to_num(0.0)
    return torch.zeros_like(shares).scatter(-1, order, shares)


@dataclass(frozen=True)
class Definition:
    """One definition of what may be dropped.

    Attributes:
        name: What it is called.
        score: Values `row neuron` → scores of the same shape, from 0 up; dropped is what scores no higher than the threshold.
        shared: One threshold for all layers, rather than one for each.
        signed: The value itself is compared, so that everything below zero goes as well.
    """

    name: str
    score: Callable[[Tensor], Tensor]
    shared: bool = False
    signed: bool = False

    def edit(self, site: str, threshold: float, where: Where) -> Edit:
        """The edit that really drops what this definition calls inactive."""
        if self.score in (size, positive_part):
            return Threshold(site, threshold, signed=self.signed, where=where)

        def dropped(values: Tensor) -> Tensor:
            return torch.where(self.score(values) > threshold, values, torch.zeros_like(values))

        return Replace(site, dropped, where=where)


ABSOLUTE = Definition("absolute", size, shared=True)
RELATIVE = Definition("relative", share_of_largest, shared=True)
FATRELU = Definition("FATReLU", positive_part, signed=True)
CATS = Definition("CATS", size)
ENERGY = Definition("energy", energy_below, shared=True)
OF_NEURONS = (ABSOLUTE, RELATIVE, FATRELU, CATS, ENERGY)
TEAL_SITES = ("attn.in", "attn.z", "mlp.in", "mlp.post")  # inputs of q/k/v, o, gate/up, down
