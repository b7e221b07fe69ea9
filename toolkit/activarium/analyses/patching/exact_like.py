"""Exact effects of the nodes that another grid has scores of."""

from __future__ import annotations

from typing import Any

import numpy as np

from activarium.analyses.patching._activation_patching import activation_patching
from activarium.pairs import Pairs
from activarium.results import Grid


def exact_like(grid: Grid, model: Any, pairs: Pairs, cells: np.ndarray, *, progress: bool = True) -> Grid:
    """Activation patching of some cells, with the nodes, direction, positions and units of a grid.

    Args:
        grid: Made by patching.
        model: The model it was made with.
        pairs: The pairs it was made with.
        cells: Boolean, of the shape of the grid.
        progress: Show a bar when many cells are run.
    """
    told = {name: grid.diagnostics[name] for name in ("direction", "positions", "normalise")}
    last = grid.axes[-1]
    units = None if last in ("layer", "position", "head") else [int(n) for n in grid.labels[last]]
    return activation_patching(model, pairs, list(grid.labels["layer"]), units=units, cells=cells, progress=progress, **told)
