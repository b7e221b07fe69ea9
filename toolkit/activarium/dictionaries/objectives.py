"""What each kind of dictionary is trained for: its codes in training, and its loss, in the space of scaled rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from activarium.dictionaries.recipe import Recipe
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.support import Support, decode, encode

DENSE = 0.05  # above this share of active codes, dense products are the faster ones
AT_ONCE = 512  # rows whose pre-activations exist at a time while the largest of each are found
NEAR = 0.95  # share of the last threshold above which a code may be among the batch's largest


@dataclass(frozen=True)
class Step:
    """One batch.

    Attributes:
        loss: What is minimised.
        error: Squared error of the whole batch.
        fired: Features with a code in the batch, boolean.
        active: Codes in the batch.
        threshold: Smallest code that was kept, or None (`batchtopk`, `matryoshka`).
    """

    loss: Tensor
    error: Tensor
    fired: Tensor
    active: int
    threshold: float | None = None


def objective(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor, dead: Tensor, threshold: float) -> Step:
    """One batch of rows `x` and targets `y`, both scaled.

    Args:
        recipe: How.
        sae: What is trained.
        x: `row d_in`.
        y: `row d_out`.
        dead: Boolean per feature.
        threshold: The running threshold of `batchtopk`, for finding the largest codes sooner.
    """
    if recipe.kind in ("topk", "batchtopk", "matryoshka"):
        return _top(recipe, sae, x, y, dead, threshold)
    return {"standard": _standard, "jumprelu": _jump, "gated": _gated}[recipe.kind](recipe, sae, x, y)


# --- k codes of a row, or k · B of a batch


def _top(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor, dead: Tensor, threshold: float) -> Step:
    shift = sae.b_dec if sae.design.subtracts_bias else None
    with torch.no_grad():
        seen = x - shift if shift is not None else x
        kept = _of_rows(sae, seen, recipe.k or 1) if recipe.kind == "topk" else _of_batch(sae, seen, recipe.k or 1, threshold)
        support, found = kept
    codes = encode(sae.encoder, sae.b_enc, shift, found, seen, support)
    base = sae.b_dec + (linear(x, sae.W_skip) if sae.design.skip else 0)
    if recipe.kind == "matryoshka":
        parts = _nested(codes, sae.W_dec, support, recipe.prefixes)
        errors = [y - base - part for part in parts]
        error, loss = errors[-1], torch.stack([e.square().sum() for e in errors]).sum() / len(x) / len(errors)
    else:
        error = y - base - decode(codes, sae.W_dec, support)
        loss = error.square().sum() / len(x)
    if bool(dead.any()) and recipe.auxiliary:
        loss = loss + recipe.auxiliary * _revival(sae, seen, shift, error.detach(), dead)
    fired = torch.zeros(len(dead), dtype=torch.bool, device=x.device)
    fired[support.features[found > 0]] = True
    positive = found[found > 0]
    smallest = float(positive.min()) if recipe.kind != "topk" and len(positive) else None
    return Step(loss, error.detach().square().sum(), fired, len(positive), smallest)


def _of_rows(sae: SAE, x: Tensor, k: int) -> tuple[Support, Tensor]:
    """The k largest of each row. Some rows at a time, in the same memory: their pre-activations are still in the cache when they are sorted."""
    buffer = x.new_empty(AT_ONCE, len(sae.encoder))
    found = []
    for rows in x.split(AT_ONCE):
        pre = torch.addmm(sae.b_enc, rows, sae.encoder.T, out=buffer[: len(rows)])
        found.append(pre.topk(k, dim=1, sorted=False))
    values, features = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Support.of_top(features, len(sae.encoder)), values.relu().flatten()


def _of_batch(sae: SAE, x: Tensor, k: int, threshold: float) -> tuple[Support, Tensor]:
    """The k · B largest codes of the whole batch, zeros left out. Those far below the last threshold are not sorted."""
    pre = torch.addmm(sae.b_enc, x, sae.encoder.T)
    flat, wanted = pre.flatten(), min(k * len(pre), pre.numel())
    places = (flat > max(NEAR * threshold, 0)).nonzero()[:, 0]
    if len(places) < wanted:  # exact also where the codes have become smaller: then all of them are looked at
        places = (flat > 0).nonzero()[:, 0]
    if len(places) > wanted:
        places = places[flat[places].topk(wanted, sorted=False).indices].sort().values
    return Support.of_flat(places, len(pre), pre.shape[1]), flat[places]


def _nested(codes: Tensor, directions: Tensor, support: Support, sizes: tuple[int, ...]) -> list[Tensor]:
    """What the first m features write, for each size m: one product per group, then a running sum."""
    written, parts, low = torch.zeros(1, device=codes.device), [], 0
    for high in sizes:
        here = ((support.features >= low) & (support.features < high)).nonzero()[:, 0]
        starts = torch.searchsorted(here, support.starts)
        written = written + decode(codes[here], directions, Support(support.features[here], starts, support.width))
        parts.append(written)
        low = high
    return parts


def _revival(sae: SAE, x: Tensor, shift: Tensor | None, error: Tensor, dead: Tensor) -> Tensor:
    """How badly the largest dead features reconstruct what the live ones leave (Gao et al. 2024, appendix A.2), times d_out.

    The factor puts it in the unit of the loss, where a row has squared length d_out.
    """
    names = dead.nonzero()[:, 0]
    k = min(max(1, error.shape[1] // 2), len(names))
    with torch.no_grad():
        values, places = torch.addmm(sae.b_enc[names], x, sae.encoder[names].T).topk(k, dim=1, sorted=False)
    support = Support.of_top(names[places], sae.design.features)
    codes = encode(sae.encoder, sae.b_enc, shift, values.relu().flatten(), x, support)
    missed = (error - decode(codes, sae.W_dec, support)).square().sum()
    spread = (error - error.mean(0)).square().sum()
    return error.shape[1] * torch.nan_to_num(missed / spread.clamp_min(1e-12), posinf=0.0)


# --- codes above a threshold


def _standard(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor) -> Step:
    shift = sae.b_dec if sae.design.subtracts_bias else None
    with torch.no_grad():
        seen = x - shift if shift is not None else x
        pre = torch.addmm(sae.b_enc, seen, sae.encoder.T)
        places = (pre > 0).flatten().nonzero()[:, 0]
    size = sae.W_dec.norm(dim=1)
    base = sae.b_dec + (linear(x, sae.W_skip) if sae.design.skip else 0)
    if len(places) <= DENSE * pre.numel():
        support = Support.of_flat(places, len(x), pre.shape[1])
        codes = encode(sae.encoder, sae.b_enc, shift, pre.flatten()[places], seen, support)
        error, amount = y - base - decode(codes, sae.W_dec, support), (codes * size[support.features]).sum()
    else:
        dense = linear(x - sae.b_dec if shift is not None else x, sae.encoder, sae.b_enc).relu()
        error, amount = y - base - dense @ sae.W_dec, (dense * size).sum()
    loss = (error.square().sum() + recipe.strength * amount) / len(x)
    return Step(loss, error.detach().square().sum(), (pre > 0).any(0), len(places))


class _Jump(torch.autograd.Function):
    """π · 1[π > θ] and 1[π > θ], whose slopes reach θ through a window around it (Rajamanoharan et al. 2024, arXiv:2407.14435)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        above = (pre > threshold).to(pre.dtype)
        return pre * above, above

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        of_codes, of_gates = slopes
        window = ((pre - threshold).abs() < ctx.width / 2).to(pre.dtype) / ctx.width
        of_threshold = (-(threshold * of_codes + of_gates) * window).sum(0)
        return of_codes * (pre > threshold), of_threshold, None


