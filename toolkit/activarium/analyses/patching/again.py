"""Exact effects for cells of a grid that another method made: same nodes, direction, positions, units and scale."""

from __future__ import annotations

from typing import Any

import numpy as np

from activarium.analyses.patching._activation_patching import activation_patching
from activarium.errors import InputError
from activarium.features import Features
from activarium.pairs import Pairs
from activarium.results import Grid

SETTINGS = ("direction", "positions", "normalise", "unsigned")


def exactly(result: Grid, model: Any, pairs: Pairs, cells: np.ndarray, progress: bool = True, nodes: Features | None = None) -> Grid:
    """The exact grid, NaN but for the cells asked for; `nodes` are the features that a grid of features was made with.

    Raises:
        InputError: The grid was not made by patching, or with other pairs.
    """
    check_made_by_patching(result, pairs)
    settings = {name: result.diagnostics[name] for name in SETTINGS[:3]}
    if "dictionary" in result.diagnostics and nodes is None:
        name = result.label("layer")[0]
        raise InputError(f"This grid is of features of {name}. Give nodes=, the act.Features(…) it was made with.")
    sites, units = (list(result.label("layer")), _units(result)) if nodes is None else (nodes, None)
    exact = activation_patching(model, pairs, sites, units=units, cells=cells, progress=progress, **settings)
    check_same_runs(result, exact)
    return exact


def check_made_by_patching(result: Grid, pairs: Pairs) -> None:
    """Was this grid made by patching these pairs?

    Raises:
        InputError: It was not.
    """
    missing = [n for n in SETTINGS if n not in result.diagnostics]
    if not isinstance(result, Grid) or missing or "layer" not in result.labels:
        raise InputError(
            f"{result.title or 'This grid'!r} says no {missing[0] if missing else 'layer'}: it was not made by patching nodes."
        )
    made = result.diagnostics["pairs"], result.diagnostics["metric"]
    if made != (len(pairs), pairs.metric.name):
        raise InputError(
            f"This grid was made from {made[0]} pairs by {made[1]!r}; these are {len(pairs)} pairs with {pairs.metric.name!r}. Give the same pairs."
        )


def check_same_runs(result: Grid, exact: Grid) -> None:
    """Do both grids stand on the same clean and corrupted metric?

    Raises:
        InputError: They do not.
    """
    for side in ("clean", "corrupt"):
        a, b = result.diagnostics[side], exact.diagnostics[side]
        if abs(a - b) > 1e-2 * max(abs(a), abs(b), 1e-3):
            raise InputError(f"The {side} metric was {a:.6g} when this grid was made and is {b:.6g} now. Give the model and pairs of then.")


def _units(result: Grid) -> list[int] | None:
    last = result.axes[-1]
    return None if last in ("layer", "position", "head") else [int(n) for n in result.labels[last]]
