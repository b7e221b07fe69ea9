"""CircuitGraph: nodes in layers, edges by sign and size, and a slider that leaves only what leads somewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import traitlets

from activarium import graphs, pictures
from activarium.results import Graph, Result
from activarium.widgets import payload
from activarium.widgets.base import Widget, bundle, stylesheet

START_EDGES = 200  # more lines than this are felt, not read


class CircuitGraph(Widget):
    """A circuit from its embeddings up: a threshold prunes it, pointing at a node reads it.

    Attributes:
        threshold: Edges below this size are left out, and then every node that has lost its way in or out.
    """

    shows: ClassVar[type[Result]] = Graph
    result: Graph
    _esm = bundle("circuit_graph")
    _css = stylesheet("circuit_graph")

    threshold = traitlets.Float(0.0, min=0.0).tag(sync=True)

    def __init__(self, result: Graph, **traits: Any) -> None:
        start = result.threshold_for(START_EDGES)
        super().__init__(result, **({"threshold": start} | traits))
        columns = {name: [str(v) for v in result.columns[name]] for name in ("kind", "readout", "layer") if name in result.columns}
        arrays = {
            # float32 names every index up to 2^24 exactly.
            "edges": result.edges.astype(np.float32),
            "values": payload.floats(result.values),
            "rows": result.rows().astype(np.float32),
        }
        if result.weights is not None:
            arrays["weights"] = payload.floats(result.weights)
        table, self.data = payload.pack(arrays)
        self.spec = {
            "title": result.title,
            "unit": result.unit,
            "nodes": list(result.nodes),
            "columns": columns,
            "start": start,
            "check": result.checked,
            "dtypes": {name: "f4" if arrays[name].dtype == np.float32 else "f8" for name in arrays},
            "arrays": table,
        }

    @classmethod
    def accepts(cls, result: Result) -> bool:
        """Graphs with an edge of finite weight."""
        return isinstance(result, Graph) and result.values.dtype.kind in "bfiu" and bool(np.isfinite(result.values).any())

    @property
    def pruned(self) -> Graph:
        """What is on screen, as a Graph of its own."""
        return self.result.pruned(self.threshold)

    def value(self, place: Mapping[str, int]) -> float:
        """The weight of a node such as `pointed` or one of `pinned`; NaN where nodes have none."""
        return float("nan") if self.result.weights is None else float(self.result.weights[place["node"]])

    def png(self) -> bytes:
        """The edges on screen, of many the largest."""
        small = self.result.pruned(max(self.threshold, self.result.threshold_for(START_EDGES)))
        return pictures.png(graphs.raster(small.nodes, small.edges, small.values, small.rows()))
