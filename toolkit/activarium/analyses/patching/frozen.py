"""Norms with their scale held as it was: linear maps, through which every part of a sum can be followed alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from activarium.errors import InputError

FITS = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the largest value: rounding; 16-bit floats get 5e-2


@dataclass(frozen=True)
class Frozen:
    """`after = scale * gain * (before, perhaps centred) + bias`, row by row, as it was in one run.

    Attributes:
        centred: Is the mean over features taken away first?
        gain: Factor per feature.
        bias: What is added at the end.
        scale: One factor per row.
    """

    centred: bool
    gain: Tensor
    bias: Tensor
    scale: Tensor

    def back(self, direction: Tensor) -> Tensor:
        """What a direction `row d_model` of the outputs is for the inputs."""
        through = direction * self.gain
        if self.centred:
            through = through - through.mean(-1, keepdim=True)
        return through * self.scale[:, None]


def freeze(model: Any, path: str | None, before: Tensor, after: Tensor, what: str) -> Frozen:
    """The linear map that a norm, a LayerScale or nothing at all was in one run.

    Args:
        model: The runner that has the module.
        path: Dotted path of the module, or None if none stands there.
        before: Its input, `row d_model` in float64.
        after: Its output.
        what: Its name in messages.

    Raises:
        InputError: It is no norm, no factor and no identity.
    """
    gain, bias = (
        (torch.ones_like(before[0]), torch.zeros_like(before[0])) if path is None else _gain_and_bias(model.module(path), model, before)
    )
    gaps = []
    for centred in (False, True):
        inside = gain * (before - before.mean(-1, keepdim=True) if centred else before)
        scale = (inside * (after - bias)).sum(-1) / inside.square().sum(-1).clamp_min(1e-300)
        gaps.append(float((inside * scale[:, None] + bias - after).abs().max()))
        if gaps[-1] <= FITS.get(model.dtype, 5e-2) * float(after.abs().max()):
            return Frozen(centred, gain, bias, scale)
    raise InputError(
        f"What {what} gives is not its input times one factor per row and one per feature (it is off by {min(gaps):.2g}), so its parts "
        "cannot be followed alone. Use activation_patching, which needs no such form."
    )


def _gain_and_bias(module: Any, model: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Found by running it: on zeros a norm gives its bias, on signs its gain (up to a factor that the scale takes in)."""
    signs = torch.ones(like.shape[-1], dtype=model.dtype, device=model.device)
    signs[1::2] = -1  # mean 0 and mean square 1, so LayerNorm and RMSNorm both leave it as it is
    with torch.no_grad():
        up, down, none = (module(s[None])[0].to(like) for s in (signs, -signs, torch.zeros_like(signs)))
    return (up - down) / 2 * signs.to(like), none
