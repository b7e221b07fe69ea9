"""Graph: nodes and weighted edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from activarium import graphs, pictures
from activarium.errors import AxisError, InputError
from activarium.results._result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Result):
    """Nodes and weighted edges (circuits, derivations).

    Attributes:
        nodes: Node names.
        edges: (n, 2) node indices, source then target.
        values: One weight per edge.
        weights: One number per node.
        columns: Further words or numbers, one per node. Drawings know `layer` (whole number, bottom to top), `kind`
            (`embed head mlp logits feature error`) and `readout` (what the node writes, in words).
    """

    nodes: tuple[str, ...]
    edges: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges)
        object.__setattr__(self, "nodes", tuple(str(n) for n in self.nodes))
        object.__setattr__(self, "edges", edges.reshape(-1, 2).astype(int) if not edges.size else edges)
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "weights", None if self.weights is None else np.asarray(self.weights))
        object.__setattr__(self, "columns", {k: np.asarray(v) for k, v in self.columns.items()})
        super().__post_init__()
        _match_edges(self.edges, len(self.nodes))
        if len(self.values) != len(self.edges):
            raise AxisError(f"Graph has {len(self.edges)} edges but {len(self.values)} values; give one each.")
        for name, column in [*([] if self.weights is None else [("weights", self.weights)]), *self.columns.items()]:
            if len(column) != len(self.nodes):
                raise AxisError(f"Graph has {len(self.nodes)} nodes but {len(column)} entries in {name!r}; give one each.")
        layer = self.columns.get("layer")
        if layer is not None and layer.dtype.kind not in "iu":
            raise InputError(f"Column 'layer' counts the rows of the drawing in whole numbers; got {layer.dtype}. Use .astype(int).")

    def pruned(self, threshold: float) -> Graph:
        """The edges of size `threshold` or more, without nodes that have lost every way in or every way out.

        Raises:
            InputError: The threshold is negative or no number.
        """
        if not threshold >= 0:
            raise InputError(f"pruned() compares sizes of edges, so its threshold is 0 or more; got {threshold}.")
        stays = graphs.kept(len(self.nodes), self.edges, self.values, threshold)
        left = np.unique(self.edges[stays])
        return self.with_(
            nodes=tuple(self.nodes[i] for i in left),
            edges=np.searchsorted(left, self.edges[stays]),
            values=self.values[stays],
            weights=None if self.weights is None else self.weights[left],
            columns={name: column[left] for name, column in self.columns.items()},
        )

    def threshold_for(self, most: int) -> float:
        """The smallest threshold at which `pruned` leaves at most `most` edges."""
        return graphs.threshold_for(len(self.nodes), self.edges, self.values, most)

    def rows(self) -> np.ndarray:
        """The row of the drawing that each node stands in, counted from the bottom."""
        return graphs.rows(len(self.nodes), self.edges, self.columns.get("layer"))

    def _columns(self) -> dict[str, Any]:
        ends = {k: [self.nodes[i] for i in self.edges[:, c]] for c, k in enumerate(("source", "target"))}
        return ends | {self.unit or "weight": self.values}

    def _picture(self) -> str:
        small = self.pruned(self.threshold_for(graphs.STATIC_EDGES))
        words = (
            f"{len(small.values)} of {len(self.values)} edges, {len(small.nodes)} of {len(self.nodes)} nodes; blue below 0, orange above"
        )
        return graphs.picture(small.nodes, small.edges, small.values, small.rows(), words)

    def _summary(self) -> list[list[str]]:
        order = np.argsort(-np.abs(np.nan_to_num(self.values)), kind="stable")[:10]
        lines = [[*(self.nodes[n] for n in self.edges[i]), pictures.number(self.values[i])] for i in order]
        return [["source", "target", self.unit or "weight"], *lines]


def _match_edges(edges: np.ndarray, nodes: int) -> None:
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise AxisError(f"Edges have shape {edges.shape}; wanted (n, 2), a source and a target each.")
    if edges.dtype.kind not in "iu":
        raise InputError(f"Edges are indices of nodes, whole numbers; got {edges.dtype}.")
    outside = ((edges < 0) | (edges >= nodes)).any(1)
    if outside.any():
        at = int(outside.argmax())
        raise InputError(f"Edge {at} joins nodes {edges[at, 0]} and {edges[at, 1]}; the {nodes} nodes are numbered from 0 to {nodes - 1}.")
