"""A norm in closed form, found by trying it: its value, its value at a frozen scale, and its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from activarium.errors import InputError

LARGE, SMALL = 1e4, 1e-3


class Norm:
    """`gain * centred(x) / sqrt(mean(centred(x)^2) + eps) + bias`: LayerNorm, RMSNorm, or a gain alone (LayerScale, or no norm at all).

    Attributes:
        gain: Factor per feature.
        bias: Shift per feature.
        centres: Is the mean over features taken off?
        eps: What is added to the mean square; None for a gain alone.
    """

    def __init__(self, law: Callable[[Tensor], Tensor], like: Tensor, name: str) -> None:
        """Try it.

        Args:
            law: The norm, on `row d_model`.
            like: A few rows that it meets; the closed form must agree on them.
            name: What it is called in the error.

        Raises:
            InputError: It is something else.
        """
        signs = torch.ones_like(like[0])
        signs[1::2] = -1  # mean 0 and mean square 1
        with torch.no_grad():
            tried = law(torch.stack([0 * signs, signs, LARGE * signs, LARGE * (signs + 1), SMALL * signs])).to(_wide(like))
            self.bias = tried[0]
            one, large, shifted, small = tried[1:] - self.bias
            signs = signs.to(_wide(like))
            self.eps: float | None = None
            self.gain = one * signs
            self.centres = torch.allclose(shifted, large, rtol=1e-2, atol=1e-2 * float(large.abs().max()))
            if not torch.allclose(large, LARGE * one, rtol=1e-2):
                self.gain = large * signs
                scale = (small * self.gain * signs).sum() / (SMALL * self.gain.square().sum())
                self.eps = max(float(scale**-2) - SMALL**2, 0.0)
            wanted, found = law(like).to(_wide(like)), self(like)
        limit = 5e-2 if like.dtype == torch.bfloat16 else 1e-3
        if not float((wanted - found).abs().max()) <= limit * float(wanted.abs().max()):
            raise InputError(
                f"{name} is neither LayerNorm, RMSNorm nor a gain, so effects are not carried through it. Patch nodes instead."
            )

    def __call__(self, rows: Tensor) -> Tensor:
        """Normalised rows."""
        return self.frozen(self.scale(rows), rows) + self.bias

    def centred(self, rows: Tensor) -> Tensor:
        """Rows without their mean, where the norm takes it off."""
        rows = rows.to(self.gain.dtype)
        return rows - rows.mean(-1, keepdim=True) if self.centres else rows

    def scale(self, rows: Tensor) -> Tensor:
        """The factor `… 1` that it applies to each row."""
        if self.eps is None:
            return self.gain.new_ones(*rows.shape[:-1], 1)
        return (self.centred(rows).square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def frozen(self, scale: Tensor, rows: Tensor) -> Tensor:
        """What it makes of parts of rows whose scale is held: linear, and without the bias."""
        return scale * self.gain * self.centred(rows)

    def back(self, rows: Tensor, gradient: Tensor, *, frozen: bool = False) -> Tensor:
        """Gradient `… row d_model` at its input from that at its output, at these rows.

        Args:
            rows: Its input, `row d_model`.
            gradient: At its output.
            frozen: Hold the scale (the LN-rule), rather than let it react.
        """
        scale, gained = self.scale(rows), gradient.to(self.gain.dtype) * self.gain
        flow = scale * self.centred(gained)
        if frozen or self.eps is None:
            return flow
        inside = self.centred(rows)
        return flow - scale**3 * inside * (inside * gained).mean(-1, keepdim=True)


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32
