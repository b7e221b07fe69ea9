"""attribution_patching_star: the closed form against a softmax per key, the limit of small differences, GradDrop by hand."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.analyses.patching.softmax_change import key_change, query_change
from activarium.attention import scores_of
from activarium.edits import Set
from activarium.errors import InputError, MissingSite

from . import patched_models as tiny

star, attribution_patching = act.analyses.attribution_patching_star, act.analyses.attribution_patching


def near(a, b, relative=1e-9):
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    return np.abs(a - b).max() <= relative * max(np.abs(b).max(), 1e-300)


# --- the closed form


def drawn(queries, keys, spread, *, heads=3, causal=True, sinks=False, seed=0):
    """Scores, scores with other queries or keys, gradients, sinks."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    scores, changed = (draw(heads, queries, keys) * spread for _ in range(2))
    if causal:
        hidden = torch.ones(queries, keys, dtype=torch.bool).triu(1)
        scores, changed = (s.masked_fill(hidden, -torch.inf) for s in (scores, changed))
    return scores, changed, draw(heads, queries, keys), draw(heads) * spread if sinks else None


def with_sink(scores, sinks):
    return scores if sinks is None else torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:2], 1)], -1)


def pattern(scores, sinks):
    return with_sink(scores, sinks).softmax(-1)[..., : scores.shape[-1]]


def key_by_key(scores, changed, gradient, sinks):
    """The pattern of every single changed key, calculated anew."""
    before = pattern(scores, sinks)
    found = []
    for t in range(scores.shape[-1]):
        one = scores.clone()
        one[..., t] = changed[..., t]
        found.append(((pattern(one, sinks) - before) * gradient).sum((-1, -2)))
    return torch.stack(found, -1)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 30.0, 200.0])
def test_every_key_is_its_own_softmax(spread, causal, sinks):
    """Spreads up to 200: shares that round to one, differences whose exponential overflows."""
    given = drawn(7, 7, spread, causal=causal, sinks=sinks)
    found, expected = key_change(*given), key_by_key(*given)
    assert found.isfinite().all() and torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("sinks", [False, True])
