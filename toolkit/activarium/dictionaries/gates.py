"""Codes above a threshold: whatever passes its gate is active, and a term of the loss keeps them few."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from activarium.dictionaries.recipe import Recipe
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.step import Step, base, centred, squared
from activarium.dictionaries.support import Support, decode, encode

DENSE = 0.05  # above this share of active codes, dense products are the faster ones
SAMPLE = 64  # rows that tell whether codes are few
STEEP = 4.0  # of the tanh penalty, as Anthropic has it


def standard(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor) -> Step:
    """One batch: squared error, and the sum of codes times the lengths of their directions."""
    size = sae.W_dec.norm(dim=1)
    few = _few(sae, x) if x.device.type == "cpu" else None  # to count codes, an accelerator would have to wait
    if few is not None:
        support, found, seen, shift = few
        codes = encode(sae.encoder, sae.b_enc, shift, found, seen, support)
        error, amount = y - base(sae, x) - decode(codes, sae.W_dec, support), (codes * size[support.features]).sum()
        fired, active = support.totals(torch.ones_like(found)) > 0, torch.tensor(len(found))
    else:
        dense = linear(x - sae.b_dec if sae.design.subtracts_bias else x, sae.encoder, sae.b_enc).relu()
        error, amount = y - base(sae, x) - dense @ sae.W_dec, dense.sum(0) @ size
        fired, active = (dense > 0).any(0), (dense > 0).sum()
    loss = (squared(error) + recipe.strength * amount) / len(x)
    return Step(loss, squared(error.detach()), fired, active)


def _few(sae: SAE, x: Tensor) -> tuple[Support, Tensor, Tensor, Tensor | None] | None:
    """Where the codes are, if they are few enough for sparse arithmetic."""
    seen, shift = centred(sae, x)
    with torch.no_grad():
        sample = torch.addmm(sae.b_enc, seen[:SAMPLE], sae.encoder.T)
        if int((sample > 0).sum()) > 1.2 * DENSE * sample.numel():
            return None  # far from few: the dense way computes them once
        pre = torch.addmm(sae.b_enc, seen, sae.encoder.T).flatten()
        places = (pre > 0).nonzero()[:, 0]
    if len(places) > DENSE * pre.numel():
        return None
    return Support.of_flat(places, len(x), len(sae.encoder)), pre[places], seen, shift


class _Jump(torch.autograd.Function):
    """π · 1[π > θ] and 1[π > θ], whose slopes reach θ through a window around it (Rajamanoharan et al. 2024, arXiv:2407.14435).

    `both`: through the window the slopes reach π too, as in Anthropic's recipe.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float, both: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.width, ctx.both = width, both
        above = (pre > threshold).to(pre.dtype)
        return pre * above, above

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        of_codes, of_gates = slopes
        window = (threshold * of_codes + of_gates) * ((pre - threshold).abs() < ctx.width / 2) / ctx.width
        of_pre = of_codes * (pre > threshold)
        return of_pre + window if ctx.both else of_pre, -window.sum(0), None, None


def jump(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor, dead: Tensor) -> Step:
    """One batch: squared error, how many codes there are (or how far from their target), and a pull on dead features."""
    seen = x - sae.b_dec if sae.design.subtracts_bias else x
    pre = linear(seen, sae.encoder, sae.b_enc)
    codes, gates = _Jump.apply(pre, sae.threshold, recipe.bandwidth, recipe.both)  # pyright: ignore[reportGeneralTypeIssues]
    error = y - base(sae, x) - codes @ sae.W_dec
    if recipe.target:
        amount = 2 / recipe.target * (gates.sum(1) - recipe.target).square().sum()
    elif recipe.penalty == "tanh":
        amount = torch.tanh(STEEP * codes * sae.W_dec.norm(dim=1)).sum()
    else:
        amount = gates.sum()
    loss = squared(error) + recipe.strength * amount
    if recipe.lift and len(dead):
        below = (sae.threshold[dead] - pre[:, dead]).relu() * sae.W_dec[dead].norm(dim=1)
        loss = loss + recipe.lift * below.sum()
    return Step(loss / len(x), squared(error.detach()), (codes > 0).any(0), (codes > 0).sum())


def gated(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor) -> Step:
    """One batch: squared error, that of the gate alone, and the sum of open gates."""
    seen = x - sae.b_dec if sae.design.subtracts_bias else x
    raw = linear(seen, sae.encoder)
    gate = raw + sae.b_gate
    codes = (gate > 0).to(raw.dtype) * (sae.r_mag.exp() * raw + sae.b_mag).relu()
    unwritten = y - base(sae, x)
    error = unwritten - codes @ sae.W_dec
    open_gate = gate.relu()
    # The second path teaches the gate alone: what it writes with does not learn from it (Rajamanoharan et al. 2024, arXiv:2404.16014).
    beside = unwritten.detach() - open_gate @ sae.W_dec.detach()
    loss = (squared(error) + squared(beside) + recipe.strength * open_gate.sum()) / len(x)
    return Step(loss, squared(error.detach()), (codes > 0).any(0), (codes > 0).sum())
