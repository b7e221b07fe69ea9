"""CircuitGraph: what travels, where the threshold starts, and what Python has of what is on screen."""

import json

import numpy as np
import pytest
import traitlets

from activarium.results import Graph, identical
from activarium.widgets import CircuitGraph, payload, show, widget_for

random = np.random.default_rng(4)


def layered(layers=6, width=12, **words):
    layer = np.repeat(np.arange(layers), width)
    edges = np.array([(a, b) for a in range(len(layer)) for b in range(len(layer)) if layer[a] < layer[b]])
    columns = {"layer": layer, "kind": np.array(["head"] * len(layer)), "readout": np.array(["<script>"] * len(layer))}
    names = [f"blocks.{n}.{i % width}" for i, n in enumerate(layer)]
    values = random.normal(size=len(edges)) ** 3
    return Graph(names, edges, values, random.normal(size=len(names)).astype("f4"), columns, title="Circuit", unit="logits", **words)


def arrays(widget):
    return payload.unpack(widget.spec["arrays"], widget.data)


def test_numbers_travel_bit_for_bit_and_never_as_json():
    graph = layered()
    widget = show(graph)
    assert isinstance(widget, CircuitGraph)
    found = arrays(widget)
    assert found["values"].tobytes() == graph.values.tobytes()
    assert found["weights"].tobytes() == graph.weights.tobytes()
    assert (found["edges"] == graph.edges).all()
    assert (found["rows"] == graph.rows()).all()
    assert str(float(graph.values[0])) not in json.dumps(widget.spec)


def test_words_travel_as_text():
    widget = show(layered())
    assert widget.spec["columns"]["readout"][0] == "<script>"
    assert widget.spec["nodes"][13] == "blocks.1.1"
    assert show(Graph(("a", "b"), [[0, 1]], [1.0])).spec["columns"] == {}


def test_it_starts_with_what_can_be_read():
    graph = layered()
    widget = show(graph)
    assert len(graph.values) > 2000
    assert 100 < len(widget.pruned.values) <= 200
    assert show(Graph(("a", "b"), [[0, 1]], [1.0])).threshold == 0
    assert CircuitGraph(graph, threshold=2.0).threshold == 2.0


def test_the_threshold_is_the_readers():
    graph = layered()
    widget = show(graph)
    widget.set_state({"threshold": 3.0})
    assert identical(widget.pruned, graph.pruned(3.0))
    with pytest.raises(traitlets.TraitError):
        widget.threshold = -1.0


def test_pointed_names_a_weight():
    graph = layered()
    assert show(graph).value({"node": 5}) == graph.weights[5]
    assert np.isnan(show(graph.with_(weights=None)).value({"node": 5}))


def test_graphs_without_an_edge_show_themselves():
    for values, edges in (([], np.empty((0, 2), int)), ([np.nan], [[0, 1]])):
        assert widget_for(Graph(("a", "b"), edges, values)) is None


def test_the_picture_keeps_to_what_can_be_seen():
    widget = show(layered())
    first = widget.png()
    assert first.startswith(b"\x89PNG")
    widget.threshold *= 1.5
    assert widget.png() != first
    widget.threshold = 0.0
    assert widget.png() == first  # thousands of lines would be one blot


def test_thirty_thousand_edges_are_made_ready_quickly():
    graph = layered(layers=13, width=20)
    assert len(graph.values) > 30_000
    widget = show(graph)
    assert len(widget.data) < 400_000
    assert 100 < len(widget.pruned.values) <= 200
