"""Circuits taken out of a graph: which nodes and edges are left, and that they can be run."""

from functools import cache

import numpy as np
import pytest

import activarium as act
from activarium.analyses.patching.edge_graphs import graph, scores_of
from activarium.analyses.patching.wiring import wiring
from activarium.errors import InputError

from .patched_models import model as new
from .patched_models import pairs as pairs_of
from .planted_model import planted, planted_pairs

circuit_extraction, edge_attribution = act.analyses.circuit_extraction, act.analyses.edge_attribution
double = cache(new)


@pytest.mark.parametrize("select_by", ["greedy", "top"])
def test_the_planted_circuit_by_hand(select_by):
    model = planted()
    pairs = planted_pairs(model)
    circuit = circuit_extraction(model, edge_attribution(model, pairs, direction="noise"), 3, select_by=select_by)
    ways = {(circuit.nodes[a], circuit.nodes[b]) for a, b in circuit.edges}
    assert ways == {
        ("embed", "blocks.0.attn.v.0"),
        ("blocks.0.attn.v.0", "blocks.0.attn.head.0"),
        ("blocks.0.attn.head.0", "blocks.1.attn.k.0"),
        ("blocks.1.attn.k.0", "blocks.1.attn.head.0"),
        ("blocks.1.attn.head.0", "logits"),
    }
    assert circuit.diagnostics["circuit_edges"] == 3
    faithful = act.analyses.circuit_faithfulness(model, pairs, circuit, shares=[1], progress=False)
    assert faithful.curves["faithfulness"][0] == pytest.approx(1, abs=1e-9)
    assert faithful.diagnostics["edges"][0] == 3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_circuit_keeps_scores_and_leads_from_the_embedding_to_the_logits(family):
    model = double(family)
    found = edge_attribution(model, pairs_of(model), direction="noise")
    wires = wiring(model)
    for count in (1, 12, 40):
        circuit = circuit_extraction(model, found, count)
        before, after = scores_of(found, wires), scores_of(circuit, wires)
        kept = ~np.isnan(after)
        assert np.array_equal(before[kept], after[kept]) and kept.sum() == circuit.diagnostics["circuit_edges"] <= count
        if kept.any():
            starts, ends = set(circuit.edges[:, 0]), set(circuit.edges[:, 1])
            assert {circuit.nodes[n] for n in starts - ends} == {"embed"} and {circuit.nodes[n] for n in ends - starts} == {"logits"}
            assert set(circuit.columns) == {"layer", "kind", "readout"} and len(circuit.weights) == len(circuit.nodes)
    every = circuit_extraction(model, found, 10_000)
    assert every.diagnostics["circuit_edges"] == wires.edges.sum() and len(every.edges) == len(found.edges)


def test_what_cannot_be_asked():
    model = double("gpt2")
    found = edge_attribution(model, pairs_of(model))
    with pytest.raises(InputError, match="edges=0: a circuit has at least one edge"):
        circuit_extraction(model, found, 0)
    with pytest.raises(InputError, match="select='best' is not known; choose top or greedy"):
        circuit_extraction(model, found, select_by="best")
    with pytest.raises(InputError, match="which this model has not"):
        circuit_extraction(double("gpt_neox"), graph(wiring(model), np.where(wiring(model).edges, 1.0, 0.0)))
