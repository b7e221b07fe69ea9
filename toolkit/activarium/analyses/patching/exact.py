"""Exact effects: every cell is a forward of its own, or the part of one that the patch can change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.nodes import Columns, Family
from activarium.branches import Branches
from activarium.edits import Replace
from activarium.metrics import Metric


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
        made.append(Branches(site, pair, position, part, *values, columns.starts, columns.lengths))
        places.append(np.stack([pair, np.full(len(pair), layer), column, node]))
    return made, places


def run_whole(
    model: Any,
    inputs: Any,
    branches: Sequence[Branches],
    metric: Metric,
    *,
    batch: int = 64,
    advance: Callable[[int], Any] = lambda _: None,
) -> list[np.ndarray]:
    """The metric of every branch, each run as a whole forward with nothing reused: what all shortcuts are held against."""
    found = []
    for one in branches:
        parts = [np.empty(0)]
        for start in range(0, len(one), batch):
            some = one.take(np.arange(start, min(start + batch, len(one))))
            parts.append(_run(model, inputs, some, metric))
            advance(len(some))
        found.append(np.concatenate(parts))
    return found


def _run(model: Any, inputs: Any, some: Branches, metric: Metric) -> np.ndarray:
    many = inputs.select(some.example).numbered(0)
    owner, position, values = some.changes()
    starts = np.r_[0, np.cumsum(some.lengths[some.example])[:-1]]
    rows = torch.as_tensor(starts[owner] + position, device=values.device)

    def put(old: Tensor) -> Tensor:
        return old.index_copy(0, rows, values.to(old.dtype))

    recording = model.run(many, edits=[Replace(some.site, put)], metrics={"metric": metric.select(some.example)})
    return recording.metric["metric"].detach().double().cpu().numpy()
