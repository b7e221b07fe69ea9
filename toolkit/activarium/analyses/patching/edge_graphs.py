"""Scores of edges as a Graph, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from activarium.analyses.patching.wiring import Wiring
from activarium.errors import InputError
from activarium.results import Graph

KINDS = {"q": "query", "k": "key", "v": "value", "head": "head", "mlp": "mlp"}


def names_of(wiring: Wiring) -> tuple[str, ...]:
    """Nodes of its graph: the inputs of a head stand before it, an MLP is reader and writer in one."""
    found = ["embed"]
    for i in range(len(wiring.layers)):
        inputs = wiring.inputs_of(i)
        found += [r.name for leaf in ("q", "k", "v") for r in wiring.readers[inputs[leaf]]]
        found += [w for w in wiring.writers if w.startswith(f"blocks.{i}.")]
    return (*found, "logits")


def graph(wiring: Wiring, scores: np.ndarray, readouts: Mapping[str, str] | None = None, **about: Any) -> Graph:
    """Edges between all writers and readers with their scores, and edges from the inputs of each head to the head.

    The latter have no score of their own. They carry the score of the largest edge into that input, so that a threshold which keeps
    an edge into a head also keeps the way on.
    """
    names = names_of(wiring)
    number = {name: n for n, name in enumerate(names)}
    readers, writers = np.nonzero(wiring.edges)
    edges = [(number[wiring.writers[w]], number[wiring.readers[r].name]) for r, w in zip(readers, writers, strict=True)]
    values = list(scores[readers, writers])
    for r, w in zip(*np.nonzero(wiring.serves), strict=True):
        if wiring.readers[r].name != wiring.writers[w]:
            edges.append((number[wiring.readers[r].name], number[wiring.writers[w]]))
            values.append(max(scores[r, : wiring.readers[r].before], key=abs))
    columns = _columns(names) | ({"readout": np.array([readouts.get(n, "") for n in names], dtype=object)} if readouts else {})
    weights = np.zeros(len(names))
    weights[[number[r.name] for r in wiring.readers]] = scores.sum(1)
    weights[[number[w] for w in wiring.writers]] = scores.sum(0)
    return Graph(names, np.array(edges), np.array(values), weights, columns, **about)


def _columns(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Row and kind of each node: inputs of heads, heads and MLPs have a row each, block after block."""
    rows, kinds = [], []
    for name in names:
        parts = name.split(".")
        kinds.append(KINDS[parts[-2] if parts[-1].isdigit() else parts[-1]] if len(parts) > 1 else name)
        rows.append(3 * int(parts[1]) + {"head": 2, "mlp": 3}.get(kinds[-1], 1) if len(parts) > 1 else 0)
    rows[-1] = max(rows) + 1
    return {"layer": np.array(rows), "kind": np.array(kinds, dtype=object)}


def part_of(graph: Graph, wiring: Wiring, chosen: np.ndarray, **about: Any) -> Graph:
    """The part of such a graph that holds these edges, boolean `reader writer`, and the ways from inputs to their heads."""
    readers = {r.name: n for n, r in enumerate(wiring.readers)}
    writers = {w: n for n, w in enumerate(wiring.writers)}
    writing: np.ndarray = np.any(chosen, axis=0)

    def stays(start: str, end: str) -> bool:
        if start in writers and end in readers:
            return bool(chosen[readers[end], writers[start]])
        return bool(chosen[readers[start]].any() and writing[writers[end]])

    edges = np.array([stays(graph.nodes[a], graph.nodes[b]) for a, b in graph.edges], dtype=bool)
    left = np.unique(graph.edges[edges])
    return graph.with_(
        nodes=tuple(graph.nodes[n] for n in left),
        edges=np.searchsorted(left, graph.edges[edges]),
        values=graph.values[edges],
        weights=None if graph.weights is None else graph.weights[left],
        columns={name: column[left] for name, column in graph.columns.items()},
        **about,
    )


def scores_of(graph: Graph, wiring: Wiring) -> np.ndarray:
    """Scores `reader writer` of a graph that `graph` made, perhaps pruned since; NaN where it has no such edge.

    Raises:
        InputError: The graph has edges that this wiring has not.
    """
    readers = {r.name: n for n, r in enumerate(wiring.readers)}
    writers = {w: n for n, w in enumerate(wiring.writers)}
    found = np.full(wiring.edges.shape, np.nan)
    for (start, end), value in zip(graph.edges, graph.values, strict=True):
        source, target = graph.nodes[start], graph.nodes[end]
        if source in readers and source not in writers:
            continue  # from an input of a head to the head
        if source not in writers or target not in readers or not wiring.edges[readers[target], writers[source]]:
            raise InputError(
                f"The graph has an edge from {source} to {target}, which this model has not. Give the graph that edge_attribution made for it."
            )
        found[readers[target], writers[source]] = value
    return found
