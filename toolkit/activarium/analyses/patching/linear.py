"""What all linear methods share: multipliers times differences, `<g, a(source) - a(base)>`, summed over each node's own features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.features import Held
from activarium.analyses.patching.grids import grid, padded
from activarium.analyses.patching.nodes import Columns, Family, Nodes, Positions, family
from activarium.analyses.patching.sides import Sides, Totals, check_gradients, check_resolution, joined, measured, wide
from activarium.analyses.patching.zeros import known_zero
from activarium.errors import InputError
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.results import Grid

LONG = 20  # batches from which a progress bar is shown

# Site → multipliers `row …`, and the base run they were taken on (for its values and its metric).
Multipliers = Callable[[Any, Sides, Sequence[str], Any], tuple[Mapping[str, Tensor], Any]]
# Given the model, some pairs, the nodes, their columns and the source run: scores `pair layer column node`, and the base run.
Scores = Callable[[Any, Sides, Family, Columns, Any], tuple[np.ndarray, Any]]


def linear(model: Any, pairs: Pairs, nodes: Nodes, multipliers: Multipliers, **options: Any) -> Grid:
    """Scores of all nodes by one rule for their multipliers.

    Args:
        model: The runner.
        pairs: What is compared.
        nodes: Site names and patterns.
        multipliers: Given the model, some pairs, the sites and their source run: multipliers per site, and the base run.
        **options: As of `scored`.
    """

    def scores(model: Any, sides: Sides, family: Family, columns: Columns, source: Any) -> tuple[np.ndarray, Any]:
        slopes, base = multipliers(model, sides, family.sites, source)
        return arranged(family, columns, {s: products(family, s, slopes[s], base, source) for s in family.sites}), base

    return scored(model, pairs, nodes, scores, **options)


def scored(
    model: Any,
    pairs: Pairs,
    nodes: Nodes,
    scores: Scores,
    *,
    title: str,
    direction: str,
    positions: Positions,
    units: str | Sequence[int] | None,
    normalise: bool,
    batch: int,
    also: Sequence[str] = (),
    unsigned: bool = False,
    progress: bool = False,
    notes: Callable[[], Mapping[str, Any]] = dict,
) -> Grid:
    """Scores of all nodes, some pairs at a time.

    Args:
        model: The runner.
        pairs: What is compared.
        nodes: Site names and patterns.
        scores: How some pairs are scored, see `Scores`.
        title: What the method is called.
        direction: `denoise` or `noise`.
        positions: See `Columns`.
        units: See `family`.
        normalise: Give shares of M+ - M-.
        batch: Pairs in one forward.
        also: Further sites that are read in the source run.
        unsigned: The scores are sizes.
        progress: Show a bar when there are many batches.
        notes: Further diagnostics, asked for at the end.
    """
    check_gradients(model)
    if batch < 1:
        raise InputError(f"batch={batch}: a forward takes at least one pair.")
    found, sides = family(model, nodes, units), Sides(pairs, direction)
    parts: list[np.ndarray] = []
    zeros: list[np.ndarray] = []
    totals: list[Totals] = []
    with progress_bar(progress and len(pairs) > LONG * batch, "scoring", len(pairs), "pairs") as advance:
        for chunk in sides.chunks(batch):
            columns = Columns(chunk.pairs, found.space, positions)
            source = chunk.run(model, chunk.source, [*found.sites, *also])
            part, base = scores(model, chunk, found, columns, source)
            totals.append(Totals(measured(base), measured(source)))
            check_resolution(model, base, totals[-1])
            parts.append(part)
            zeros.append(known_zero(model, chunk, found, columns)[..., None])
            advance(len(chunk.pairs))
    effects, zero = padded(parts), padded(zeros)
    # Two runs of one input may take different kernels, of which one keeps a graph: what cannot have an effect has exactly none.
    effects[np.broadcast_to(zero, effects.shape)] = 0.0
    kept = {"title": title, "normalise": normalise, "unsigned": unsigned, "notes": notes()}
    return grid(found, Columns(pairs, found.space, positions), effects, zero[..., 0], sides, joined(totals), **kept)


def products(family: Family, site: str, slope: Tensor, base: Any, source: Any) -> Tensor:
    """`<slope, a(source) - a(base)>` of every node of one site, `row node`."""
    if family.coder is not None:
        held = Held(family.coder, base[site].tensor, source[site].tensor, slope)
        return held.through(held.slope)[:, torch.as_tensor(family.units, device=held.slope.device)]
    change = wide(source[site].tensor.detach()) - wide(base[site].tensor.detach())
    return (family.nodes(change) * family.nodes(wide(slope.detach()))).sum(-1)


def arranged(family: Family, columns: Columns, scores: Mapping[str, Tensor]) -> np.ndarray:
    """Scores `row node` of every site as `pair layer column node`."""
    found = [columns.per_pair(scores[site]) for site in family.sites]
    return np.stack([f if columns.index is not None else f[:, None] for f in found], 1)
