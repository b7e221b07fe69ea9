"""From effects per pair to a Grid that can never show an unscaled or unlabelled number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.analyses.patching.nodes import Columns, Family
from activarium.analyses.patching.sides import Sides, Totals
from activarium.results import Grid


def grid(
    family: Family,
    columns: Columns,
    effects: np.ndarray,
    zero: np.ndarray,
    sides: Sides,
    totals: Totals,
    *,
    title: str,
    normalise: bool,
    notes: Mapping[str, Any],
    unsigned: bool = False,
) -> Grid:
    """Effects `pair layer column node` as a Grid: mean over the pairs that have the row, with masks and both metrics.

    Args:
        family: What was patched.
        columns: Which rows make which column.
        effects: Change of the metric per pair; NaN where a pair has no such row.
        zero: Boolean `pair layer column`: zero by structure.
        sides: The pairs and the direction.
        totals: The metric of both runs.
        title: What the method is called.
        normalise: Give shares of M+ - M-.
        notes: Further diagnostics.
        unsigned: The effects are sizes, which no scale may turn negative.
    """
    unit, scale = sides.pairs.metric.unit, 1.0
    if normalise:
        unit, scale = "share of M+ - M-", totals.scale(sides.direction)
        scale = abs(scale) if unsigned else scale
    values = effects / scale
    missing = np.isnan(values)
    zero = np.broadcast_to(zero[..., None], values.shape)
    masks: dict[str, Any] = {"known_zero": (zero | missing).all(0) & ~missing.all(0)}
    absent = np.zeros(values.shape, bool) if columns.index is None else np.broadcast_to((columns.index < 0)[:, None, :, None], values.shape)
    if absent.all(0).any():
        masks["no_row"] = absent.all(0)
    if (missing & ~absent).any():
        masks["not_run"] = missing.all(0) & ~absent.all(0)
    with np.errstate(invalid="ignore"):
        counted = (~missing).sum(0)
        mean = np.where(counted > 0, np.nansum(values, 0) / np.maximum(counted, 1), np.nan)
    shape = [n for n, drop in zip(values.shape, (False, False, columns.index is None, not family.parts), strict=True) if not drop]
    axes = ["layer", *([] if columns.index is None else ["position"]), *family.parts]
    labels: dict[str, Sequence[str]] = {"layer": family.sites}
    if columns.index is not None:
        labels["position"] = columns.labels
    if family.units is not None:
        labels[family.parts[0]] = family.unit_labels
    clean, corrupt = (totals.source, totals.base) if sides.direction == "denoise" else (totals.base, totals.source)
    diagnostics = {
        "direction": sides.direction,
        "metric": sides.pairs.metric.name,
        "clean": float(clean.mean()),
        "corrupt": float(corrupt.mean()),
        "pairs": len(sides.pairs),
        "forwards": sides.counts.forwards,
        "backwards": sides.counts.backwards,
        "positions": columns.asked,
        "normalise": normalise,
        "unsigned": unsigned,
        **({} if family.coder is None else {"dictionary": type(family.coder.dictionary).__name__}),
        **notes,
    }
    return Grid(
        mean.reshape(shape[1:]),
        tuple(axes),
        labels,
        {name: np.reshape(mask, shape[1:]) for name, mask in masks.items()},
        values.reshape(shape),
        title=f"{title}: {family.name}, {sides.direction}",
        unit=unit,
        diagnostics=diagnostics,
    )


def padded(chunks: Sequence[np.ndarray]) -> np.ndarray:
    """`pair layer column node` of chunks of pairs under one another; a chunk of shorter texts lacks the last columns."""
    width = max(c.shape[2] for c in chunks)
    empty = False if chunks[0].dtype == bool else np.nan
    return np.concatenate([np.pad(c, ((0, 0), (0, 0), (0, width - c.shape[2]), (0, 0)), constant_values=empty) for c in chunks])
