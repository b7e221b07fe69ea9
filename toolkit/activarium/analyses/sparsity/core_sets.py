"""Core neurons of a group of sentences: the sets that are kept, and the group that a new sentence belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from activarium.analyses.sparsity.cores import Core, similarity, whole
from activarium.errors import InputError
from activarium.results import Grid, Report

SETS = "core sets"
Sets = Mapping[str, np.ndarray]  # site → neurons


def frequent(cores: Sequence[Core], gamma: float) -> np.ndarray:
    """The ⌊gamma · N⌋ neurons that are in most of these cores; ties by tokens, then by lower number; fewer where fewer are in any."""
    width = len(cores[0].counts)
    member = np.bincount(np.concatenate([c.neurons for c in cores]).astype(np.int64), minlength=width)
    tokens = np.stack([c.counts for c in cores]).sum(0, dtype=np.int64)
    order = np.lexsort((np.arange(width), -tokens, -member))[: whole(gamma * width)]
    return order[member[order] > 0]


def nearest(cores: Sets, groups: Mapping[str, Sets]) -> tuple[str, float]:
    """The group whose sets are most similar to these cores, averaged over layers, and how similar; of equal ones the first."""
    found = {name: [similarity(neurons, sets[site]) for site, neurons in cores.items()] for name, sets in groups.items()}
    mean = {name: float(np.nan_to_num(values).mean()) for name, values in found.items()}
    best = max(mean, key=lambda name: mean[name])
    return best, mean[best]


def as_grid(groups: Mapping[str, Sets], width: int) -> Grid:
    """Sets as a grid of 0 and 1, `cluster layer neuron`, which can be saved and loaded."""
    sites = list(next(iter(groups.values())))
    member = np.zeros((len(groups), len(sites), width), np.int8)
    for g, sets in enumerate(groups.values()):
        for i, neurons in enumerate(sets.values()):
            member[g, i, neurons] = 1
    labels = {"cluster": list(groups), "layer": sites}
    return Grid(member, ("cluster", "layer", "neuron"), labels, title="Core neurons of each cluster", unit="1 if kept")


def groups_of(clusters: Report, stack: str = "") -> dict[str, dict[str, np.ndarray]]:
    """The sets of a report of `core_clusters`: cluster → site → neurons.

    Raises:
        InputError: The report has none.
    """
    name = f"{stack} {SETS}".strip()
    if name not in clusters.parts:
        raise InputError(f"This report has no part {name!r}; it has {', '.join(clusters.parts)}. Pass what core_clusters gave.")
    grid = clusters[name]
    assert isinstance(grid, Grid)
    sites = grid.label("layer")
    return {c: {s: np.flatnonzero(grid.values[g, i]) for i, s in enumerate(sites)} for g, c in enumerate(grid.label("cluster"))}
