"""Of several approximate grids of the same nodes, the one nearest to exact effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from activarium.analyses.patching._against_exact import against_exact
from activarium.analyses.patching.again import exactly
from activarium.analyses.patching.agreement import strata
from activarium.features import Features
from activarium.pairs import Pairs
from activarium.results import Grid


def best(grids: Mapping[str, Grid], model: Any, pairs: Pairs, *, sample: int, seed: int, progress: bool, nodes: Features | None) -> Grid:
    """The grid with the highest Pearson on one sample of cells that all are held against, with its check.

    Args:
        grids: Name of the method and its scores; all of the same nodes.
        model: The model they were made with.
        pairs: The pairs they were made with.
        sample: How many cells are run exactly, once for all.
        seed: Of the draw and the bootstrap.
        progress: Show a bar when many cells are run.
        nodes: The features, if that is what they have scores of.

    Returns:
        One of them; `diagnostics["compared"]` holds the correlation of each, without known zeros.
    """
    first = next(iter(grids.values()))
    # A cell is large if any method says so: the sample must not favour one of them.
    sizes = [np.abs(g.values) / max(float(np.nanmax(np.abs(g.values), initial=0.0)), 1e-300) for g in grids.values()]
    cells = strata(np.max(sizes, axis=0), np.isfinite(first.values), sample, seed) != ""
    exact = exactly(first, model, pairs, cells, progress, nodes)
    exact = exact.with_(values=np.where(cells, exact.values, np.nan))  # known zeros that were not drawn are not compared either
    checked = {name: against_exact(g, model, pairs, exact=exact, seed=seed) for name, g in grids.items()}
    found = {name: float(g.check.diagnostics["pearson_without_zeros"]) for name, g in checked.items() if g.check is not None}
    chosen = max(found, key=lambda name: np.nan_to_num(found[name], nan=-2.0))
    return checked[chosen].with_(diagnostics={**checked[chosen].diagnostics, "chosen": chosen, "compared": found})
