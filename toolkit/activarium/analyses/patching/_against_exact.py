"""An approximate grid held against exact patching on a sample of its cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from activarium.analyses.patching.again import check_made_by_patching, check_same_runs, exactly
from activarium.analyses.patching.agreement import compared, compared_sizes, doubts, strata
from activarium.analyses.patching.nodes import kind_of
from activarium.errors import InputError
from activarium.features import Features
from activarium.pairs import Pairs
from activarium.protocols import Runner
from activarium.results import Grid, Ranking


def against_exact(
    result: Grid,
    model: Runner,
    pairs: Pairs,
    *,
    sample: int = 200,
    exact: Grid | None = None,
    nodes: Features | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Grid:
    """How near do these scores come to what patching really does?

    The exact effect is run for a sample of the cells: the largest scores, scores of exactly zero, and cells drawn evenly from
    the rest (all of them, if the grid is no larger than the sample). Nodes, direction, positions and units are those of the grid.

    Args:
        result: A grid of `attribution_patching`, `attribution_patching_star`, `integrated_patching` or `relevance_patching`.
        model: The model it was made with.
        pairs: The pairs it was made with.
        sample: How many cells are run exactly.
        exact: A grid of `activation_patching` of the same nodes, if there is one: nothing is run again, and `sample` is all it has.
        nodes: The features it was made with, if it is a grid of features.
        seed: Of the draw and the bootstrap.
        progress: Show a bar when many cells are run.

    Returns:
        The same grid with `.check`: a ranking of the sampled cells by the size of the exact effect, with the columns `approximate`,
        `exact`, `stratum` and `known_zero`. Its `diagnostics` hold, for this sample, `pearson` with its 95 % bootstrap `interval` over
        cells, `pearson_without_zeros` (cells that are zero by structure flatter every method), `spearman`, `slope` (score per
        exact effect), `sign_agreement`, `recall_of_top_10`, `largest_miss`, and `doubts` in words where Pearson < 0.8 or the
        slope is off by more than 0.3. Unsigned scores are held against |effect| by ranks alone.

    Raises:
        InputError: The grid was not made by patching, or with other pairs.

    Source:
        The comparison of Kramár et al. 2024, AtP*, arXiv:2403.00745, and of Rezaei Jafari et al. 2025, RelP, arXiv:2508.21258, on a sample.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> grid = act.analyses.attribution_patching(model, pairs, "blocks.*.mlp.out")
        >>> act.analyses.against_exact(grid, model, pairs).check.diagnostics["cells"]
        12
    """
    check_made_by_patching(result, pairs)
    if sample < 2:
        raise InputError(f"sample={sample}: agreement needs two cells at least.")
    if exact is None:
        chosen = strata(result.values, np.isfinite(result.values), sample, seed)
        exact = exactly(result, model, pairs, chosen != "", progress, nodes)
    else:
        _same_nodes(result, exact)
        check_same_runs(result, exact)
        chosen = np.where(np.isfinite(result.values) & np.isfinite(exact.values), "given", "")
    unsigned = result.diagnostics["unsigned"]
    effects = np.nanmean(np.abs(exact.per_example), 0) if unsigned and exact.per_example is not None else exact.values
    return result.with_(check=_check(result, effects, exact.masks["known_zero"], chosen, seed, unsigned))


def _check(result: Grid, effects: np.ndarray, known: np.ndarray, chosen: np.ndarray, seed: int, unsigned: bool) -> Ranking:
    """The comparison of the chosen cells, largest exact effect first."""
    places = np.argwhere(chosen != "")
    places = places[np.argsort(-np.abs(effects[tuple(places.T)]), kind="stable")]
    at = tuple(places.T)
    approximate, exact, zero = result.values[at], effects[at], known[at]
    labels = {axis: np.array(result.label(axis), dtype=object)[index] for axis, index in zip(result.axes, at, strict=True)}
    names = tuple(" · ".join(cell) for cell in zip(*labels.values(), strict=True))
    worst = int(np.argmax(np.abs(approximate - exact)))
    miss = f"Largest miss: {names[worst]}, {approximate[worst]:.3g} instead of {exact[worst]:.3g} {result.unit}."
    if unsigned:
        found = compared_sizes(approximate, exact)
    else:
        found = compared(approximate, exact, zero, seed=seed)
        found |= {"largest_miss": miss, "doubts": doubts(found, miss)} | _by_kind(labels["layer"], approximate, exact, zero, seed)
    return Ranking(
        names,
        exact,
        {"approximate": approximate, "exact": exact, "stratum": chosen[at], "known_zero": zero, **labels},
        title=f"{result.title.partition(':')[0]} against exact patching, {len(exact)} of {int(np.isfinite(result.values).sum())} cells",
        unit=result.unit,
        diagnostics=found | {"sample": len(exact), "seed": seed, "compared_with": "|effect|" if unsigned else "effect"},
    )


def _by_kind(sites: np.ndarray, approximate: np.ndarray, exact: np.ndarray, zero: np.ndarray, seed: int) -> dict[str, Any]:
    """Correlations of each kind of node, where a grid holds several: what is good for one is not for another."""
    kinds = np.array([kind_of(s) for s in sites])
    if len(set(kinds)) < 2:
        return {}
    each = {k: compared(approximate[kinds == k], exact[kinds == k], zero[kinds == k], seed=seed) for k in dict.fromkeys(kinds)}
    return {f"pearson of {k}": found["pearson_without_zeros"] for k, found in each.items()}


def _same_nodes(result: Grid, exact: Grid) -> None:
    """Does a cell of one grid stand for the same node in the other?"""
    for grid in (result, exact):
        if "direction" not in grid.diagnostics:
            raise InputError(f"{grid.title or 'A grid'!r} was not made by patching nodes; exact= takes a grid of activation_patching.")
    told = [(g.axes, [g.label(a) for a in g.axes], g.diagnostics["direction"], g.unit) for g in (result, exact)]
    if told[0] != told[1]:
        raise InputError(
            f"{exact.title!r} has other nodes, positions, direction or unit than {result.title!r}. Make both with the same options."
        )