def test_queries_change_their_own_row(sinks):
    scores, changed, gradient, logits = drawn(5, 5, 2.0, sinks=sinks)
    found = query_change(scores, changed, gradient, logits)
    for i in range(5):
        one = scores.clone()
        one[:, i] = changed[:, i]
        expected = ((pattern(one, logits) - pattern(scores, logits)) * gradient).sum((-1, -2))
        assert torch.allclose(found[:, i], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sign", [1, -1])
def test_tiny_changes_are_the_derivative(sign):
    """Scores that change by 1e-13, where `exp(d) - 1` would have three digits left."""
    scores, move, gradient, _ = drawn(6, 6, 1.0)
    scores = torch.where(scores.isneginf(), scores, 0.0)
    move = sign * 1e-13 * torch.where(move.isneginf(), 0.0, move.abs())
    slope = scores.softmax(-1)
    slope = slope * (gradient - (slope * gradient).sum(-1, keepdim=True))
    found, expected = key_change(scores, scores + move, gradient), (slope * move).sum(-2)
    assert torch.allclose(found, expected, rtol=1e-9, atol=0)


def test_a_key_alone_keeps_its_share():
    """Two keys by hand: a query that sees one key cannot look elsewhere; the other goes from even shares to 3 : 1."""
    scores = torch.tensor([[[0.0, -torch.inf], [0.0, 0.0]]], dtype=torch.float64)
    changed = torch.tensor([[[5.0, -torch.inf], [float(np.log(3)), 0.0]]], dtype=torch.float64)
    gradient = torch.tensor([[[7.0, 0.0], [2.0, -2.0]]], dtype=torch.float64)
    assert torch.allclose(key_change(scores, changed, gradient), torch.tensor([[0.25 * 4, 0.0]], dtype=torch.float64))
    assert torch.allclose(query_change(scores, changed, gradient), torch.tensor([[0.0, 0.25 * 4]], dtype=torch.float64))


# --- in models


def by_hand(model, pairs, stem, leaf, example=0):
    """Scores `row head` of one example from the pattern as the model computes it and autograd's gradient there; no closed form."""
    sites = [f"{stem}.{n}" for n in ("q_rot", "k_rot", "v", "z")]
    base = model.run(pairs.corrupt, [*sites, f"{stem}.pattern"], metrics={"m": pairs.metric}, grad=True)
    source = model.run(pairs.clean, sites)
    slope = base.backward("m")[f"{stem}.pattern"].example(example).tensor
    spec = base.attention[stem]

    def rows(rec, name):
        values = rec[f"{stem}.{name}"]
        return values.tensor[values.index.span(example)].detach()

    q, k, q2, k2 = (rows(r, n) for r in (base, source) for n in ("q_rot", "k_rot"))
    before = scores_of(q, k, spec, example=example).softmax(-1)
    assert torch.allclose(before, base[f"{stem}.pattern"].example(example).tensor.to(before).detach(), atol=1e-6)
    moved, mine = (q2, q) if leaf.startswith("q") else (k2, k)
    found = torch.zeros(moved.shape[:2], dtype=before.dtype)
    for row in range(moved.shape[0]):
        for head in range(moved.shape[1]):
            one = mine.clone()
            one[row, head] = moved[row, head]
            pair = (one, k) if leaf.startswith("q") else (q, one)
            after = scores_of(*pair, spec, example=example).softmax(-1)
            found[row, head] = ((after - before) * slope).sum()
    return found.numpy()


@pytest.mark.parametrize("leaf", ["q", "k", "q_rot", "k_rot"])
@tiny.each([*tiny.FAMILIES, "mistral"], [*tiny.QUICK, "mistral"])
def test_queries_and_keys_by_brute_force(family, leaf):
    """Causal masks, windows, soft-caps, biases and shared key heads: every node by its own softmax."""
    model, stack = tiny.model(family), tiny.STACK.get(family, "")
    pairs = tiny.pairs(model)
    found = star(model, pairs, f"{stack}blocks.1.attn.{leaf}")
    expected = by_hand(model, pairs, f"{stack}blocks.1.attn", leaf, example=1)
    known = found.masks["known_zero"][0]
    assert np.abs(expected[known]).max(initial=0) < 1e-9, "a known zero is not"
    assert near(found.per_example[1, 0], expected, 1e-6 if family == "gemma2" else 1e-12)
    assert np.abs(expected).max() > 1e-6


@pytest.mark.parametrize("leaf", ["q", "k"])
def test_cross_attention_by_brute_force(leaf):
    model = tiny.model("t5")
    pairs = tiny.pairs(model)
    found = star(model, pairs, f"decoder.blocks.1.cross.{leaf}")
    if leaf == "k":  # keys of the encoder's rows
        assert found.values.shape == (1, 7, 4)
    assert near(found.per_example[1, 0][: 4 if leaf == "q" else 7], by_hand(model, pairs, "decoder.blocks.1.cross", leaf, 1), 1e-12)


@pytest.mark.parametrize("leaf", ["q", "k"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_small_differences_make_it_the_linear_score(family, leaf):
    """The linearised softmax is the true one for differences scaled by 1e-4."""
    model = tiny.model(family)
    pairs = tiny.pairs(model)
    rotated = f"blocks.1.attn.{leaf}_rot"
    base, source = (model.run(side, rotated)[rotated].tensor for side in (pairs.corrupt, pairs.clean))
    whole = [analysis(model, pairs, rotated).values for analysis in (star, attribution_patching)]
    assert not near(*whole, 1e-3), "on this pair the softmax is not linear, or nothing is shown"
    # The corrupted inputs stand on both sides: the source run alone is moved, by a little.
    close = act.pairs(model, pairs.clean, pairs.corrupt, pairs.metric)
    run = model.run

    def nearby(inputs, read=(), **options):
        values = run(inputs, read, **options)
        if options.get("grad") or inputs.hash != pairs.clean.hash:
            return values
        return run(pairs.corrupt, read, edits=[Set(rotated, base + 1e-4 * (source - base))], metrics=options.get("metrics"))

    model.run = nearby
    small = [analysis(model, close, rotated).values for analysis in (star, attribution_patching)]
    assert near(*small, 1e-3) and np.abs(small[0]).max() > 1e-9


def test_saturated_attention_has_no_gradient_and_an_effect_all_the_same():
    """Keys four times as long: the linear score of a query misses nearly all of its exact effect, the true softmax does not."""
    model = tiny.model("gpt2")
    with torch.no_grad():
        for block in model.torch_module.transformer.h:
            block.attn.c_attn.weight[:, 32:64] *= 6
    pairs = tiny.pairs(model)
    site = "blocks.2.attn.q"
    exact = act.analyses.activation_patching(model, pairs, site).values
    linear, true = attribution_patching(model, pairs, site).values, star(model, pairs, site).values
    assert np.abs(linear - exact).max() > 3 * np.abs(true - exact).max()


def test_other_nodes_are_those_of_attribution_patching():
    model = tiny.model("llama")
    pairs = tiny.pairs(model)
    for nodes in ("blocks.*.attn.v", "blocks.*.attn.z", ["blocks.*.attn.out", "blocks.*.mlp.out"]):
        assert np.array_equal(star(model, pairs, nodes).values, attribution_patching(model, pairs, nodes).values, equal_nan=True)


@pytest.mark.parametrize("leaf", ["q", "k"])
def test_batches_make_no_difference(leaf):
    model = tiny.model("mistral")
    pairs = tiny.pairs(model)
    one, two = (star(model, pairs, f"blocks.*.attn.{leaf}", batch=n) for n in (1, 2))
    assert near(one.per_example, two.per_example, 1e-12)
    assert one.diagnostics["forwards"] == 4 and two.diagnostics["backwards"] == 1


def test_identical_inputs_score_exactly_nothing():
    model = tiny.model("llama")
    pairs = tiny.pairs(model, tiny.CLEAN, tiny.CLEAN)
    for leaf in ("q", "k"):
        for graddrop in (False, True):
            assert (np.nan_to_num(star(model, pairs, f"blocks.*.attn.{leaf}", graddrop=graddrop).values) == 0).all()


# --- GradDrop


def plain_gradients(hf, ids, answer, foil, closed):
    """dm/d(output of each block's attention and MLP) with the writes of one block detached: autograd alone, another forward."""
    kept, handles = {}, []

    def hook(name, block):
        def keep(module, args, out):
            value = out[0] if isinstance(out, tuple) else out
            kept[name] = value
            if not value.requires_grad:
                kept[name] = value = value.requires_grad_()
            passed = value.detach() if block == closed else value
            return (passed, *out[1:]) if isinstance(out, tuple) else passed

        return keep

    for i, block in enumerate(hf.transformer.h):
        handles += [block.attn.register_forward_hook(hook((i, "attn"), i)), block.mlp.register_forward_hook(hook((i, "mlp"), i))]
    logits = hf(ids).logits[0, -1]
    for handle in handles:
        handle.remove()
    names = list(kept)
    gradients = torch.autograd.grad(logits[answer] - logits[foil], [kept[n] for n in names], allow_unused=True)
    return {n: torch.zeros_like(kept[n]) if g is None else g for n, g in zip(names, gradients, strict=True)}, kept


def test_two_blocks_by_hand():
    """`sum_l |I_l| / (L - 1)` per pair, from forwards in which one block's writes are detached."""
    hf, tokenizer = tiny.net("gpt2", n_layer=2)
    model = act.wrap(hf, tokenizer, certify=False)
    pairs = tiny.pairs(model)
    expected = np.full((2, 2, 6), np.nan)
    for e, (clean, corrupt, words) in enumerate(zip(tiny.CLEAN, tiny.CORRUPT, (("Anna", "Tom"), ("Tom", "Anna")), strict=True)):
        answer, foil = (tokenizer.convert_tokens_to_ids(w) for w in words)
        ids = [tokenizer(t, return_tensors="pt").input_ids for t in (corrupt, clean)]
        _, source = plain_gradients(hf, ids[1], answer, foil, None)
        total = torch.zeros(2, ids[0].shape[1], dtype=torch.float64)
        for closed in (0, 1):
            slopes, base = plain_gradients(hf, ids[0], answer, foil, closed)
            for i in (0, 1):
                score = (slopes[i, "mlp"] * (source[i, "mlp"] - base[i, "mlp"])).sum(-1)[0]
                assert i != closed or (score == 0).all()
                total[i] += score.abs().detach()
        expected[e, :, : total.shape[1]] = total.numpy()
    found = star(model, pairs, "blocks.*.mlp.out", graddrop=True)
    assert near(found.per_example, expected)
    assert found.diagnostics["unsigned"] and "GradDrop" in found.title and (np.nan_to_num(found.values) >= 0).all()
    assert (found.diagnostics["forwards"], found.diagnostics["backwards"]) == (2, 2)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "bert", "vit", "dinov2"])
def test_a_closed_block_has_no_gradient_inside_and_the_skip_keeps_its_own(family):
    model = tiny.model(family)
    pairs = tiny.pairs(model)
    inside = [f"blocks.1.{n}" for n in ("attn.in", "attn.q", "attn.z", "attn.proj", "attn.out", "mlp.post", "mlp.proj", "mlp.out")]
    stream = [n for n in ("blocks.1.resid_pre", "blocks.1.resid_mid", "blocks.1.resid_post") if n in model.sites]
    rec = model.run(pairs.corrupt, [*inside, *stream], metrics={"m": pairs.metric}, grad=True)
    open_ = {s: rec.backward("m")[s].tensor for s in stream}
    shut = rec.backward("m", closed=["blocks.1.attn.out", "blocks.1.mlp.out"])
    if model.sites_hold("blocks.1.attn.in") != "blocks.1.resid_pre" and family != "bert":  # there it is the stream's own tensor
        assert (shut["blocks.1.attn.in"].tensor == 0).all()
    for site in inside[1:]:
        assert (shut[site].tensor == 0).all(), site
    assert torch.equal(shut["blocks.1.resid_post"].tensor, open_["blocks.1.resid_post"])
    if family != "bert":  # no norm on the stream: what comes back is what went in
        for site in stream:
            assert torch.allclose(shut[site].tensor, open_["blocks.1.resid_post"], rtol=0, atol=1e-12), site
            assert site.endswith("post") or not torch.allclose(shut[site].tensor, open_[site])
    # Nothing stays closed.
    assert all(torch.equal(rec.backward("m")[s].tensor, open_[s]) for s in stream)


def test_all_stacks_of_an_encoder_decoder_are_dropped():
    model = tiny.model("t5")
    found = star(model, tiny.pairs(model), "encoder.blocks.*.mlp.out", graddrop=True)
    assert found.diagnostics["backwards"] == 2 + 3 and np.nanmax(found.values) > 0


def test_shares_of_sizes_stay_sizes():
    model = tiny.model("gpt2")
    for direction in ("denoise", "noise"):
        found = star(model, tiny.pairs(model), "blocks.*.attn.q", graddrop=True, normalise=True, direction=direction)
        assert found.unit == "share of M+ - M-" and np.nanmin(found.values) >= 0 < np.nanmax(found.values)


# --- bad input


def test_what_cannot_be_scored_is_refused_with_the_next_step():
    bloom = act.wrap(*testing.tiny("bloom"), certify=False)
    with pytest.raises(MissingSite):
        star(bloom, tiny.pairs(bloom), "blocks.*.attn.q")
    single = tiny.model("gpt2", n_layer=1)
    with pytest.raises(InputError, match=r"has 1 block: GradDrop averages over dropped blocks and needs two"):
        star(single, tiny.pairs(single), "blocks.*.mlp.out", graddrop=True)
    model = tiny.model("gpt2")
    rec = model.run(tiny.CLEAN, "blocks.1.mlp.out", metrics=tiny.pairs(model).metric, grad=True)
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.out was not read, so no backward can be closed there"):
        rec.backward(closed=["blocks.0.attn.out"])


@pytest.mark.slow  # TransformerLens takes seconds to import
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_a_bridge_that_does_not_show_rotated_keys_is_refused():
    pytest.importorskip("transformer_lens", reason="the extra [lens] is not installed")
    from tests.capture.lens_models import bridge

    model = act.wrap(*bridge("gpt_neox"))
    with pytest.raises(MissingSite, match=r"q_rot is not known in .* Use attribution_patching"):
        star(model, tiny.pairs(model), "blocks.*.attn.q")
