"""Cells whose effect is zero by the model's structure: decided from token ids and the model's own paths, never from floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.patching.nodes import Columns, Family
from activarium.analyses.patching.sides import Sides
from activarium.metrics import Metric

# Of the last block these act on their own row only; keys and values reach other rows.
OWN_ROW = ("resid_post", "resid_mid", "attn.out", "attn.proj", "attn.z", "attn.q", "cross.out", "cross.z", "cross.q", "resid_cross")
ALL_OF_MLP = ("mlp.in", "mlp.pre", "mlp.act", "mlp.up", "mlp.post", "mlp.proj", "mlp.out")


def known_zero(model: Any, sides: Sides, family: Family, columns: Columns) -> np.ndarray:
    """Boolean `pair layer column`: patching there cannot change the metric.

    Equal inputs give equal values. In a causal model, rows before the first differing token hold the same values in both runs, and rows after the last one that the
    metric reads do not reach it. In the last block, rows that the answer does not read have no path to it.
    """
    pairs = sides.pairs
    width = 1 if columns.index is None else columns.index.shape[1]
    zero = np.zeros((len(pairs), len(family.sites), width), dtype=bool)
    # An encoder knows nothing of the decoder's inputs.
    same = _same_inputs(sides, ["encoder"] if family.space == "encoder" else pairs.spaces)
    zero |= same[:, None, None]
    if columns.index is None:
        return zero
    if family.space in pairs.first_difference and model.looks_back(family.space):
        alike = _same_inputs(sides, [s for s in pairs.spaces if s != family.space])  # what a decoder sees of its encoder
        zero |= (alike[:, None] & (columns.index < pairs.first_difference[family.space][:, None]))[:, None]
        if model.sites["logits"].rows == family.space:
            zero |= (columns.index > pairs.metric.places(columns.lengths).max(1)[:, None])[:, None]
    last = np.array([_last_own_row(model, site) for site in family.sites])
    if last.any():
        unread = ~_read(model, sides, family.space, columns)
        zero |= last[None, :, None] & unread[:, None]
    return zero & (columns.index >= 0)[:, None]


def _same_inputs(sides: Sides, spaces: Sequence[str]) -> np.ndarray:
    pairs = sides.pairs
    both = [(pairs.clean.data[s], pairs.corrupt.data[s]) for s in spaces]
    return np.array([all(torch.equal(a[i], b[i]) for a, b in both) for i in range(len(pairs))])


def _last_own_row(model: Any, site: str) -> bool:
    stem, _, leaf = site.rpartition("blocks.")
    number, _, short = leaf.partition(".")
    depth = sum(
        1
        for name in model.sites
        if name.startswith(f"{stem}blocks.") and name.endswith(".resid_post") and name.count(".") == stem.count(".") + 2
    )
    return number.isdigit() and int(number) == depth - 1 and short in (*OWN_ROW, *ALL_OF_MLP) and _answered_by(model, stem.rstrip("."))


def _answered_by(model: Any, space: str) -> bool:
    """Does this stack lead to the answer, rather than to another stack?"""
    return space == "" or space == model.sites["logits"].rows


def _read(model: Any, sides: Sides, space: str, columns: Columns) -> np.ndarray:
    """Boolean `pair column`: does the answer read this row?"""
    index = columns.index
    assert index is not None
    site = model.sites["logits"]
    if site.rows == space:
        wanted = sides.pairs.metric.places(columns.lengths)
        return (index[:, :, None] == wanted[:, None, :]).any(-1)
    return columns.per_pair(pooled_rows(model, sides, space))[..., 0] > 0


def pooled_rows(model: Any, sides: Sides, space: str) -> torch.Tensor:
    """1 at each row that a pooling head reads, else 0, `row 1`: rows it does not take have a gradient of exactly zero."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(model.sites["logits"].shape[-1], generator=generator) + 0.5
    anything = Metric(lambda logits: (logits * weights.to(logits)).sum(-1), name="anything")
    last = [n for n in model.sites if n.endswith(".resid_post") and model.sites[n].rows == space][-1]
    recording = model.run(sides.base, read=last, metrics=anything, grad=True)
    return (recording.backward()[last].tensor != 0).any(-1, keepdim=True).float()
