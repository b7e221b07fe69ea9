"""Circuits: their ends, circuits that are patches by another name, and one that was put there by hand."""

from functools import cache

import numpy as np
import pytest

import activarium as act
from activarium import testing
from activarium.analyses.patching.circuit_runs import Circuits
from activarium.analyses.patching.circuits import prune, select
from activarium.analyses.patching.edge_graphs import scores_of
from activarium.analyses.patching.sides import Sides
from activarium.analyses.patching.wiring import Layer, Wiring, wiring
from activarium.errors import CertificateError, InputError

from .patched_models import CLEAN
from .patched_models import model as new
from .patched_models import pairs as pairs_of
from .planted_model import planted, planted_pairs

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2"]
double = cache(new)
circuit_faithfulness, edge_attribution = act.analyses.circuit_faithfulness, act.analyses.edge_attribution


def made(family, direction="noise"):
    model = double(family)
    pairs = pairs_of(model)
    return model, pairs, Circuits(model, Sides(pairs, direction), wiring(model))


# --- what a circuit's run means


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_give_the_base_metric_and_none_the_source_metric(family, direction):
    _, _, circuits = made(family, direction)
    edges = circuits.wiring.edges
    assert np.abs(circuits.base - circuits.source).max() > 1e-3, "else both ends would be one"
    np.testing.assert_allclose(circuits.metric(edges), circuits.base, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(circuits.metric(np.zeros_like(edges)), circuits.source, rtol=1e-9, atol=1e-9)
    assert circuits.empty_error() < 1e-9, "without edges every head and MLP writes what it wrote in the source run"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_edges_out_of_a_writer_it_is_patched(family):
    """Exact activation patching, which knows nothing of edges, gives the same number."""
    model, pairs, circuits = made(family)
    wires = circuits.wiring
    options = {"direction": "noise", "positions": "all"}
    heads = act.analyses.activation_patching(model, pairs, "blocks.*.attn.z", **options).per_example
    mlps = act.analyses.activation_patching(model, pairs, "blocks.*.mlp.out", **options).per_example
    for i, head in ((0, 1), (1, 3)):
        circuit = wires.edges.copy()
        circuit[:, wires.heads_of(i).start + head] = False
        np.testing.assert_allclose(circuits.metric(circuit) - circuits.base, heads[:, i, head], rtol=1e-7, atol=1e-9)
        circuit = wires.edges.copy()
        circuit[:, wires.mlp_of(i)] = False
        np.testing.assert_allclose(circuits.metric(circuit) - circuits.base, mlps[:, i], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("leaf", ["q", "k", "v"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_edges_into_a_head_its_input_is_patched(family, leaf):
    model, pairs, circuits = made(family)
    wires = circuits.wiring
    patched = act.analyses.activation_patching(model, pairs, f"blocks.*.attn.{leaf}", direction="noise", positions="all").per_example
    for i, head in ((0, 1), (1, 0)):
        circuit = wires.edges.copy()
        circuit[wires.inputs_of(i)[leaf].start + head] = False
        np.testing.assert_allclose(circuits.metric(circuit) - circuits.base, patched[:, i, head], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", ["vit", "dinov2", "phi", "qwen3"])
def test_other_families_have_exact_ends_too(family):
    _, _, circuits = made(family)
    edges = circuits.wiring.edges
    np.testing.assert_allclose(circuits.metric(edges), circuits.base, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(circuits.metric(np.zeros_like(edges)), circuits.source, rtol=1e-9, atol=1e-9)
    assert circuits.empty_error() < 1e-9


@pytest.mark.slow  # TransformerLens takes seconds to import
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_circuits_of_transformerlens_models(family, kind):
    """The same circuit gives the same answer as in the Hugging Face model."""
    pytest.importorskip("transformer_lens", reason="the extra [lens] is not installed")
    from ...capture import lens_models

    found = []
    for model in (act.wrap(*testing.tiny(family), certify=False), act.wrap(*getattr(lens_models, kind)(family), certify=False)):
        circuits = Circuits(model, Sides(pairs_of(model, bos=False), "noise"), wiring(model))
        circuit = circuits.wiring.edges & (np.random.default_rng(2).random(circuits.wiring.edges.shape) < 0.6)
        assert circuits.empty_error() < 1e-5
        np.testing.assert_allclose(circuits.metric(np.zeros_like(circuit)), circuits.source, rtol=1e-5, atol=1e-5)
        found.append(circuits.metric(circuit))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_dead_ends_change_nothing(family):
    _, _, circuits = made(family)
    wires = circuits.wiring
    circuit = wires.edges & (np.random.default_rng(1).random(wires.edges.shape) < 0.3)
    small = prune(wires, circuit)
    assert 0 < small.sum() < circuit.sum()
    np.testing.assert_allclose(circuits.metric(small), circuits.metric(circuit), rtol=1e-9, atol=1e-9)


# --- which edges


def test_selection_by_hand():
    wires = Wiring([Layer(1, 1)])  # writers embed, head, mlp; readers q k v mlp logits
    names = [r.name.rpartition(".")[0][-1:] or r.name for r in wires.readers]
    assert [r.name for r in wires.readers] == ["blocks.0.attn.q.0", "blocks.0.attn.k.0", "blocks.0.attn.v.0", "blocks.0.mlp", "logits"], (
        names
    )
    scores = np.zeros((5, 3))
    scores[2, 0], scores[3, 1], scores[4, 1], scores[4, 2] = -9, 8, 1, 2  # embed→v, head→mlp, head→logits, mlp→logits
    top = select(wires, scores, 2, "top")
    assert {*zip(*np.nonzero(top), strict=True)} == {(2, 0), (3, 1)}
    assert not prune(wires, top).any(), "neither way leads from the embedding to the logits"
    greedy = select(wires, scores, 3, "greedy")
    assert {*zip(*np.nonzero(greedy), strict=True)} == {(4, 2), (3, 1), (2, 0)}, (
        "the logits take the MLP, the MLP the head, the head the embedding"
    )
    assert prune(wires, greedy).sum() == 3
    assert select(wires, scores, 99, "greedy").sum() == select(wires, scores, 99, "top").sum() == wires.edges.sum()
    assert select(wires, scores, 0, "greedy").sum() == 0


def test_edges_without_a_score_are_never_chosen():
    wires = Wiring([Layer(1, 1)])
    scores = np.where(np.arange(5)[:, None] == 4, 1.0, np.nan) * np.ones((1, 3))
    for how in ("top", "greedy"):
        assert select(wires, scores, 99, how).sum() == 3


# --- the curve


@pytest.mark.parametrize("select_by", ["top", "greedy"])
def test_the_curve_runs_from_nothing_to_everything(select_by):
    model = double("gpt2")
    pairs = pairs_of(model)
    graph = edge_attribution(model, pairs, direction="noise")
    found = circuit_faithfulness(model, pairs, graph, shares=[0, 0.25, 1], select_by=select_by, progress=False, batch=1)
    curve, notes = found.curves["faithfulness"], found.diagnostics
    np.testing.assert_allclose(curve[[0, 2]], [0, 1], atol=1e-9)
    assert notes["CPR"] == pytest.approx(0.125 * curve[1] + 0.375 * (curve[1] + 1))
    off = abs(1 - curve[1])
    assert notes["CMD"] == pytest.approx(0.125 * (1 + off) + 0.375 * off)
    assert list(notes["edges"][[0, 2]]) == [0, 262] and notes["edges"][1] <= round(0.25 * 262)
    np.testing.assert_allclose(curve, (notes["of_the_metric"] - notes["empty"]) / (notes["whole"] - notes["empty"]))


# --- a circuit that is known


def test_the_planted_model_does_what_it_should():
    model = planted()
    pairs = planted_pairs(model)
    clean, corrupt = (model.run(side, metrics=pairs.metric).metric["logit_difference"] for side in (pairs.clean, pairs.corrupt))
    assert (clean > 0.9).all() and (abs(corrupt) < 1e-6).all()


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs", "eap-ig-activations"])
def test_the_planted_circuit_is_found_and_wholly_faithful(method):
    model = planted()
    pairs, wires = planted_pairs(model), wiring(model)
    graph = edge_attribution(model, pairs, direction="noise", method=method)
    scores = np.nan_to_num(scores_of(graph, wires))
    chosen = select(wires, scores, 3, "top")
    found = {(wires.writers[w], wires.readers[r].name) for r, w in zip(*np.nonzero(chosen), strict=True)}
    assert found == {
        ("embed", "blocks.0.attn.v.0"),  # the previous-token head carries the word
        ("blocks.0.attn.head.0", "blocks.1.attn.k.0"),  # by which the induction head finds its place
        ("blocks.1.attn.head.0", "logits"),
    }
    assert np.abs(scores[~chosen]).max() < 1e-9 * np.abs(scores).max()
    series = circuit_faithfulness(model, pairs, graph, shares=[3 / wires.edges.sum()], progress=False)
    assert series.curves["faithfulness"][0] == pytest.approx(1, abs=1e-9)
    assert series.diagnostics["edges"][0] == 3


def test_two_of_its_three_edges_are_worth_nothing():
    model = planted()
    pairs, wires = planted_pairs(model), wiring(model)
    circuits = Circuits(model, Sides(pairs, "noise"), wires)
    whole = select(wires, np.nan_to_num(scores_of(edge_attribution(model, pairs, direction="noise"), wires)), 3, "top")
    for edge in zip(*np.nonzero(whole), strict=True):
        part = whole.copy()
        part[edge] = False
        np.testing.assert_allclose(circuits.metric(part), circuits.source, atol=1e-9)


# --- refusals


def test_a_model_with_other_readers_is_refused():
    model = act.wrap(*testing.tiny("mixtral"), certify=False)
    pairs = pairs_of(model)
    graph = edge_attribution(model, pairs, check=False)
    with pytest.raises(CertificateError, match="With no edges every head and MLP of MixtralForCausalLM should write what it wrote"):
        circuit_faithfulness(model, pairs, graph, shares=[0.5], progress=False)


def test_equal_metrics_leave_nothing_to_share():
    model = double("gpt2")
    pairs = pairs_of(model, CLEAN, CLEAN)
    with pytest.raises(InputError, match="there is no difference to give shares of"):
        circuit_faithfulness(model, pairs, edge_attribution(model, pairs), shares=[0.5], progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shares": [0.5, 0.2]}, "each larger than the one before"),
        ({"shares": [0, 2]}, "give sizes of circuits from 0 to 1"),
        ({"batch": 0}, "batch=0: a forward takes at least one pair"),
        ({"shares": []}, "give sizes of circuits from 0 to 1"),
        ({"select_by": "best"}, "select='best' is not known; choose top or greedy"),
        ({"direction": "up"}, "direction='up' is not known"),
    ],
)
def test_options_that_mean_nothing(options, words):
    model = double("gpt2")
    pairs = pairs_of(model)
    with pytest.raises(InputError, match=words):
        circuit_faithfulness(model, pairs, edge_attribution(model, pairs), progress=False, **options)
