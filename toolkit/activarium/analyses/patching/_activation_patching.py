"""Activation patching: the exact change of the answer when one activation is taken from the other run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from activarium.analyses.patching.cells import branches_of
from activarium.analyses.patching.grids import grid, padded
from activarium.analyses.patching.nodes import Columns, Family, Positions, family
from activarium.analyses.patching.sides import Sides, Totals, joined, measured
from activarium.analyses.patching.zeros import known_zero
from activarium.branches import Branches, run_whole
from activarium.errors import InputError
from activarium.features import Features
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Grid

LONG = 500  # runs from which a progress bar is shown


def activation_patching(
    model: Runner,
    pairs: Pairs,
    nodes: str | Sequence[str] | Features,
    *,
    direction: str = "denoise",
    positions: Positions = "each",
    units: str | Sequence[int] | None = None,
    normalise: bool = False,
    cells: np.ndarray | None = None,
    reuse: bool = True,
    batch: int = 64,
    memory: int = 1 << 30,
    progress: bool = True,
) -> Grid:
    """How does the answer change when one activation is taken from the other run?

    Every cell is exact. What a patch cannot change is not run again: earlier blocks, in causal models earlier positions, and all
    of the unembedding but the logits that the metric reads. Cells that are zero by the model's structure are not run at all;
    the mask `known_zero` shows them.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        nodes: Site names and patterns, `blocks.*.attn.z`; nodes of `row head d_head` sites are heads. Or `act.Features` of a site. Where keys and values
            are grouped, patching one moves the whole group of query heads that share it.
        direction: `denoise` patches clean values into the corrupted run, `noise` the reverse. Signs are not flipped.
        positions: `"each"` row is a node, `"all"` rows of a site together, the pairs' named `"places"`, or position numbers.
        units: `"all"` or numbers: each unit of the last axis (a neuron of `mlp.post`) is a node.
        normalise: Give shares of M+ - M-.
        cells: Boolean, of the shape of the grid: run only these; the others are NaN, or 0 where that is known.
        reuse: False runs every cell as a whole forward, known zeros included, to check the shortcuts.
        batch: Pairs whose base and source runs are kept at a time.
        memory: Bytes that the streams of cells run together may take.
        progress: Show a bar when many cells are run.

    Returns:
        A grid `layer position` (and `head`, or the units' axis) of the mean change of the metric over pairs, `m(patched) - m(base)`,
        with `per_example` and masks. `diagnostics` count the cells and the rows that blocks were run on.

    Raises:
        UnknownSite: No such site.
        InputError: Bad options.

    Source:
        Vig et al. 2020, Investigating Gender Bias in Language Models Using Causal Mediation Analysis, NeurIPS; Zhang & Nanda 2023,
        Towards Best Practices of Activation Patching in Language Models, arXiv:2309.16042.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> grid = activation_patching(model, pairs, "blocks.*.resid_pre")
        >>> bool(abs(grid.values[0].sum() - (grid.diagnostics["clean"] - grid.diagnostics["corrupt"])) < 1e-5)
        True
    """
    found, sides = family(model, nodes, units), Sides(pairs, direction)
    if batch < 1:
        raise InputError(f"batch={batch}: at least one pair is run at a time.")
    whole = Columns(pairs, found.space, positions)
    asked = _exists(found, whole, len(pairs)) & _chosen(cells, found, whole)
    parts, zeros, totals, spent = [], [], [], Counter[str]()
    with progress_bar(progress and asked.sum() >= LONG, "patching", int(asked.sum()), "cells") as advance:
        for chunk in sides.chunks(batch):
            columns = Columns(chunk.pairs, found.space, positions)
            base, source = chunk.run(model, chunk.base, found.sites), chunk.run(model, chunk.source, found.sites)
            totals.append(Totals(measured(base), measured(source)))
            zero = known_zero(model, chunk, found, columns)[..., None]
            first = sum(map(len, parts))
            wanted = asked[first : first + len(zero), :, : zero.shape[2]]
            run = wanted & ~zero if reuse else wanted
            branches, places = branches_of(found, columns, run, base, source)
            metrics, cost = _run(model, chunk, branches, reuse, memory, advance)
            advance(int(wanted.sum() - run.sum()))
            spent.update({k: v for k, v in cost.items() if k != "reuse"})
            effects = np.full(wanted.shape, np.nan)
            for metric, place in zip(metrics, places, strict=True):
                effects[tuple(place)] = metric - totals[-1].base[place[0]]
            effects[zero & ~run & _exists(found, columns, len(effects))] = 0.0
            parts.append(effects)
            zeros.append(zero)
    notes = {**spent, "reuse": cost.get("reuse", "none")}
    return grid(
        found,
        whole,
        padded(parts),
        padded(zeros)[..., 0],
        sides,
        joined(totals),
        title="Activation patching",
        normalise=normalise,
        notes=notes,
    )


def _exists(family: Family, columns: Columns, pairs: int) -> np.ndarray:
    """Boolean `pair layer column node`: has the pair such a row?"""
    shape = (pairs, len(family.sites), 1 if columns.index is None else columns.index.shape[1], family.size)
    return np.ones(shape, bool) if columns.index is None else np.broadcast_to((columns.index >= 0)[:, None, :, None], shape)


def _chosen(cells: np.ndarray | None, family: Family, columns: Columns) -> np.ndarray:
    """Boolean `layer column node`: what the caller asks for."""
    shape = (len(family.sites), 1 if columns.index is None else columns.index.shape[1], family.size)
    if cells is None:
        return np.ones(shape, bool)
    wanted = tuple(n for n, drop in zip(shape, (False, columns.index is None, not family.parts), strict=True) if not drop)
    cells = np.asarray(cells)
    if cells.dtype != bool or cells.shape != wanted:
        raise InputError(f"cells= is {cells.dtype} of shape {cells.shape}; wanted booleans of shape {wanted}.")
    return cells.reshape(shape)


def _run(
    model: Any, sides: Sides, branches: list[Branches], reuse: bool, memory: int, advance: Any
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The metric of every branch, and what it cost."""
    count = sum(len(b) for b in branches)
    if reuse and hasattr(model, "branches"):
        found, spent = model.branches(sides.base, branches, sides.pairs.metric, memory=memory, advance=advance)
        return found, {"cells": count, **spent}
    return run_whole(model, sides.base, branches, sides.pairs.metric, advance=advance), {"cells": count}
