"""Edges: counts, both sums, and agreement with inputs that are really split."""

from functools import cache

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.analyses.patching.edge_graphs import graph, scores_of
from activarium.analyses.patching.norms import Norm
from activarium.analyses.patching.wiring import Layer, Wiring, wiring
from activarium.errors import CertificateError, InputError, MissingSite
from activarium.rules import Rules, Secant

from .patched_models import CLEAN, CORRUPT
from .patched_models import model as made
from .patched_models import pairs as pairs_of
from .planted_model import planted, planted_pairs

edge_attribution = act.analyses.edge_attribution
double = cache(made)
FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2"]


def edges_of(model, pairs, **options):
    """Scores `reader writer` by name, 0 where there is no edge."""
    wires = wiring(model)
    return wires, np.nan_to_num(scores_of(edge_attribution(model, pairs, **options), wires))


# --- the wiring


def test_gpt2_small_has_157_writers_445_inputs_and_32491_edges():
    wires = Wiring([Layer(12, 12)] * 12)
    assert (len(wires.writers), len(wires.readers), int(wires.edges.sum())) == (157, 445, 32491)


def test_edges_by_hand_of_one_block():
    wires = Wiring([Layer(1, 1)])
    found = {(wires.writers[w], wires.readers[r].name) for r, w in zip(*np.nonzero(wires.edges), strict=True)}
    head = {("embed", f"blocks.0.attn.{leaf}.0") for leaf in "qkv"}
    mlp = {("embed", "blocks.0.mlp"), ("blocks.0.attn.head.0", "blocks.0.mlp")}
    assert found == head | mlp | {(w, "logits") for w in ("embed", "blocks.0.attn.head.0", "blocks.0.mlp")}


def test_in_a_parallel_block_no_edge_leads_from_attention_to_its_own_mlp():
    wires, scores = edges_of(double("gpt_neox"), pairs_of(double("gpt_neox")))
    for block in range(2):
        readers = [n for n, r in enumerate(wires.readers) if r.name == f"blocks.{block}.mlp"]
        assert not wires.edges[readers, wires.heads_of(block)].any()
        assert (scores[readers, wires.heads_of(block)] == 0).all()
    assert wires.edges.sum() == 102  # 2 blocks of 12 + 1 inputs, after 1 and 6 writers; 11 reach the logits


def test_grouped_keys_and_values_are_one_reader_each():
    wires = wiring(double("llama"))
    names = [r.name for r in wires.readers if r.layer == 0]
    assert [n.rpartition("attn.")[2] for n in names[:-1]] == ["q.0", "q.1", "q.2", "q.3", "k.0", "k.1", "v.0", "v.1"]
    head = wires.writers.index("blocks.0.attn.head.2")
    assert [wires.readers[r].name for r in np.flatnonzero(wires.serves[:, head])] == [
        "blocks.0.attn.q.2",
        "blocks.0.attn.k.1",
        "blocks.0.attn.v.1",
    ]


# --- both sums


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edges_add_up_out_of_writers_and_into_readers(family, direction):
    """Against attribution patching of nodes, which knows nothing of edges, and recorded streams."""
    model = double(family)
    pairs = pairs_of(model)
    wires, scores = edges_of(model, pairs, direction=direction)
    options = {"direction": direction, "positions": "all"}
    embed = act.analyses.attribution_patching(model, pairs, "blocks.0.resid_pre", **options).values
    mlp = act.analyses.attribution_patching(model, pairs, "blocks.*.mlp.out", **options).values
    near = {"rtol": 1e-9, "atol": 1e-9 * np.abs(mlp).max()}
    np.testing.assert_allclose(scores[:, 0].sum(), embed[0], **near)
    np.testing.assert_allclose([scores[:, wires.mlp_of(i)].sum() for i in range(len(wires.layers))], mlp, **near)
    node = "blocks.*.attn.out" if family == "gemma2" else "blocks.*.attn.z"  # a norm after attention: only the whole adds up
    heads = act.analyses.attribution_patching(model, pairs, node, **options).values
    mine = np.stack([scores[:, wires.heads_of(i)].sum(0) for i in range(len(wires.layers))])
    np.testing.assert_allclose(mine.sum(1) if family == "gemma2" else mine, heads, **near)
    last = act.analyses.attribution_patching(model, pairs, f"blocks.{len(wires.layers) - 1}.resid_post", **options).values
    np.testing.assert_allclose(scores[-1].sum(), last[0], **near)
    assert edge_attribution(model, pairs, direction=direction).diagnostics["sum_rule_error"] < 1e-9