def _jump(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor) -> Step:
    seen = x - sae.b_dec if sae.design.subtracts_bias else x
    pre = linear(seen, sae.encoder, sae.b_enc).relu()
    codes, gates = _Jump.apply(pre, sae.threshold, recipe.bandwidth)  # pyright: ignore[reportGeneralTypeIssues]
    error = y - sae.b_dec - (linear(x, sae.W_skip) if sae.design.skip else 0) - codes @ sae.W_dec
    loss = (error.square().sum() + recipe.strength * gates.sum()) / len(x)
    return Step(loss, error.detach().square().sum(), (codes > 0).any(0), int((codes > 0).sum()))


def _gated(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor) -> Step:
    seen = x - sae.b_dec if sae.design.subtracts_bias else x
    raw = linear(seen, sae.encoder)
    gate = raw + sae.b_gate
    codes = (gate > 0).to(raw.dtype) * (sae.r_mag.exp() * raw + sae.b_mag).relu()
    base = sae.b_dec + (linear(x, sae.W_skip) if sae.design.skip else 0)
    error = y - base - codes @ sae.W_dec
    open_gate = gate.relu()
    # The second path teaches the gate alone: what it writes with does not learn from it (Rajamanoharan et al. 2024, arXiv:2404.16014).
    beside = y - base.detach() - open_gate @ sae.W_dec.detach()
    loss = (error.square().sum() + beside.square().sum() + recipe.strength * open_gate.sum()) / len(x)
    return Step(loss, error.detach().square().sum(), (codes > 0).any(0), int((codes > 0).sum()))
