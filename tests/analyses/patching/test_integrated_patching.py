"""integrated_patching: rules of quadrature by hand, completeness and its order, exactness of a path through one node."""

import warnings

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.analyses.patching.ways import points
from activarium.errors import InputError, MissingSite, UnknownName

from . import patched_models as tiny

integrated_patching, activation_patching = act.analyses.integrated_patching, act.analyses.activation_patching


def near(a, b, relative=1e-9):
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    return np.abs(a - b).max() <= relative * max(np.abs(b).max(), 1e-300)


def gentle(family="gpt2", factor=0.5):
    """A net whose answer bends only a little between two inputs, as a trained one's: smaller weights."""
    hf, tokenizer = tiny.net(family)
    with torch.no_grad():
        for name, weights in hf.named_parameters():
            if weights.ndim == 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                weights *= factor
    return act.wrap(hf, tokenizer, certify=False)


def error(model, pairs, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a large error, which is what is looked at
        return _error(model, pairs, **options)


def _error(model, pairs, **options):
    return integrated_patching(model, pairs, "blocks.*.mlp.out", progress=False, **options).diagnostics["completeness_error"]


# --- the rules


def test_points_by_hand():
    assert points(2, "midpoint") == [(0.25, 0.5), (0.75, 0.5)]
    assert points(2, "left") == [(0.0, 0.5), (0.5, 0.5)]
    (a, half), (b, other) = points(2, "gauss")
    assert (a, b) == pytest.approx((0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2)) and (half, other) == pytest.approx((0.5, 0.5))
    # Two Gauss points integrate a cubic, one midpoint a line, left sums nothing but constants.
    assert sum(w * p**3 for p, w in points(2, "gauss")) == pytest.approx(1 / 4)
    assert sum(w * p for p, w in points(1, "midpoint")) == 1 / 2 and points(1, "left") == [(0.0, 1.0)]


@tiny.each(["gpt2", "llama", "bert"], ["gpt2"])
def test_the_embeddings_shares_add_up_and_the_rules_have_their_orders(family):
    model = gentle(family)
    pairs = tiny.pairs(model)
    middle = {n: error(model, pairs, steps=n) for n in (10, 20, 40)}
    assert middle[10] < 0.01
    assert 3 < middle[10] / middle[20] < 5 and 3 < middle[20] / middle[40] < 5  # 1/m²: a fourth each time
    left = {n: error(model, pairs, steps=n, rule="left") for n in (10, 20, 40)}
    assert left[10] > 5 * middle[10] and 1.7 < left[20] / left[40] < 2.3  # 1/m
    assert error(model, pairs, steps=40, rule="gauss") < middle[40]


@tiny.each(["gpt_neox", "qwen3", "gemma2", "vit", "dinov2", "clip_vision"])
def test_completeness_in_other_families(family):
    model = tiny.model(family)
    pairs = tiny.pairs(model)
    assert error(model, pairs, steps=20, rule="gauss") < 1e-3
    embeddings = integrated_patching(model, pairs, "embed", steps=20, rule="gauss", positions="all", progress=False)
    whole = embeddings.diagnostics["clean"] - embeddings.diagnostics["corrupt"]
    assert embeddings.values[0] == pytest.approx(whole, rel=1e-2) and abs(whole) > 1e-3


def test_both_stacks_of_an_encoder_decoder_move_together():
    model = gentle("t5_gated", 0.25)
    sides = ({"encoder": ["Anna saw the cat"], "decoder": ["the cat"]}, {"encoder": ["Tom saw the cat"], "decoder": ["the king"]})
    pairs = act.pairs(model, *sides, answers=["Anna"], foils=["Tom"])
    shares = [integrated_patching(model, pairs, f"{s}.embed", steps=20, rule="gauss", positions="all") for s in ("encoder", "decoder")]
    change = shares[0].diagnostics["clean"] - shares[0].diagnostics["corrupt"]
    assert sum(s.values[0] for s in shares) == pytest.approx(change, rel=5e-3)
    assert all(abs(s.values[0]) > 1e-3 * abs(change) for s in shares)


def test_one_midpoint_is_the_gradient_half_way():
    """By hand: mid-AtP from plain autograd, the embeddings averaged in the model's own forward."""
    hf, tokenizer = tiny.net("gpt2")
    model = act.wrap(hf, tokenizer, certify=False)
    pairs = tiny.pairs(model, tiny.CLEAN[:1], tiny.CORRUPT[:1])
    ids = [tokenizer(t, return_tensors="pt").input_ids for t in (tiny.CORRUPT[0], tiny.CLEAN[0])]
    middle, kept = sum(hf.transformer.wte(i) for i in ids) / 2, []
    handle = hf.transformer.h[1].mlp.register_forward_hook(lambda m, a, out: kept.append(out))
    outs = [hf(input_ids=i).logits for i in ids] + [hf(inputs_embeds=middle).logits]
    handle.remove()
    answer, foil = (tokenizer.convert_tokens_to_ids(w) for w in ("Anna", "Tom"))
    (slope,) = torch.autograd.grad(outs[2][0, -1, answer] - outs[2][0, -1, foil], kept[2])
    expected = (slope * (kept[1] - kept[0])).sum(-1)[0].detach().numpy()
    found = integrated_patching(model, pairs, "blocks.1.mlp.out", steps=1)
    assert near(found.values[0], expected)
    assert (found.diagnostics["forwards"], found.diagnostics["backwards"]) == (3, 1)


# --- one site at a time


@pytest.mark.parametrize(
    ("kind", "direction"),
    [("resid_mid", "denoise"), ("attn.z", "noise"), ("attn.k", "denoise"), ("mlp.out", "noise"), ("mlp.in", "denoise")],
)
def test_a_path_through_one_site_is_its_exact_effect(kind, direction):
    """The fundamental theorem of calculus: the integral of a node's own gradient is what patching it does."""
    model = gentle("llama")
    pairs = tiny.pairs(model)
    site, options = f"blocks.*.{kind}", {"positions": "all", "direction": direction}
    found = integrated_patching(model, pairs, site, mode="activations", steps=20, rule="gauss", progress=False, **options)
    exact = activation_patching(model, pairs, site, **options)
    values = found.per_example.reshape(2, 2, -1).sum(-1)  # heads move together, so their shares are one effect's
    if exact.values.ndim == 1:
        assert np.allclose(values, exact.per_example, rtol=1e-3, atol=1e-6)
    else:
        together = activation_patching(model, pairs, site.replace("attn.z", "attn.out"), **options) if kind == "attn.z" else None
        assert together is None or np.allclose(values, together.per_example, rtol=1e-3, atol=1e-6)
    assert found.diagnostics["completeness_error"] < 1e-3


def test_one_row_alone_is_exact_too():
    """Where one row differs, the joint path is that row's own."""
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    found = integrated_patching(model, pairs, "blocks.0.resid_mid", mode="activations", steps=40, rule="gauss", progress=False)
    embed = integrated_patching(model, pairs, "blocks.0.resid_pre", mode="activations", steps=40, rule="gauss", progress=False)
    exact = activation_patching(model, pairs, "blocks.0.resid_pre")
    assert np.allclose(embed.values, exact.values, rtol=1e-6, atol=1e-8, equal_nan=True)
    assert not np.allclose(found.values, exact.values, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_every_cut_of_the_stream_adds_up_to_the_whole_change(family):
    model = tiny.model(family)
    found = integrated_patching(
        model, tiny.pairs(model), "blocks.*.resid_pre", mode="activations", steps=30, rule="gauss", positions="all", progress=False
    )
    assert np.allclose(found.values, found.diagnostics["clean"] - found.diagnostics["corrupt"], rtol=1e-4)


# --- pairs, counts, refusals


@pytest.mark.parametrize("mode", ["inputs", "activations"])
def test_identical_inputs_score_exactly_nothing(mode):
    for family in ("gpt2", "vit"):
        model = tiny.model(family)
        side = testing.images(2) if family == "vit" else tiny.CLEAN
        found = integrated_patching(model, tiny.pairs(model, side, side), "blocks.*.attn.v", mode=mode)
        assert (np.nan_to_num(found.values) == 0).all() and found.diagnostics["completeness_error"] == 0


@pytest.mark.parametrize("mode", ["inputs", "activations"])
def test_batches_and_pairs_one_by_one_agree(mode):
    model = gentle("qwen3")
    pairs = tiny.pairs(model)
    one, two = (integrated_patching(model, pairs, "blocks.*.attn.k", mode=mode, batch=n) for n in (1, 2))
    assert near(one.per_example, two.per_example, 1e-9)
    assert one.diagnostics["completeness_error"] == pytest.approx(two.diagnostics["completeness_error"], abs=1e-9)
    assert two.diagnostics["backwards"] == 10 * (1 if mode == "inputs" else 2)


def test_opposite_errors_of_two_pairs_do_not_cancel():
    """A pair and its mirror miss the same with opposite signs: their sum would look perfect."""
    model = tiny.model("gpt2")
    ways = [tiny.CLEAN[0], tiny.CORRUPT[0]]
    pairs = act.pairs(model, ways, ways[::-1], answers=["Anna", "Anna"], foils=["Tom", "Tom"])
    both, one = (error(model, p, steps=2) for p in (pairs, pairs.select([0])))
    assert both == pytest.approx(one) and one > 1e-3


def test_a_large_error_is_warned_of():
    model = tiny.model("gpt2")
    with pytest.warns(UserWarning, match=r"The shares miss .*% of the metric's change .* steps=8"):
        found = integrated_patching(model, tiny.pairs(model), "embed", steps=2, rule="left", positions="all")
    assert found.diagnostics["completeness_error"] > 0.05


def test_what_cannot_be_integrated_is_refused_with_the_next_step():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    with pytest.raises(UnknownName, match=r"rule.*'right'.*midpoint, left, gauss"):
        integrated_patching(model, pairs, "blocks.*.mlp.out", rule="right")
    with pytest.raises(UnknownName, match=r"mode.*'pixels'.*inputs, activations"):
        integrated_patching(model, pairs, "blocks.*.mlp.out", mode="pixels")
    with pytest.raises(InputError, match="steps=0: the gradient is taken at one point at least"):
        integrated_patching(model, pairs, "blocks.*.mlp.out", steps=0)
    from activarium.analyses.patching.ways import entries

    with pytest.raises(MissingSite, match=r"has no site 'audio\.embed', so its inputs cannot be moved"):
        entries(model, ["audio"])