@pytest.mark.parametrize("family", ["qwen3", "phi", "opt", "mistral"])
def test_the_error_that_is_reported_is_rounding_in_other_families(family):
    model = double(family)
    assert edge_attribution(model, pairs_of(model)).diagnostics["sum_rule_error"] < 1e-9


@pytest.mark.parametrize("family", ["vit", "dinov2", "clip_vision"])
def test_images_have_edges_too(family):
    model = double(family)
    pairs = pairs_of(model)
    assert edge_attribution(model, pairs).diagnostics["sum_rule_error"] < 1e-9


# --- against inputs that are really split


def split_inputs(model, pairs, i):
    """Effects at the inputs of block i by autograd: each of its inputs is given a stream of its own, to which zeros are added."""
    hf, layer = model.torch_module, wiring(model).layers[i]
    block = hf.transformer.h[i] if hasattr(hf, "transformer") else hf.model.layers[i]
    counts = [("q", layer.heads), ("k", layer.groups), ("v", layer.groups)]
    leaves, seen = {}, {}
    norm = block.ln_1 if hasattr(block, "ln_1") else block.input_layernorm

    def keep(module, args):
        seen["stream"] = args[0]

    def split(leaf, count, weight, bias):
        """Every head's columns of the projection, each from its own copy of the stream."""
        size = weight.shape[1] // count
        made = []
        for h in range(count):
            leaves[leaf, h] = torch.zeros_like(seen["stream"]).requires_grad_()
            columns = slice(h * size, (h + 1) * size)
            made.append(norm.forward(seen["stream"] + leaves[leaf, h]) @ weight[:, columns] + bias[columns])
        return torch.cat(made, -1)

    def all_at_once(module, args, out):
        width = out.shape[-1] // 3
        parts = [slice(n * width, (n + 1) * width) for n in range(3)]
        return torch.cat([split(n, c, module.weight[:, p], module.bias[p]) for (n, c), p in zip(counts, parts, strict=True)], -1)

    handles = [norm.register_forward_pre_hook(keep)]
    if hasattr(block, "attn"):
        handles.append(block.attn.c_attn.register_forward_hook(all_at_once))
    else:
        for leaf, count in counts:
            linear = getattr(block.self_attn, f"{leaf}_proj")
            handles.append(
                linear.register_forward_hook(lambda m, a, o, n=leaf, c=count: split(n, c, m.weight.T, torch.zeros(len(m.weight)).to(o)))
            )
    try:
        with torch.enable_grad():
            logits = hf(**pairs.corrupt.batch.arguments, use_cache=False).logits
            metric = pairs.metric.of(logits[:, -1])
            return {k: g[0] for k, g in zip(leaves, torch.autograd.grad(metric.sum(), list(leaves.values())), strict=True)}
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edges_equal_those_of_split_inputs(family):
    model = double(family)
    pairs = pairs_of(model, CLEAN[:1], CORRUPT[:1])
    wires, scores = edges_of(model, pairs)
    read = ["blocks.0.resid_pre", "blocks.*.attn.head_out", "blocks.*.mlp.out"]
    base, source = model.run(pairs.corrupt, read), model.run(pairs.clean, read)
    i = len(wires.layers) - 1
    found = split_inputs(model, pairs, i)
    assert len(found) == wires.layers[i].heads + 2 * wires.layers[i].groups
    for n, reader in enumerate(wires.readers):
        if reader.layer != i or "attn" not in reader.name:
            continue
        leaf, head = reader.name.split(".")[-2:]
        for w in range(reader.before):
            name = wires.writers[w]
            stem, _, number = name.partition(".head.")
            site = {"embed": "blocks.0.resid_pre"}.get(name, f"{stem}.head_out" if number else f"{name}.out")
            change = source[site].tensor - base[site].tensor
            change = change[:, int(number)] if number else change
            wanted = float((change * found[leaf, int(head)]).sum())
            assert scores[n, w] == pytest.approx(wanted, rel=1e-9, abs=1e-12), (name, reader.name)


