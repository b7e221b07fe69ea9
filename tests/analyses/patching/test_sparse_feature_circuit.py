"""Features of dictionaries: sums, dictionaries that change nothing, direct effects, and what is left with nodes at their mean."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import activarium as act
from activarium.analyses.patching.feature_runs import DirectEffects
from activarium.analyses.patching.sides import Sides
from activarium.edits import Mean, Set
from activarium.errors import InputError, UnknownSite

from .patched_models import CLEAN, CORRUPT
from .patched_models import model as new
from .patched_models import pairs as pairs_of

sparse_feature_circuit, attribution_patching = act.analyses.sparse_feature_circuit, act.analyses.attribution_patching
double = cache(new)
ALL = {"node_threshold": 0.0, "edge_threshold": 0.0, "progress": False}


class Same:
    """Its features are the values themselves."""

    def encode(self, x):
        return x.flatten(1)

    def decode(self, feature_acts):
        return feature_acts


class Sparse(nn.Module):
    """A random ReLU dictionary with biases."""

    def __init__(self, width, features, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = (
            torch.randn(s, generator=generator, dtype=torch.float64) / s[0] ** 0.5
            for s in ((width, features), (features, width), (features,), (width,))
        )

    def encode(self, x):
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, feature_acts):
        return feature_acts @ self.W_dec + self.b_dec


def weights(graph):
    """Effects by name, the logits aside."""
    return dict(zip(graph.nodes, graph.weights, strict=True))


def edges(graph):
    return {(graph.nodes[a], graph.nodes[b]): v for (a, b), v in zip(graph.edges, graph.values, strict=True)}


def total(found, start, end):
    return sum(v for (a, b), v in found.items() if a.startswith(f"{start}/") and b.startswith(end))


# --- nodes


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "vit"])
def test_features_and_error_add_up_to_the_site(family, steps):
    model = double(family)
    pairs = pairs_of(model)
    sites = ["blocks.0.mlp.out", "blocks.1.resid_pre"]
    report = sparse_feature_circuit(model, pairs, {s: Sparse(32, 80, n) for n, s in enumerate(sites)}, steps=steps, **ALL)
    assert report.diagnostics["sum_rule_error"] < 1e-12
    if steps:
        return
    for site in sites:
        wanted = attribution_patching(model, pairs, site, direction="noise", positions="all").values[0]
        assert sum(v for n, v in weights(report["graph"]).items() if n.startswith(site)) == pytest.approx(wanted, rel=1e-9)


def test_with_many_steps_nodes_add_up_to_the_exact_effect_of_the_site():
    model = double("gpt2")
    pairs = pairs_of(model)
    site = "blocks.1.mlp.out"
    exact = act.analyses.activation_patching(model, pairs, site, direction="noise", positions="all").values[0]
    found = [sum(list(weights(_one(model, pairs, site, steps)).values())[:-1]) for steps in (0, 20)]
    assert found[1] == pytest.approx(exact, rel=1e-3)
    assert abs(found[0] - exact) > 1e-2 * abs(exact)


def _one(model, pairs, site, steps):
    return sparse_feature_circuit(model, pairs, {site: Sparse(32, 80)}, steps=steps, **ALL)["graph"]


@pytest.mark.parametrize("site", ["blocks.1.mlp.out", "blocks.1.resid_post", "blocks.0.mlp.post"])
def test_a_dictionary_that_changes_nothing_is_plain_attribution(site):
    model = double("gpt2")
    pairs = pairs_of(model)
    report = sparse_feature_circuit(model, pairs, {site: Same()}, **ALL)
    found = weights(report["graph"])
    assert not [n for n in found if n.endswith("/error")], "its error is exactly zero"
    wanted = attribution_patching(model, pairs, site, direction="noise", positions="all", units="all").values[0]
    np.testing.assert_allclose([found[f"{site}/{i}"] for i in range(len(wanted))], wanted, rtol=1e-9, atol=1e-12)


def test_positions_can_be_kept_apart():
    model = double("gpt2")
    pairs = pairs_of(model, CLEAN[:1], CORRUPT[:1])
    site = "blocks.1.mlp.out"
    apart = weights(sparse_feature_circuit(model, pairs, {site: Same()}, aggregation="none", **ALL)["graph"])
    wanted = attribution_patching(model, pairs, site, direction="noise", units="all").values[0]
    for position, feature in ((0, 3), (3, 31)):
        assert apart[f"{site}[{position}]/{feature}"] == pytest.approx(wanted[position, feature], rel=1e-9)


def test_equal_inputs_have_no_circuit():
    model = double("gpt2")
    report = sparse_feature_circuit(model, pairs_of(model, CLEAN, CLEAN), {"blocks.1.mlp.out": Sparse(32, 80)}, **ALL)
    assert report["graph"].nodes == ("logits",) and len(report["graph"].edges) == 0


def test_thresholds_choose_by_size():
    model = double("gpt2")
    pairs, site = pairs_of(model), {"blocks.1.mlp.out": Sparse(32, 80)}
    everything = sparse_feature_circuit(model, pairs, site, **ALL)
    sizes = everything["nodes"].values
    assert (np.abs(sizes)[:-1] >= np.abs(sizes)[1:]).all()
    limit = float(np.abs(sizes)[5])
    few = sparse_feature_circuit(model, pairs, site, node_threshold=limit, edge_threshold=0.0, progress=False)
    assert few["nodes"].names == everything["nodes"].names[:6] and (sizes > 0).any() and (sizes < 0).any()


# --- edges


def test_direct_effects_and_those_by_other_sites_make_the_whole():
    """From before a block to after it: past its MLP, and through it."""
    model = double("gpt2")
    pairs = pairs_of(model)
    start, by, end = "blocks.0.resid_post", "blocks.1.mlp.out", "blocks.1.resid_post"
    report = sparse_feature_circuit(model, pairs, {s: Same() for s in (end, by, start)}, **ALL)
    found, sizes = edges(report["graph"]), weights(report["graph"])
    whole = sum(v for n, v in sizes.items() if n.startswith(start))
    assert total(found, start, end) + total(found, start, by) == pytest.approx(whole, rel=1e-9)
    assert abs(total(found, start, by)) > 1e-3 * abs(whole)
    without = edges(sparse_feature_circuit(model, pairs, {s: Same() for s in (start, end)}, **ALL)["graph"])
    assert total(without, start, end) == pytest.approx(whole, rel=1e-9), "with no site between them all ways are direct"
    assert not [e for e in found if e[0].startswith(start) and e[1] == "logits"], "every way to the logits leads by the last site"
    assert list(report["graph"].columns["layer"][[0, -1]]) == [0, 3]


def test_an_edge_by_hand():
    """One feature of a ReLU dictionary to one of a later one, by autograd on that number alone."""
    model = double("gpt2")
    pairs = pairs_of(model, CLEAN[:1], CORRUPT[:1])
    low, high = "blocks.0.mlp.out", "blocks.2.mlp.out"
    dictionaries = {low: Sparse(32, 60, 1), high: Sparse(32, 60, 2)}
    graph = sparse_feature_circuit(model, pairs, dictionaries, **ALL)["graph"]
    found = edges(graph)
    (a, b), value = max(((e, v) for e, v in found.items() if e[1].startswith(high) and "error" not in e[0] + e[1]), key=lambda e: abs(e[1]))
    i, j = int(a.rpartition("/")[2]), int(b.rpartition("/")[2])
    run = model.run(pairs.clean, [low, high], metrics={"metric": pairs.metric}, grad=True)
    source = model.run(pairs.corrupt, low)[low].tensor
    slope = run.backward("metric")[high].tensor @ dictionaries[high].W_dec[j]
    with torch.enable_grad():
        change = (dictionaries[low].encode(source) - dictionaries[low].encode(run[low].tensor.detach()))[:, i, None] * dictionaries[
            low
        ].W_dec[i]
        size, values = 1e-5, []
        for sign in (1, -1):
            moved = model.run(pairs.clean, high, edits=[Set(low, run[low].tensor.detach() + sign * size * change)])[high].tensor
            values.append((dictionaries[high].encode(moved)[:, j] * slope).sum())
    assert value == pytest.approx(float((values[0] - values[1]) / (2 * size)), rel=1e-5)


@pytest.mark.parametrize("site", ["blocks.1.attn.z", "blocks.1.attn.q", "blocks.1.mlp.post", "blocks.1.resid_pre", "blocks.1.mlp.in"])
def test_every_site_is_really_cut(site):
    """Beyond a cut nothing before it has a way to the answer; the cut itself has the model's own gradient."""
    model = double("gpt2")
    pairs = pairs_of(model)
    run = DirectEffects(model, Sides(pairs, "noise"), [site, "blocks.0.resid_pre"])
    plain = model.run(pairs.clean, [site, "blocks.0.resid_pre"], metrics={"metric": pairs.metric}, grad=True).backward("metric")
    slopes = run.of(run.metric, [site, "blocks.0.resid_pre"])
    torch.testing.assert_close(slopes[site], plain[site].tensor, rtol=1e-9, atol=1e-12)
    assert (slopes["blocks.0.resid_pre"] - plain["blocks.0.resid_pre"].tensor).abs().max() > 1e-6
    assert run.order == ("blocks.0.resid_pre", site)


