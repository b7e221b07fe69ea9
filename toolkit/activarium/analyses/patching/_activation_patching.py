"""Activation patching: the exact change of the answer when one activation is taken from the other run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from activarium.analyses.patching.cells import branches_of
from activarium.analyses.patching.grids import grid
from activarium.analyses.patching.nodes import Columns, Family, Positions, family
from activarium.analyses.patching.sides import Sides, Totals, measured
from activarium.analyses.patching.zeros import known_zero
from activarium.branches import Branches, run_whole
from activarium.errors import InputError
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Grid

LONG = 500  # runs from which a progress bar is shown


def activation_patching(
    model: Runner,
    pairs: Pairs,
    nodes: str | Sequence[str],
    *,
    direction: str = "denoise",
    positions: Positions = "each",
    units: str | Sequence[int] | None = None,
    normalise: bool = False,
    cells: np.ndarray | None = None,
    reuse: bool = True,
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
        nodes: Site names and patterns, `blocks.*.attn.z`; nodes of `row head d_head` sites are heads. Where keys and values
            are grouped, patching one moves the whole group of query heads that share it.
        direction: `denoise` patches clean values into the corrupted run, `noise` the reverse. Signs are not flipped.
        positions: `"each"` row is a node, `"all"` rows of a site together, the pairs' named `"places"`, or position numbers.
        units: `"all"` or numbers: each unit of the last axis (a neuron of `mlp.post`) is a node.
        normalise: Give shares of M+ - M-.
        cells: Boolean, of the shape of the grid: run only these; the others are NaN.
        reuse: False runs every cell as a whole forward, known zeros included, to check the shortcuts.
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
    base, source = sides.run(model, sides.base, found.sites), sides.run(model, sides.source, found.sites)
    totals = Totals(measured(base), measured(source))
    columns = Columns(pairs, found.space, positions)
    zero = known_zero(model, sides, found, columns)
    wanted = _wanted(found, columns, zero, cells, reuse)
    branches, places = branches_of(found, columns, wanted, base, source)
    effects = np.full(wanted.shape, np.nan)
    metrics, notes = _run(model, sides, branches, reuse, memory, progress)
    for metric, place in zip(metrics, places, strict=True):
        effects[tuple(place)] = metric - totals.base[place[0]]
    effects[zero[..., None] & np.isnan(effects) & _exists(found, columns, zero)] = 0.0
    return grid(found, columns, effects, zero, sides, totals, title="Activation patching", normalise=normalise, notes=notes)


def _exists(family: Family, columns: Columns, zero: np.ndarray) -> np.ndarray:
    """Boolean `pair layer column node`: has the pair such a row?"""
    shape = (*zero.shape, family.size)
    return np.ones(shape, bool) if columns.index is None else np.broadcast_to((columns.index >= 0)[:, None, :, None], shape)


def _wanted(family: Family, columns: Columns, zero: np.ndarray, cells: np.ndarray | None, reuse: bool) -> np.ndarray:
    """Boolean `pair layer column node`: what is run."""
    wanted = _exists(family, columns, zero)
    if reuse:
        wanted = wanted & ~zero[..., None]
    if cells is None:
        return wanted
    shape = [n for n, drop in zip(wanted.shape[1:], (False, columns.index is None, not family.parts), strict=True) if not drop]
    cells = np.asarray(cells)
    if cells.dtype != bool or cells.shape != tuple(shape):
        raise InputError(f"cells= is {cells.dtype} of shape {cells.shape}; wanted booleans of shape {tuple(shape)}.")
    return wanted & cells.reshape(wanted.shape[1:])


def _run(
    model: Any, sides: Sides, branches: list[Branches], reuse: bool, memory: int, progress: bool
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The metric of every branch, and what it cost."""
    count = sum(len(b) for b in branches)
    with progress_bar(progress and count >= LONG, "patching", count, "cells") as advance:
        if reuse and hasattr(model, "branches"):
            found, spent = model.branches(sides.base, branches, sides.pairs.metric, memory=memory, advance=advance)
            return found, {"cells": count, **spent}
        return run_whole(model, sides.base, branches, sides.pairs.metric, advance=advance), {"cells": count}
