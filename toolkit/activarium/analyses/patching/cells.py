"""The cells of a grid as branches of the base run."""

from __future__ import annotations

from typing import Any

import numpy as np

from activarium.analyses.patching.features import FeatureBranches
from activarium.analyses.patching.nodes import Columns, Family
from activarium.branches import Branches


def branches_of(family: Family, columns: Columns, cells: np.ndarray, base: Any, source: Any) -> tuple[list[Branches], list[np.ndarray]]:
    """One set of branches per site, and for each the places of its branches in the grid.

    Args:
        family: What is patched.
        columns: Which rows make which column.
        cells: Boolean `pair layer column node`: what is run.
        base: Recording of the run that is patched.
        source: Recording of the run that patches come from.
    """
    made, places = [], []
    for layer, site in enumerate(family.sites):
        pair, column, node = (w.astype(int) for w in np.nonzero(cells[:, layer]))
        position = np.full(len(pair), -1) if columns.index is None else columns.index[pair, column]
        part = np.full(len(pair), -1) if not family.parts else node if family.units is None else family.units[node]
        values = base[site].tensor.detach(), source[site].tensor.detach()
        told = site, pair, position, part, *values, columns.starts, columns.lengths
        made.append(Branches(*told) if family.coder is None else FeatureBranches(*told, family.coder))
        places.append(np.stack([pair, np.full(len(pair), layer), column, node]))
    return made, places
