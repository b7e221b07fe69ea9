"""Every approximation of patching held against the exact grid, node kind by node kind: which one to trust here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from activarium.analyses.patching._activation_patching import activation_patching
from activarium.analyses.patching._attribution_patching import attribution_patching
from activarium.analyses.patching._integrated_patching import integrated_patching
from activarium.analyses.patching._relevance_patching import relevance_patching
from activarium.analyses.patching.agreement import compared
from activarium.analyses.patching.nodes import Positions, kind_of
from activarium.errors import unknown
from activarium.pairs import Pairs
from activarium.protocols import Runner
from activarium.results import Grid, Report, Result

NODES = ("blocks.*.resid_pre", "blocks.*.attn.out", "blocks.*.mlp.out")
# Forwards and backwards beside the source run: 1 + 1, but for the two points (2 + 2) and the path (steps + steps).
METHODS: Mapping[str, Callable[..., Grid]] = MappingProxyType(
    {
        "AtP": attribution_patching,
        "AtP, two points": partial(attribution_patching, points=2),
        "ln": partial(relevance_patching, rules="ln"),
        "ln-id": partial(relevance_patching, rules="ln-id"),
        "relp": partial(relevance_patching, rules="relp"),
        "relp-ah": partial(relevance_patching, rules="relp-ah"),
        "attnlrp": partial(relevance_patching, rules="attnlrp"),
        "mid-AtP": partial(integrated_patching, steps=1),
        "IG, 5 steps": partial(integrated_patching, steps=5),
    }
)
MEASURES = {
    "pearson": ("correlation", "Pearson correlation with exact patching"),
    "pearson_without_zeros": ("correlation", "Pearson correlation with exact patching, without cells known to be zero"),
    "slope": ("score per exact effect", "Slope: below 1 underestimates"),
    "recall_of_top_10": ("share", "How many of the 10 largest effects are among the 10 largest scores"),
}


def methods_against_exact(
    model: Runner,
    pairs: Pairs,
    nodes: Sequence[str] = NODES,
    *,
    methods: Sequence[str] = tuple(METHODS),
    direction: str = "denoise",
    positions: Positions = "each",
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Which approximation of patching can be trusted on this model and these pairs?

    The whole exact grid is run for each kind of node, and every method is held against it, cell by cell. No method is best
    everywhere: which one is depends on the model, the task and the kind of node.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        nodes: Patterns, each a column of the answer.
        methods: Which of `AtP`, `AtP, two points`, `ln`, `ln-id`, `relp`, `relp-ah`, `attnlrp`, `mid-AtP`, `IG, 5 steps`.
        direction: `denoise` patches clean values into the corrupted run, `noise` the reverse.
        positions: As of `activation_patching`.
        seed: Of the bootstrap.
        progress: Show a bar when many cells are run.

    Returns:
        A report of grids `method nodes`: `pearson` (with its 95 % intervals in `diagnostics`), `pearson_without_zeros`, `slope` and
        `recall_of_top_10`, the exact grids by their patterns, and what was found in words.

    Raises:
        UnknownName: No such method.
        InputError: Bad options, or a dtype in which gradients lie.

    Source:
        The comparison of Rezaei Jafari et al. 2025, RelP, arXiv:2508.21258, table 1, on your model.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> report = methods_against_exact(model, pairs, ["blocks.*.mlp.out"], methods=["AtP", "relp"])
        >>> report["pearson"].values.shape
        (2, 1)
    """
    nodes = [nodes] if isinstance(nodes, str) else list(nodes)
    strange = next((m for m in methods if m not in METHODS), None)
    if strange is not None:
        raise unknown("method", strange, METHODS)
    options: dict[str, Any] = {"direction": direction, "positions": positions}
    exact = {n: activation_patching(model, pairs, n, progress=progress, **options) for n in nodes}
    found = {(m, n): _held(METHODS[m](model, pairs, n, **options), exact[n], seed) for m in methods for n in nodes}
    kinds = [kind_of(g.label("layer")[0]) for g in exact.values()]
    parts: dict[str, Result] = {name: _grid(found, list(methods), nodes, kinds, name) for name in MEASURES}
    cells = {n: int(np.isfinite(g.values).sum()) for n, g in exact.items()}
    notes = {"pairs": len(pairs), "direction": direction, "metric": pairs.metric.name, "cells": cells}
    return Report(
        parts | exact, tuple(_words(found, list(methods), nodes, kinds)), title="Approximations against exact patching", diagnostics=notes
    )


def _held(scores: Grid, exact: Grid, seed: int) -> dict[str, Any]:
    real = np.isfinite(exact.values) & np.isfinite(scores.values)
    return compared(scores.values[real], exact.values[real], exact.masks["known_zero"][real], seed=seed)


def _grid(found: Mapping[tuple[str, str], Mapping[str, Any]], methods: list[str], nodes: list[str], kinds: list[str], name: str) -> Grid:
    unit, title = MEASURES[name]
    values = np.array([[found[m, n][name] for n in nodes] for m in methods])
    labels = {"method": methods, "nodes": kinds}
    spans = {f"{m}, {k}": tuple(round(x, 3) for x in found[m, n]["interval"]) for m in methods for n, k in zip(nodes, kinds, strict=True)}
    return Grid(values, ("method", "nodes"), labels, title=title, unit=unit, diagnostics={"interval": spans} if name == "pearson" else {})


def _words(found: Mapping[tuple[str, str], Mapping[str, Any]], methods: list[str], nodes: list[str], kinds: list[str]) -> list[str]:
    said = []
    for n, kind in zip(nodes, kinds, strict=True):
        scores = {m: found[m, n]["pearson_without_zeros"] for m in methods}
        best, worst = max(scores, key=lambda m: scores[m]), min(scores, key=lambda m: scores[m])
        low, high = found[best, n]["interval"]
        said.append(
            f"{kind}: {best} comes nearest (Pearson {scores[best]:.3f} without known zeros; with them {found[best, n]['pearson']:.3f}, "
            f"interval {low:.3f} to {high:.3f}), slope {found[best, n]['slope']:.2f}; {worst} is farthest ({scores[worst]:.3f})."
        )
    return said
