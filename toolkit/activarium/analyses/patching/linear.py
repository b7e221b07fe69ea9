"""What all linear methods share: multipliers times differences, `<g, a(source) - a(base)>`, summed over each node's own features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from activarium.analyses.patching.grids import grid
from activarium.analyses.patching.nodes import Columns, Family, Positions, family
from activarium.analyses.patching.sides import Sides, Totals, check_gradients, check_resolution, joined, measured, wide
from activarium.analyses.patching.zeros import known_zero
from activarium.pairs import Pairs
from activarium.results import Grid

# Site → multipliers `row …`, and the base run they were taken on (for its values and its metric).
Multipliers = Callable[[Any, Sides, Sequence[str], Any], tuple[Mapping[str, Tensor], Any]]


def linear(
    model: Any,
    pairs: Pairs,
    nodes: str | Sequence[str],
    multipliers: Multipliers,
    *,
    title: str,
    direction: str,
    positions: Positions,
    units: str | Sequence[int] | None,
    normalise: bool,
    batch: int,
    notes: Callable[[], Mapping[str, Any]] = dict,
) -> Grid:
    """Scores of all nodes by one rule for their multipliers.

    Args:
        model: The runner.
        pairs: What is compared.
        nodes: Site names and patterns.
        multipliers: Given the model, some pairs, the sites and their source run: multipliers per site, and the base run.
        title: What the method is called.
        direction: `denoise` or `noise`.
        positions: See `Columns`.
        units: See `family`.
        normalise: Give shares of M+ - M-.
        batch: Pairs in one forward.
        notes: Further diagnostics, asked for at the end.
    """
    check_gradients(model)
    found, sides = family(model, nodes, units), Sides(pairs, direction)
    scores: list[np.ndarray] = []
    totals: list[Totals] = []
    for chunk in sides.chunks(batch):
        source = chunk.run(model, chunk.source, found.sites)
        slopes, base = multipliers(model, chunk, found.sites, source)
        totals.append(Totals(measured(base), measured(source)))
        check_resolution(model, base, totals[-1])
        scores.append(_layers(found, Columns(chunk.pairs, found.space, positions), slopes, base, source))
    columns = Columns(pairs, found.space, positions)
    zero = known_zero(model, sides, found, columns)
    return grid(found, columns, _padded(scores), zero, sides, joined(totals), title=title, normalise=normalise, notes=notes())


def _layers(family: Family, columns: Columns, slopes: Mapping[str, Tensor], base: Any, source: Any) -> np.ndarray:
    """Scores `pair layer column node` of one chunk."""
    found = []
    for site in family.sites:
        change = wide(source[site].tensor.detach()) - wide(base[site].tensor.detach())
        score = (family.nodes(change) * family.nodes(wide(slopes[site]))).sum(-1)
        per_pair = columns.per_pair(score)
        found.append(per_pair if columns.index is not None else per_pair[:, None])
    return np.stack(found, 1)


def _padded(chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Chunks of pairs under one another; a chunk of shorter texts has fewer columns."""
    width = max(c.shape[2] for c in chunks)
    return np.concatenate([np.pad(c, ((0, 0), (0, 0), (0, width - c.shape[2]), (0, 0)), constant_values=np.nan) for c in chunks])
