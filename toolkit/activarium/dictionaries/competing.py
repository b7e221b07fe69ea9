"""Codes that compete: the k largest of a row, or the k · B largest of a batch, with or without their signs."""

from __future__ import annotations

import torch
from torch import Tensor

from activarium.dictionaries.recipe import BATCH, SIGNED, Recipe
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.step import Step, base, centred, squared
from activarium.dictionaries.support import Support, decode, encode

AT_ONCE = 512  # rows whose pre-activations exist at a time while the largest of each are found, where a cache holds them
LANES = 16  # features of which only the largest is looked at first
NEAR = 0.95  # share of the last threshold above which a code may be among the batch's largest


def competing(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor, dead: Tensor, threshold: Tensor) -> Step:
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
    unit = squared(y - y.mean(0)).clamp_min(1e-12) if recipe.normalised else len(x)
    each = [squared(e) for e in errors]
    loss = torch.stack(each).mean() / unit
    if len(dead) and recipe.auxiliary:
        size = 1 if recipe.normalised else y.shape[1]
        loss = loss + recipe.auxiliary * size * _revival(sae, seen, shift, errors[-1].detach(), dead, signed)
    kept = found != 0
    fired = support.totals(kept.to(found.dtype)) > 0
    smallest = found.abs().where(kept, torch.inf).amin() if recipe.kind in BATCH and len(found) else None
    return Step(loss, each[-1].detach(), fired, kept.sum(), smallest)


def _of_rows(sae: SAE, x: Tensor, k: int, signed: bool) -> tuple[Support, Tensor]:
    """The k largest of each row. Some rows at a time, in the same memory: their pre-activations are still in the cache when they are searched."""
    at_once = AT_ONCE if x.device.type == "cpu" else len(x)
    buffer = x.new_empty(at_once, len(sae.encoder))
    found = []
    for rows in x.split(at_once):
        pre = torch.addmm(sae.b_enc, rows, sae.encoder.T, out=buffer[: len(rows)])
        features = largest(pre.abs() if signed else pre, k)
        values = pre.gather(1, features)
        found.append((values if signed else values.relu(), features))
    values, features = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Support.of_top(features, len(sae.encoder)), values.flatten()


def largest(values: Tensor, k: int) -> Tensor:
    """The k largest of each row, `row k`, in no order.

    Features stand in groups of `LANES`. Whatever is among the k largest stands in one of the k groups with the largest maxima, so
    only those are searched: exact, and cheaper than searching all.
    """
    groups = values.shape[1] // LANES
    if values.shape[1] % LANES or 4 * k > groups:
        return values.topk(k, dim=1, sorted=False).indices
    chosen = values.view(-1, LANES, groups).amax(1).topk(k, dim=1, sorted=False).indices
    lanes = torch.arange(0, values.shape[1], groups, device=values.device)[:, None]
    candidates = (chosen[:, None, :] + lanes).flatten(1)
    return candidates.gather(1, values.gather(1, candidates).topk(k, dim=1, sorted=False).indices)


def _of_batch(sae: SAE, x: Tensor, k: int, threshold: Tensor, signed: bool) -> tuple[Support, Tensor]:
    """The k · B largest codes of the whole batch, zeros left out. Those far below the last threshold are not sorted."""
    pre = torch.addmm(sae.b_enc, x, sae.encoder.T)
    flat = pre.flatten()
    sizes, wanted = flat.abs() if signed else flat, min(k * len(pre), pre.numel())
    places = (sizes > (NEAR * threshold).clamp_min(0).to(sizes.dtype)).nonzero()[:, 0]
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
    k = min(max(1, error.shape[1] // 2), len(dead))
    with torch.no_grad():
        pre = torch.addmm(sae.b_enc[dead], x, sae.encoder[dead].T)
        places = (pre.abs() if signed else pre).topk(k, dim=1, sorted=False).indices
        values = pre.gather(1, places)
    support = Support.of_top(dead[places], sae.design.features)
    codes = encode(sae.encoder, sae.b_enc, shift, (values if signed else values.relu()).flatten(), x, support)
    missed, spread = squared(error - decode(codes, sae.W_dec, support)), squared(error - error.mean(0))
    return torch.nan_to_num(missed / spread.clamp_min(1e-12), posinf=0.0)