# --- what is left


def test_faithfulness_of_everything_and_of_nothing():
    model = double("gpt2")
    pairs = pairs_of(model)
    dictionaries = {"blocks.1.mlp.out": Sparse(32, 80), "blocks.1.resid_post": Sparse(32, 60, 1)}
    report = sparse_feature_circuit(model, pairs, dictionaries, node_threshold=1e9, progress=False)
    table = report["faithfulness"].values
    assert table[2] == pytest.approx([0, 1], abs=1e-9), "no node is scored: the circuit is empty, its complement the model"
    assert table[0, 1] == pytest.approx(1, abs=1e-9) and table[1, 0] == pytest.approx(0, abs=1e-9)
    whole = sparse_feature_circuit(model, pairs, dictionaries, **(ALL | {"node_threshold": 1e-15}))["faithfulness"].values
    assert whole[0, 0] > 0.5, "features that never change are at their mean anyway"


def test_means_are_what_all_other_nodes_are_set_to():
    """With nothing kept, a site at its mean features and mean error is at its mean value."""
    model = double("gpt2")
    pairs, site = pairs_of(model), "blocks.1.mlp.out"
    report = sparse_feature_circuit(model, pairs, {site: Sparse(32, 80)}, node_threshold=1e9, progress=False)
    both = torch.cat([model.run(side, site)[site].tensor for side in (pairs.clean, pairs.corrupt)])
    wanted = model.run(pairs.clean, edits=[Mean(site, both.mean(0))], metrics={"metric": pairs.metric}).metric["metric"].mean()
    assert report.diagnostics["all_at_their_mean"] == pytest.approx(float(wanted), rel=1e-9)


