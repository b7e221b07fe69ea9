"""Graphs: what a threshold leaves, where nodes stand, and edges that cannot be."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activarium import graphs, pictures
from activarium.errors import AxisError, InputError
from activarium.results import Graph, identical, load

# embed → a → b → logits, a side branch embed → c that goes on only weakly, and d, entered only weakly.
NODES = ("embed", "a", "b", "c", "d", "logits")
EDGES = np.array([[0, 1], [1, 2], [2, 5], [0, 3], [3, 5], [0, 4], [4, 5]])
VALUES = np.array([3.0, -2.0, 2.5, 4.0, 0.5, 0.25, 5.0])
LAYERS = {"layer": np.array([0, 1, 2, 1, 1, 3]), "readout": np.array(["", "Anna", "", "", "", ""])}
GRAPH = Graph(NODES, EDGES, VALUES, np.arange(6.0), LAYERS, title="by hand", unit="logits")


def test_pruned_by_hand():
    small = GRAPH.pruned(1.0)
    assert small.nodes == ("embed", "a", "b", "logits")  # c leads nowhere any more, nothing leads to d
    assert small.edges.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert small.values.tolist() == [3.0, -2.0, 2.5]
    assert small.weights is not None and small.weights.tolist() == [0, 1, 2, 5]
    assert small.columns["readout"].tolist() == ["", "Anna", "", ""]
    assert (small.title, small.unit) == ("by hand", "logits")


def test_one_cut_edge_takes_its_whole_path_along():
    assert GRAPH.pruned(2.25).nodes == ()
    assert GRAPH.pruned(2.0).nodes == ("embed", "a", "b", "logits")  # the threshold itself stays


def test_threshold_zero_keeps_all_but_the_unjoined_and_the_unknown():
    assert identical(GRAPH.pruned(0), GRAPH)
    lonely = Graph(("a", "b", "alone"), [[0, 1]], [1.0])
    assert lonely.pruned(0).nodes == ("a", "b")
    assert Graph(("a", "b"), [[0, 1]], [np.nan]).pruned(0).nodes == ()


def test_a_threshold_is_a_size():
    for wrong in (-1.0, float("nan")):
        with pytest.raises(InputError, match=r"compares sizes of edges, so its threshold is 0 or more; got"):
            GRAPH.pruned(wrong)


def _paths(graph: Graph, threshold: float) -> set[int]:
    """The edges on a path of strong edges from a node that nothing enters to one that nothing leaves, walked one by one."""
    strong = [i for i, v in enumerate(graph.values) if abs(v) >= threshold]
    ends, starts = set(graph.edges[:, 0].tolist()), set(graph.edges[:, 1].tolist())

    def walk(node: int, seen: tuple[int, ...]) -> set[int]:
        if node not in ends:
            return set(seen)
        return set().union(*[walk(int(graph.edges[i, 1]), (*seen, i)) for i in strong if graph.edges[i, 0] == node])

    return set().union(*[walk(n, ()) for n in range(len(graph.nodes)) if n not in starts])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(-4, 4)), min_size=1, max_size=14), st.integers(0, 4))
def test_pruning_is_walking_every_path(drawn, threshold):
    forward = [(a, b, v) for a, b, v in drawn if a < b] or [(0, 1, 1)]
    graph = Graph([str(n) for n in range(7)], [e[:2] for e in forward], [float(e[2]) for e in forward])
    stays = graphs.kept(7, graph.edges, graph.values, threshold)
    assert set(np.flatnonzero(stays).tolist()) == _paths(graph, threshold)
    small = graph.pruned(threshold)
    assert identical(small, small.pruned(threshold))


CASES = json.loads((Path(__file__).parents[1] / "widgets" / "src" / "circuit_graph" / "pruning.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_python_leaves_what_the_page_leaves(case):
    """The front end's own tests read the same file."""
    graph = Graph([str(n) for n in range(case["count"])], case["edges"], case["values"])
    stays = graphs.kept(case["count"], graph.edges, graph.values, case["threshold"])
    assert np.flatnonzero(stays).tolist() == case["kept"] == sorted(_paths(graph, case["threshold"]))


def test_cycles_end_too():
    loop = Graph(("a", "b", "c"), [[0, 1], [1, 2], [2, 0]], [1.0, 2.0, 3.0])
    assert loop.pruned(1.0).nodes == loop.nodes
    assert loop.pruned(1.5).nodes == ()
    assert loop.rows().tolist() == [0, 1, 2]