# --- points on the way


def test_equal_inputs_give_exactly_zero():
    model = double("gpt2")
    pairs = pairs_of(model, CLEAN, CLEAN)
    for method in ("eap", "relp", "eap-ig-inputs", "eap-ig-activations"):
        assert (edge_attribution(model, pairs, method=method, steps=2).values == 0).all()


def test_on_the_way_of_the_embedding_its_edges_add_up_to_the_whole_change():
    model = double("gpt2")
    pairs = pairs_of(model)
    gaps = []
    for rule, steps in (("midpoint", 10), ("midpoint", 20), ("left", 10)):
        _, scores = edges_of(model, pairs, method="eap-ig-inputs", steps=steps, rule=rule)
        notes = edge_attribution(model, pairs).diagnostics
        gaps.append(abs(scores[:, 0].sum() - (notes["clean"] - notes["corrupt"])) / abs(notes["clean"] - notes["corrupt"]))
    assert gaps[0] < 0.01
    assert gaps[1] < gaps[0] / 2, "the midpoint rule converges with the square of the steps"
    assert gaps[2] > gaps[0]


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_on_the_way_of_a_writer_its_edges_add_up_to_its_exact_effect(family):
    model = double(family)
    pairs = pairs_of(model, CLEAN[:1], CORRUPT[:1])
    wires, scores = edges_of(model, pairs, method="eap-ig-activations", steps=12)
    exact = {n: act.analyses.activation_patching(model, pairs, f"blocks.*.{n}.out", positions="all").values for n in ("attn", "mlp")}
    size = max(np.abs(e).max() for e in exact.values())
    for i in range(len(wires.layers)):
        assert scores[:, wires.heads_of(i)].sum() == pytest.approx(exact["attn"][i], abs=5e-3 * size)
        assert scores[:, wires.mlp_of(i)].sum() == pytest.approx(exact["mlp"][i], abs=5e-3 * size)


def test_one_step_at_the_base_is_plain_attribution():
    model = double("llama")
    pairs = pairs_of(model)
    plain = edge_attribution(model, pairs).values
    for method in ("eap-ig-inputs", "eap-ig-activations"):
        np.testing.assert_allclose(edge_attribution(model, pairs, method=method, steps=1, rule="left").values, plain, rtol=1e-9, atol=1e-12)


def test_batches_and_memory_change_nothing():
    model = double("gpt2")
    pairs = pairs_of(model)
    whole = edge_attribution(model, pairs).values
    np.testing.assert_allclose(edge_attribution(model, pairs, batch=1, memory=0).values, whole, rtol=1e-9, atol=1e-12)


# --- relevance rules