def test_means_are_those_of_each_position_where_positions_are_apart():
    model = double("gpt2")
    pairs, site = pairs_of(model, CLEAN[:1], CORRUPT[:1]), "blocks.1.mlp.out"
    report = sparse_feature_circuit(model, pairs, {site: Sparse(32, 80)}, aggregation="none", node_threshold=1e9, progress=False)
    both = [model.run(side, site)[site].tensor for side in (pairs.clean, pairs.corrupt)]
    edit = Set(site, (both[0] + both[1]) / 2)
    wanted = model.run(pairs.clean, edits=[edit], metrics={"metric": pairs.metric}).metric["metric"].mean()
    assert report.diagnostics["all_at_their_mean"] == pytest.approx(float(wanted), rel=1e-9)


def test_features_that_switch_on_are_counted():
    model = double("gpt2")
    pairs, site = pairs_of(model), "blocks.1.mlp.out"
    dictionary = Sparse(32, 80)
    notes = sparse_feature_circuit(model, pairs, {site: dictionary}, **ALL).diagnostics
    base, source = (dictionary.encode(model.run(side, site)[site].tensor) for side in (pairs.clean, pairs.corrupt))
    assert notes["switched_on"] == int(((base == 0) & (source > 0)).sum()) > 0
    assert 0 < notes["switched_on_share"] < 1
    assert sparse_feature_circuit(model, pairs, {site: Same()}, **ALL).diagnostics["switched_on"] == 0


# --- dictionaries of others


@pytest.mark.slow
def test_a_dictionary_of_sae_lens():
    sae_lens = pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    model = double("gpt2")
    torch.manual_seed(0)
    sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=32, d_sae=64))
    with torch.no_grad():
        for values in sae.parameters():
            values.normal_(0, 0.2)
    report = sparse_feature_circuit(model, pairs_of(model), {"blocks.1.mlp.out": sae}, **ALL)
    assert report.diagnostics["sum_rule_error"] < 1e-5  # it computes in float32
    assert len(report["nodes"].names) > 10
    assert all(values.grad is None for values in sae.parameters())


# --- refusals


class Normalising(Same):
    """Each row is brought to length one, and its length is forgotten between two runs."""

    def encode(self, x):
        self.size = x.norm(dim=-1, keepdim=True)
        return x / self.size

    def decode(self, feature_acts):
        return feature_acts * self.size


class Wide(Same):
    def decode(self, feature_acts):
        return feature_acts[:, :3]


@pytest.mark.parametrize(
    ("dictionaries", "options", "words"),
    [
        ({}, {}, "There are no dictionaries"),
        ({"blocks.1.mlp.out": 3}, {}, "The dictionary at blocks.1.mlp.out is a int, which lacks encode or decode"),
        ({"blocks.1.resid_mid": Same()}, {}, "blocks.1.resid_mid is a sum inside a block"),
        ({"blocks.1.resid_pre": Same(), "blocks.0.resid_post": Same()}, {}, "hold the same values twice"),
        ({"blocks.1.mlp.out": Wide()}, {}, r"makes codes \(10, 32\) and values \(10, 3\) of rows \(10, 32\)"),
        ({"blocks.1.mlp.out": Normalising()}, {}, "The decoder of its dictionary is not affine"),
        ({"blocks.1.mlp.out": Same()}, {"batch": 0}, "batch=0: a forward takes at least one pair"),
        ({"blocks.1.mlp.out": Same()}, {"steps": -1}, "none can be negative"),
        ({"blocks.1.mlp.out": Same()}, {"aggregation": "none"}, "aggregation='none' needs pairs of one length"),
        ({"blocks.1.mlp.out": Same()}, {"aggregation": "max"}, "aggregation='max' is not known"),
    ],
)
def test_what_cannot_be_asked(dictionaries, options, words):
    model = double("gpt2")
    with pytest.raises(InputError, match=words):
        sparse_feature_circuit(model, pairs_of(model), dictionaries, progress=False, **options)


def test_an_unknown_site_is_named():
    model = double("gpt2")
    with pytest.raises(UnknownSite, match=r"No site in this model called 'blocks.9.mlp.out'"):
        sparse_feature_circuit(model, pairs_of(model), {"blocks.9.mlp.out": Same()}, progress=False)
