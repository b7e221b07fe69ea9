"""What one batch teaches: the loss, and what is counted beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from activarium.dictionaries.sae import SAE


@dataclass(frozen=True)
class Step:
    """One batch.

    Attributes:
        loss: What is minimised.
        error: Squared error of the whole batch.
        fired: Features with a code in the batch, boolean.
        active: Codes in the batch, one number that is still on the device: no step waits for it.
        threshold: Smallest size of a code that was kept (infinite where none was), or None where no batch decides together.
    """

    loss: Tensor
    error: Tensor
    fired: Tensor
    active: Tensor
    threshold: Tensor | None = None


def base(sae: SAE, x: Tensor) -> Tensor:
    """What is written without any code."""
    return sae.b_dec + linear(x, sae.W_skip) if sae.design.skip else sae.b_dec


def centred(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows as the encoder sees them, without gradients, and what was taken from them."""
    shift = sae.b_dec if sae.design.subtracts_bias else None
    with torch.no_grad():
        return x if shift is None else x - shift, shift


def squared(error: Tensor) -> Tensor:
    """Sum of squares, in one pass."""
    flat = error.flatten()
    return torch.dot(flat, flat)