@pytest.mark.parametrize("most", [0, 1, 5, 40, 200, 10**6])
def test_the_threshold_for_so_many_edges_is_the_smallest(most):
    random = np.random.default_rng(3)
    layers = np.repeat(np.arange(6), 8)
    pairs = np.array([(a, b) for a in range(48) for b in range(48) if layers[a] < layers[b]])
    graph = Graph([str(n) for n in range(48)], pairs, random.normal(size=len(pairs)))
    threshold = graph.threshold_for(most)
    left = len(graph.pruned(threshold).values)
    below = np.abs(graph.values)[np.abs(graph.values) < threshold]
    # Whole paths go at once: 0 edges would be no picture, so then it is the smallest set that is not empty.
    assert 0 < left <= most or (left > 0 and len(graph.pruned(float(np.nextafter(threshold, 9))).values) == 0)
    if below.size:
        assert len(graph.pruned(float(below.max())).values) > most
    assert Graph(("a", "b"), np.empty((0, 2), int), []).threshold_for(5) == 0.0


def test_rows_follow_layers_and_within_them_what_feeds_what():
    assert GRAPH.rows().tolist() == [0, 1, 2, 1, 1, 3]
    block = Graph(("head", "mlp", "embed"), [[2, 0], [0, 1], [2, 1]], [1.0, 1, 1], columns={"layer": [3, 3, -1]})
    assert block.rows().tolist() == [1, 2, 0]
    assert GRAPH.with_(columns={}).rows().tolist() == [0, 1, 2, 1, 1, 3]


def test_nodes_of_a_row_share_its_width():
    assert graphs.places(np.array([0, 1, 1])).tolist() == [[0.5, 0.75], [0.25, 0.25], [0.75, 0.25]]


def test_signs_are_told_apart_by_more_than_red_and_green():
    below, above = graphs.colours(np.array([-1.0, 1.0])).tolist()
    assert (below, above) == (pictures.DIVERGING[1].tolist(), pictures.DIVERGING[5].tolist())


def test_edges_that_cannot_be_are_refused_in_words():
    for wrong, error, words in [
        ({"edges": [[0, 1, 2]]}, AxisError, r"Edges have shape \(1, 3\); wanted \(n, 2\), a source and a target each"),
        ({"edges": [[0.0, 1.0]]}, InputError, "indices of nodes, whole numbers; got float64"),
        ({"edges": [[0, 2]]}, InputError, "Edge 0 joins nodes 0 and 2; the 2 nodes are numbered from 0 to 1"),
        ({"edges": [[-1, 0]]}, InputError, "Edge 0 joins nodes -1 and 0"),
        ({"values": [1.0, 2.0]}, AxisError, "Graph has 1 edges but 2 values; give one each"),
        ({"weights": [1.0]}, AxisError, "Graph has 2 nodes but 1 entries in 'weights'; give one each"),
        ({"columns": {"kind": ["mlp"]}}, AxisError, "Graph has 2 nodes but 1 entries in 'kind'"),
        ({"columns": {"layer": [0.0, 1.0]}}, InputError, "'layer' counts the rows of the drawing in whole numbers; got float64"),
    ]:
        with pytest.raises(error, match=words):
            Graph(**({"nodes": ("a", "b"), "edges": [[0, 1]], "values": [1.0]} | wrong))


def test_columns_are_frozen_saved_and_loaded(tmp_path):
    again = load(GRAPH.save(tmp_path / "graph"))
    assert identical(again, GRAPH)
    assert again.rows().tolist() == GRAPH.rows().tolist()
    with pytest.raises(ValueError, match="read-only"):
        GRAPH.columns["layer"][0] = 5


def test_the_table_has_a_line_per_edge():
    frame = GRAPH.to_frame()
    assert list(frame.columns) == ["source", "target", "logits"]
    assert frame.iloc[1].tolist() == ["a", "b", -2.0]


def test_the_static_picture_is_escaped_svg_inside_an_image():
    graph = GRAPH.with_(nodes=("<script>alert(1)</script>", *NODES[1:]))
    page = graph._repr_html_()
    svg = base64.b64decode(re.search(r"data:image/svg\+xml;base64,([^\"]+)", page)[1]).decode()
    assert "<script" not in svg and "<script" not in page
    assert "&lt;script&gt;" in svg
    assert svg.count("<path") == len(EDGES)
    assert "7 of 7 edges, 6 of 6 nodes" in page
    assert "0 of 0 edges" in Graph((), [], [])._repr_html_()


def test_the_picture_as_pixels_shows_both_signs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    pixels = graphs.raster(GRAPH.nodes, GRAPH.edges, GRAPH.values, GRAPH.rows()).reshape(-1, 3)
    for colour in (pictures.DIVERGING[1], pictures.DIVERGING[5]):
        assert (pixels == colour).all(1).sum() > 20