@pytest.mark.parametrize("rules", ["ln", "relp", "relp-ah", "gim", Rules(activations=True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_relevance_edges_add_up_to_relevance_of_nodes(family, rules):
    model = double(family)
    pairs = pairs_of(model)
    wires, scores = edges_of(model, pairs, method="relp", rules=rules)
    read = ["blocks.0.resid_pre", "blocks.*.attn.out", "blocks.*.mlp.out"]
    base = model.run(pairs.corrupt, read, metrics={"metric": pairs.metric}, grad=True, rules=rules)
    gradient, source = base.backward("metric"), model.run(pairs.clean, read)

    def score(site):
        return float((gradient[site].tensor * (source[site].tensor - base[site].tensor.detach())).sum()) / len(pairs)

    near = {"rel": 1e-9, "abs": 1e-9 * np.abs(scores).max()}
    assert scores[:, 0].sum() == pytest.approx(score("blocks.0.resid_pre"), **near)
    for i in range(len(wires.layers)):
        assert scores[:, wires.heads_of(i)].sum() == pytest.approx(score(f"blocks.{i}.attn.out"), **near)
        assert scores[:, wires.mlp_of(i)].sum() == pytest.approx(score(f"blocks.{i}.mlp.out"), **near)
    assert np.abs(scores - edges_of(model, pairs)[1]).max() > 1e-3 * np.abs(scores).max(), "the rules change something"
    notes = edge_attribution(model, pairs, method="relp", rules=rules).diagnostics
    assert notes["sum_rule_error"] < 1e-9
    assert notes["rules"] == (rules if isinstance(rules, str) else "custom")


def test_without_any_rule_relevance_is_the_gradient():
    model = double("llama")
    pairs = pairs_of(model)
    assert np.array_equal(edge_attribution(model, pairs, method="relp", rules=Rules()).values, edge_attribution(model, pairs).values)


def test_what_are_no_rules():
    model = double("gpt2")
    with pytest.raises(InputError, match=r"rules=Secant\(\) is neither a Rules nor the name of a set"):
        edge_attribution(model, pairs_of(model), method="relp", rules=Secant())


# --- the same model elsewhere


@pytest.mark.slow  # TransformerLens takes seconds to import
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize("method", ["eap", "relp"])
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_transformerlens_models_have_the_same_edges(family, kind, method):
    pytest.importorskip("transformer_lens", reason="the extra [lens] is not installed")
    from ...capture import lens_models

    ours, theirs = act.wrap(*testing.tiny(family), certify=False), act.wrap(*getattr(lens_models, kind)(family), certify=False)
    found = [edge_attribution(m, pairs_of(m, bos=False), method=method) for m in (ours, theirs)]
    assert found[0].nodes == found[1].nodes
    np.testing.assert_allclose(found[1].values, found[0].values, rtol=1e-4, atol=1e-5 * np.abs(found[0].values).max())


def test_bfloat16_has_nearly_the_same_edges():
    model, tokenizer = testing.tiny("gpt2")
    wide = act.wrap(model, tokenizer, certify=False)
    exact = edge_attribution(wide, pairs_of(wide)).values
    narrow = act.wrap(testing.tiny("gpt2")[0].bfloat16(), tokenizer, certify=False)
    found = edge_attribution(narrow, pairs_of(narrow)).values
    assert 1 - found @ exact / (np.linalg.norm(found) * np.linalg.norm(exact)) < 0.02


# --- the graph


def test_the_graph_brings_its_scores_back_and_leads_on_through_heads():
    wires = Wiring([Layer(2, 1), Layer(2, 1)])
    scores = np.where(wires.edges, np.random.default_rng(0).normal(size=wires.edges.shape), 0)
    made = graph(wires, scores, unit="logits")
    back = scores_of(made, wires)
    assert np.array_equal(np.nan_to_num(back), scores) and np.array_equal(np.isnan(back), ~wires.edges)
    ways = {(made.nodes[a], made.nodes[b]): v for (a, b), v in zip(made.edges, made.values, strict=True)}
    k = next(n for n, r in enumerate(wires.readers) if r.name == "blocks.1.attn.k.0")
    largest = max(scores[k], key=abs)
    assert ways["blocks.1.attn.k.0", "blocks.1.attn.head.0"] == ways["blocks.1.attn.k.0", "blocks.1.attn.head.1"] == largest
    assert len(made.edges) == wires.edges.sum() + 2 * 3 * 2
    kinds = dict(zip(made.nodes, zip(made.columns["kind"], made.columns["layer"], strict=True), strict=True))
    assert [kinds[n] for n in ("embed", "blocks.0.attn.q.1", "blocks.0.attn.head.1", "blocks.0.mlp", "blocks.1.attn.v.0", "logits")] == [
        ("embed", 0), ("query", 1), ("head", 2), ("mlp", 3), ("value", 4), ("logits", 7)
    ]  # fmt: skip
    assert len(made.pruned(0).nodes) == len(made.nodes)
    few = made.pruned(made.threshold_for(12))
    assert few.nodes[0] == "embed" and few.nodes[-1] == "logits", "ways stay whole"


def test_readouts_say_what_a_writer_changes_in_the_answer():
    """Head 0 of block 1 of the planted model is the one that writes the answer."""
    model = planted()
    pairs = planted_pairs(model).select([0])  # 0 1 2 3 4 1 calls for 2
    found = edge_attribution(model, pairs, direction="denoise")
    said = dict(zip(found.nodes, found.columns["readout"], strict=True))
    up, _, down = said["blocks.1.attn.head.0"].partition(" up, ")
    decode = pairs.clean.words
    assert up == decode(2).strip() and down.removesuffix(" down") in {decode(t).strip() for t in (0, 9, 3, 4, 1)}
    assert said["embed"] == said["blocks.0.mlp"] == said["blocks.1.attn.q.0"] == said["logits"] == ""


def test_models_without_an_unembedding_of_rows_have_no_readouts():
    model = double("vit")
    assert "readout" not in edge_attribution(model, pairs_of(model)).columns


# --- a norm in closed form


@pytest.mark.parametrize("law", ["layer", "rms", "gain", "centring", "none"])
def test_a_norm_is_found_by_trying_it(law):
    generator = torch.Generator().manual_seed(0)
    rows, gain, bias = (torch.randn(s, 8, generator=generator, dtype=torch.float64) for s in (5, 1, 1))
    tried = {
        "layer": lambda x: torch.nn.functional.layer_norm(x, (8,), gain[0], bias[0], eps=1e-3),
        "rms": lambda x: gain[0] * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(),
        "gain": lambda x: gain[0] * x,
        "centring": lambda x: gain[0] * (x - x.mean(-1, keepdim=True)),
        "none": lambda x: x,
    }[law]
    norm = Norm(tried, rows, law)
    torch.testing.assert_close(norm(rows), tried(rows), rtol=1e-9, atol=1e-9)
    leaf, slope = rows.clone().requires_grad_(), torch.randn(5, 8, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(tried(leaf), leaf, slope)[0]
    torch.testing.assert_close(norm.back(rows, slope), wanted, rtol=1e-8, atol=1e-8)
    held = norm.scale(rows)
    frozen = torch.autograd.grad(norm.frozen(held, leaf), leaf, slope)[0]
    torch.testing.assert_close(norm.back(rows, slope, frozen=True), frozen, rtol=1e-9, atol=1e-9)


def test_what_is_no_norm_is_refused():
    with pytest.raises(InputError, match="blocks.0.attn.norm is neither LayerNorm, RMSNorm nor a gain"):
        Norm(torch.tanh, torch.randn(4, 8), "blocks.0.attn.norm")


# --- refusals


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_norm_after_the_sum_is_refused(family):
    with pytest.raises(InputError, match=r"the stream is not a sum of writers \(a norm follows every sum\)"):
        wiring(double(family))


def test_several_stacks_are_refused():
    with pytest.raises(InputError, match="has stacks encoder, decoder"):
        wiring(double("t5"))


def test_hidden_head_inputs_are_refused():
    with pytest.raises(MissingSite, match=r"has no site 'blocks.0.attn.q'"):
        wiring(double("gptj"))


def test_a_reader_that_is_no_head_and_no_mlp_is_noticed():
    """A router of experts reads the stream beside the experts' own input."""
    model = act.wrap(*testing.tiny("mixtral"), certify=False)
    with pytest.raises(CertificateError, match="do not add up to the scores of their nodes"):
        edge_attribution(model, pairs_of(model))
    assert edge_attribution(model, pairs_of(model), check=False).diagnostics["sum_rule_error"] > 0.01


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "acdc"}, "method='acdc' is not known; choose eap"),
        ({"rule": "right"}, "rule='right' is not known; choose midpoint or left"),
        ({"batch": 0}, "batch=0: a forward takes at least one pair"),
        ({"steps": 0}, "steps=0: the way from base to source needs at least one point"),
        ({"direction": "up"}, "direction='up' is not known"),
    ],
)
def test_options_that_mean_nothing(options, words):
    model = double("gpt2")
    with pytest.raises(InputError, match=words):
        edge_attribution(model, pairs_of(model), **options)


def test_a_graph_of_another_model_is_refused():
    model = double("gpt2")
    found = edge_attribution(model, pairs_of(model))
    with pytest.raises(InputError, match="which this model has not"):
        scores_of(found, wiring(double("gpt_neox")))
