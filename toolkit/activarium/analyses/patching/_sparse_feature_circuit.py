"""Sparse feature circuits: which features of dictionaries carry the answer, and how they lead to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.analyses.patching.feature_circuits import (
    ERRORS,
    Batch,
    Node,
    batched,
    chosen,
    direct_edges,
    faithfulness,
    inactive,
    total_effects,
)
from activarium.analyses.patching.feature_runs import DirectEffects, held
from activarium.analyses.patching.features import Coder, grouping
from activarium.analyses.patching.sides import Sides, check_batch, check_gradients, joined
from activarium.errors import InputError
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Dictionary, Runner
from activarium.results import Graph, Grid, Ranking, Report

SUMS = ("resid_mid", "resid_cross")
AFFINE = 1e-2  # of the effects' sizes: how far nodes may be from adding up


def sparse_feature_circuit(
    model: Runner,
    pairs: Pairs,
    dictionaries: Mapping[str, Dictionary],
    *,
    direction: str = "noise",
    steps: int = 0,
    aggregation: str = "sum",
    node_threshold: float = 0.1,
    edge_threshold: float = 0.01,
    batch: int = 16,
    progress: bool = True,
) -> Report:
    """Which features of sparse dictionaries carry the answer, and through which others?

    A site's values are its features decoded plus an error, and the error is a node like the features: together their effects add up
    to the effect of the site. Gradients are those of the model itself, as if there were no dictionary; no run is made with reconstructions
    except those that measure faithfulness. Memory: the values and gradients of all sites over all pairs, and `rows features` of one batch.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        dictionaries: Site → anything with `encode` and an affine `decode`, such as a sae-lens SAE.
        direction: `noise` patches corrupted features into the clean run, `denoise` the reverse. Signs are not flipped.
        steps: 0 takes gradients at the base run; else the mean over so many midpoints while one site moves from base to source.
        aggregation: `sum` adds positions up, `none` makes a node of each feature at each position (pairs of one length).
        node_threshold: Size of effect, in units of the metric, from which a feature or error is in the circuit.
        edge_threshold: The same for edges.
        batch: Pairs in one forward.
        progress: Show a bar; every node in the circuit takes one backward.

    Returns:
        A report with `graph` (nodes `blocks.1.mlp.out/12`, `blocks.1.mlp.out/error`, with `[5]` before the slash at position 5, and `logits`;
        edges are direct effects, by ways through no other site), `nodes` (all in the circuit, ranked by size) and `faithfulness`: shares of the
        whole model's metric, above that with all nodes at their mean, that circuit and complement keep when other nodes are at their
        mean, with errors all kept, all at their mean, or as scored. Its diagnostics count features that are off in the base run and on in the
        source run (`switched_on`): they have effects, but nothing leads into them, for their encoder is flat there.

    Raises:
        InputError: A dictionary does not fit its site, its decoder is not affine, or bad options.
        UnknownSite: No such site.

    Source:
        Marks et al. 2024, Sparse Feature Circuits, arXiv:2403.19647.

    Differs:
        Midpoints, not left sums; means are taken over the rows of both sides of these pairs, position by position with `none`.

    Example:
        >>> import activarium as act, torch
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> class Same:
        ...     encode = decode = staticmethod(lambda values: values)
        >>> report = sparse_feature_circuit(model, pairs, {"blocks.1.mlp.out": Same()}, progress=False)
        >>> report.diagnostics["sum_rule_error"] < 1e-5
        True
    """
    coders = _coders(model, dictionaries)
    if steps < 0 or min(node_threshold, edge_threshold) < 0:
        raise InputError(f"steps={steps}, node_threshold={node_threshold}, edge_threshold={edge_threshold}: none can be negative.")
    check_gradients(model)
    check_batch(batch)
    sides = Sides(pairs, direction)
    for coder in coders:
        grouping(np.asarray(pairs.clean.rows_of(model.sites[coder.site].rows)), aggregation)  # refuses now what would fail later
    batches = []
    for chunk in sides.chunks(batch):
        batches.append(batched(model, chunk, *held(model, chunk, coders, steps), aggregation))
    error = _sum_rule_error(batches)
    effects = total_effects(batches, len(pairs))
    order = _order(model, batches[0], coders)
    nodes = chosen(effects, node_threshold, order)
    with progress_bar(progress, "direct effects on", (len(nodes) + 1) * len(batches), "nodes") as advance:
        edges = direct_edges(model, batches, nodes, order, len(pairs), advance)
    shares, empty, whole = faithfulness(model, batches, nodes, coders)
    totals = joined([b.totals for b in batches])
    notes = {
        "direction": direction,
        "metric": pairs.metric.name,
        "base": float(totals.base.mean()),
        "source": float(totals.source.mean()),
        "pairs": len(pairs),
        "nodes": len(nodes),
        "sum_rule_error": error,
        **inactive(batches),
        "all_at_their_mean": empty,
        "forwards": sides.counts.forwards,
        "backwards": sides.counts.backwards,
    }
    sizes = [effects[n.place][n.group, n.feature] for n in nodes]
    names = [_name(n, coders, effects, aggregation) for n in nodes]
    unit = pairs.metric.unit
    parts = {
        "graph": _graph(nodes, names, np.array(sizes), edges, edge_threshold, order, effects, totals.change, unit),
        "nodes": _ranking(names, np.array(sizes), unit),
        "faithfulness": Grid(
            shares,
            ("errors", "nodes"),
            {"errors": ERRORS, "nodes": ("circuit", "complement")},
            title="Faithfulness",
            unit="share of the metric above the means",
        ),
    }
    words = (
        f"{len(nodes)} nodes have an effect of {node_threshold:g} {unit} or more; the metric is {whole:.4g} {unit}, {empty:.4g} with all nodes at their mean.",
    )
    return Report(parts, words, title=f"Sparse feature circuit, {direction}", diagnostics=notes)


def _coders(model: Any, dictionaries: Mapping[str, Dictionary]) -> list[Coder]:
    if not dictionaries:
        raise InputError("There are no dictionaries. Give {'blocks.1.mlp.out': dictionary}.")
    for site, one in dictionaries.items():
        if not isinstance(one, Dictionary):
            raise InputError(f"The dictionary at {site} is a {type(one).__name__}, which lacks encode or decode.")
        if site.endswith(SUMS):
            raise InputError(
                f"{site} is a sum inside a block, where nothing can be cut off. Choose a dictionary of resid_pre, resid_post or attn.out."
            )
    real = [model.sites.find(site).name for site in dictionaries]
    if len(set(real)) < len(real):
        raise InputError(f"The dictionaries' sites {', '.join(dictionaries)} hold the same values twice. Give one dictionary for each.")
    return [Coder(site, one) for site, one in dictionaries.items()]


def _sum_rule_error(batches: Sequence[Batch]) -> float:
    worst = 0.0
    for h in (h for b in batches for h in b.held):
        nodes = h.through(h.slope)
        size = float(nodes.abs().sum(1).max())
        gap = float((nodes.sum(1) - h.whole).abs().max()) / size if size else 0.0
        if not gap <= AFFINE:
            raise InputError(
                f"Features and error at {h.coder.site} do not add up to the site's effect; they differ by {gap:.2g} of it. The decoder of its "
                "dictionary is not affine (does it normalise each row?). Fold the normalisation into the dictionary, or use another one."
            )
        worst = max(worst, gap)
    return worst


def _order(model: Any, batch: Batch, coders: Sequence[Coder]) -> list[int]:
    """Numbers of the sites in the order of the forward."""
    sites = [c.site for c in coders]
    few = Sides(batch.sides.pairs.select([0]), batch.sides.direction, batch.sides.counts)
    return [sites.index(s) for s in DirectEffects(model, few, sites).order]


def _name(node: Node, coders: Sequence[Coder], effects: Sequence[np.ndarray], aggregation: str) -> str:
    place = f"[{node.group}]" if aggregation == "none" else ""
    last = node.feature == effects[node.place].shape[1] - 1
    return f"{coders[node.place].site}{place}/{'error' if last else node.feature}"


def _ranking(names: Sequence[str], sizes: np.ndarray, unit: str) -> Ranking:
    order = np.argsort(-np.abs(sizes), kind="stable")
    return Ranking(tuple(str(names[i]) for i in order), sizes[order], title="Nodes of the circuit", unit=unit)


def _graph(
    nodes: Sequence[Node], names: Sequence[str], sizes: np.ndarray, edges: Mapping[tuple[int, int], float], threshold: float,
    order: Sequence[int], effects: Sequence[np.ndarray], change: float, unit: str,
) -> Graph:  # fmt: skip
    kept = {ends: value for ends, value in edges.items() if value and abs(value) >= threshold}
    rank = {place: n for n, place in enumerate(order)}
    kinds = ["error" if n.feature == effects[n.place].shape[1] - 1 else "feature" for n in nodes]
    columns = {
        "layer": np.array([*(rank[n.place] for n in nodes), len(order)], dtype=int),
        "kind": np.array([*kinds, "logits"], dtype=object),
    }
    ends = np.array(list(kept), dtype=int).reshape(-1, 2)
    weights = np.array([*sizes, change])
    return Graph((*names, "logits"), ends, np.array(list(kept.values())), weights, columns, title="Sparse feature circuit", unit=unit)
