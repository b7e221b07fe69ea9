"""Codes above a threshold: whatever passes its gate is active, and a term of the loss keeps them few."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from activarium.dictionaries.recipe import Recipe
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.step import Step, base, centred
from activarium.dictionaries.support import Support, decode, encode

DENSE = 0.05  # above this share of active codes, dense products are the faster ones
STEEP = 4.0  # of the tanh penalty, as Anthropic has it


def standard(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor) -> Step:
    """One batch: squared error, and the sum of codes times the lengths of their directions."""
    seen, shift = centred(sae, x)
    with torch.no_grad():
        pre = torch.addmm(sae.b_enc, seen, sae.encoder.T)
        places = (pre > 0).flatten().nonzero()[:, 0]
    size = sae.W_dec.norm(dim=1)
    unwritten = y - base(sae, x)
    if len(places) <= DENSE * pre.numel():
        support = Support.of_flat(places, len(x), pre.shape[1])
        codes = encode(sae.encoder, sae.b_enc, shift, pre.flatten()[places], seen, support)
        error, amount = unwritten - decode(codes, sae.W_dec, support), (codes * size[support.features]).sum()
    else:
        dense = linear(x - sae.b_dec if shift is not None else x, sae.encoder, sae.b_enc).relu()
        error, amount = unwritten - dense @ sae.W_dec, (dense * size).sum()
    loss = (error.square().sum() + recipe.strength * amount) / len(x)
    return Step(loss, error.detach().square().sum(), (pre > 0).any(0), len(places))


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
    loss = error.square().sum() + recipe.strength * amount
    if recipe.lift and bool(dead.any()):
        below = (sae.threshold[dead] - pre[:, dead]).relu() * sae.W_dec[dead].norm(dim=1)
        loss = loss + recipe.lift * below.sum()
    return Step(loss / len(x), error.detach().square().sum(), (codes > 0).any(0), int((codes > 0).sum()))


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
    loss = (error.square().sum() + beside.square().sum() + recipe.strength * open_gate.sum()) / len(x)
    return Step(loss, error.detach().square().sum(), (codes > 0).any(0), int((codes > 0).sum()))
