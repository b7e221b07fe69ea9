"""Codes that compete: the k largest of a row, or the k · B largest of a batch, with or without their signs."""

from __future__ import annotations

import torch
from torch import Tensor

from activarium.dictionaries.recipe import BATCH, SIGNED, Recipe
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.step import Step, base, centred
from activarium.dictionaries.support import Support, decode, encode

AT_ONCE = 512  # rows whose pre-activations exist at a time while the largest of each are found
NEAR = 0.95  # share of the last threshold above which a code may be among the batch's largest


def competing(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor, dead: Tensor, threshold: float) -> Step:
    """One batch of a top-k kind; see `objective`."""
    seen, shift = centred(sae, x)
    signed = recipe.kind in SIGNED
    with torch.no_grad():
        support, found = (
            _of_batch(sae, seen, recipe.k or 1, threshold, signed) if recipe.kind in BATCH else _of_rows(sae, seen, recipe.k or 1, signed)
        )
    codes = encode(sae.encoder, sae.b_enc, shift, found, seen, support)
    unwritten = y - base(sae, x)
    errors = [unwritten - part for part in _nested(codes, sae.W_dec, support, recipe.prefixes)]
    # A row has squared length d_out on average; relative to the batch's spread, rows that differ little count as much.
    unit = (y - y.mean(0)).square().sum().clamp_min(1e-12) if recipe.normalised else len(x)
    loss = torch.stack([e.square().sum() for e in errors]).mean() / unit
    if bool(dead.any()) and recipe.auxiliary:
        size = 1 if recipe.normalised else y.shape[1]
        loss = loss + recipe.auxiliary * size * _revival(sae, seen, shift, errors[-1].detach(), dead, signed)
    kept = found != 0
    fired = torch.zeros(len(dead), dtype=torch.bool, device=x.device)
    fired[support.features[kept]] = True
    smallest = float(found[kept].abs().min()) if recipe.kind in BATCH and bool(kept.any()) else None
    return Step(loss, errors[-1].detach().square().sum(), fired, int(kept.sum()), smallest)


def _of_rows(sae: SAE, x: Tensor, k: int, signed: bool) -> tuple[Support, Tensor]:
    """The k largest of each row. Some rows at a time, in the same memory: their pre-activations are still in the cache when they are sorted."""
    buffer = x.new_empty(AT_ONCE, len(sae.encoder))
    found = []
    for rows in x.split(AT_ONCE):
        pre = torch.addmm(sae.b_enc, rows, sae.encoder.T, out=buffer[: len(rows)])
        values, features = (pre.abs() if signed else pre).topk(k, dim=1, sorted=False)
        found.append((pre.gather(1, features) if signed else values.relu(), features))
    values, features = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Support.of_top(features, len(sae.encoder)), values.flatten()


def _of_batch(sae: SAE, x: Tensor, k: int, threshold: float, signed: bool) -> tuple[Support, Tensor]:
    """The k · B largest codes of the whole batch, zeros left out. Those far below the last threshold are not sorted."""
    pre = torch.addmm(sae.b_enc, x, sae.encoder.T)
    flat = pre.flatten()
    sizes, wanted = flat.abs() if signed else flat, min(k * len(pre), pre.numel())
    places = (sizes > max(NEAR * threshold, 0)).nonzero()[:, 0]
    if len(places) < wanted:  # exact also where the codes have become smaller: then all of them are looked at
        places = (sizes > 0).nonzero()[:, 0]
    if len(places) > wanted:
        places = places[sizes[places].topk(wanted, sorted=False).indices].sort().values
    return Support.of_flat(places, len(pre), pre.shape[1]), flat[places]


def _nested(codes: Tensor, directions: Tensor, support: Support, sizes: tuple[int, ...]) -> list[Tensor]:
    """What the first m features write, for each size m: one product per group, then a running sum."""
    if len(sizes) == 1:
        return [decode(codes, directions, support)]
    written, parts, low = torch.zeros(1, device=codes.device), [], 0
    for high in sizes:
        here = ((support.features >= low) & (support.features < high)).nonzero()[:, 0]
        starts = torch.searchsorted(here, support.starts)
        written = written + decode(codes[here], directions, Support(support.features[here], starts, support.width))
        parts.append(written)
        low = high
    return parts


def _revival(sae: SAE, x: Tensor, shift: Tensor | None, error: Tensor, dead: Tensor, signed: bool) -> Tensor:
    """How badly the largest dead features reconstruct what the live ones leave, as a share (Gao et al. 2024, appendix A.2)."""
    names = dead.nonzero()[:, 0]
    k = min(max(1, error.shape[1] // 2), len(names))
    with torch.no_grad():
        pre = torch.addmm(sae.b_enc[names], x, sae.encoder[names].T)
        places = (pre.abs() if signed else pre).topk(k, dim=1, sorted=False).indices
        values = pre.gather(1, places)
    support = Support.of_top(names[places], sae.design.features)
    codes = encode(sae.encoder, sae.b_enc, shift, (values if signed else values.relu()).flatten(), x, support)
    missed = (error - decode(codes, sae.W_dec, support)).square().sum()
    spread = (error - error.mean(0)).square().sum()
    return torch.nan_to_num(missed / spread.clamp_min(1e-12), posinf=0.0)
