"""Approximate effects with the model at hand: a click runs the exact patch of that cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from activarium.features import Features
from activarium.pairs import Pairs
from activarium.results import Grid

if TYPE_CHECKING:
    from activarium.widgets._patching_explorer import PatchingExplorer


def explore(result: Grid, model: Any, pairs: Pairs, *, nodes: Features | None = None, **traits: Any) -> PatchingExplorer:
    """What does patching a cell really do? Click it, and the exact effect appears beside the approximate one.

    Args:
        result: A grid of a patching method (`attribution_patching`, `relevance_patching`, …).
        model: The model it was made with.
        pairs: The pairs it was made with.
        nodes: The features it was made with, if it is a grid of features.
        **traits: Of the widget, such as `largest=20`.

    Raises:
        InputError: When a cell is clicked: the grid was not made by patching, or with other pairs.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> grid = act.analyses.attribution_patching(model, pairs, "blocks.*.mlp.out")
        >>> explorer = act.explore(grid, model, pairs)
        >>> exact = act.analyses.activation_patching(model, pairs, "blocks.*.mlp.out")
        >>> abs(explorer.measure({"layer": 1, "position": 2}) - exact.values[1, 2]) < 1e-6
        True
    """
    from activarium.analyses.patching.again import exactly
    from activarium.widgets import PatchingExplorer

    def rerun(cell: Mapping[str, int]) -> float:
        place = tuple(int(cell[axis]) for axis in result.axes)
        cells = np.zeros(result.values.shape, dtype=bool)
        cells[place] = True
        return float(exactly(result, model, pairs, cells, progress=False, nodes=nodes).values[place])

    return PatchingExplorer(result, rerun=rerun, **traits)
