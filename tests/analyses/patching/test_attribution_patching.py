"""attribution_patching: finite differences for every kind of node, exactness where the rest is affine, invariances, refusals."""

import numpy as np
import pytest
import torch
from torch import nn

import activarium as act
from activarium import testing
from activarium.edits import Replace
from activarium.errors import InputError
from activarium.metrics import Metric

from . import patched_models as tiny

attribution_patching, activation_patching = act.analyses.attribution_patching, act.analyses.activation_patching


def near(a, b, relative=1e-9):
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    return np.abs(a - b).max() <= relative * max(np.abs(b).max(), 1e-300)


# --- the gradient is the derivative of a run in which the node really moves


def slope(model, pairs, site, rows, part, size=1e-4):
    """Central difference of the metric of the pair that owns `rows`, as its node moves from its base to its source value."""
    base, source = model.run(pairs.corrupt, site)[site].tensor, model.run(pairs.clean, site)[site].tensor
    move = torch.zeros_like(base)
    place = (rows,) if part is None else (rows, part)
    move[place] = (source - base)[place]
    ends = [
        model.run(pairs.corrupt, edits=[Replace(site, lambda old, h=h: old + h * move)], metrics={"m": pairs.metric}).metric["m"]
        for h in (-2 * size, -size, size, 2 * size)
    ]
    a, b, c, d = (e.sum().item() for e in ends)
    return (a - 8 * b + 8 * c - d) / (12 * size)


@tiny.each([*tiny.FAMILIES, "t5_decoder"], [*tiny.QUICK, "bert"])
def test_every_kind_of_node_by_finite_differences(family):
    model = tiny.model(family.removesuffix("_decoder"))
    pairs, stack = tiny.pairs(model), "decoder." if family == "t5_decoder" else tiny.STACK.get(family, "")
    tried, rough = 0, family == "gemma2"  # it computes its softmax in float32
    for kind in tiny.kinds(model, stack):
        site = f"{stack}blocks.1.{kind}"
        found = attribution_patching(model, pairs, site)
        scores = found.per_example[1, 0]
        row, *parts = np.unravel_index(np.nanargmax(np.abs(scores)), scores.shape)  # a node at which something is compared
        part = int(parts[0]) if parts else None
        first = int(pairs.clean.rows_of(model.sites[site].rows)[0])
        expected = slope(model, pairs, site, first + row, part, 1e-2 if rough else 1e-4)
        score = scores[row] if part is None else scores[row, part]
        assert score == pytest.approx(expected, rel=1e-3 if rough else 1e-6, abs=1e-8), site
        tried += abs(expected) > 1e-5
    assert tried == len(tiny.kinds(model, stack))


# --- identities


@tiny.each()
@pytest.mark.parametrize("points", [1, 2])
def test_identical_inputs_score_exactly_nothing(family, points):
    model = tiny.model(family)
    side = testing.images(2) if model.tokenizer is None else tiny.CLEAN
    pairs, stack = tiny.pairs(model, side, side), tiny.STACK.get(family, "")
    for kind in ("resid_post", "attn.q", "attn.v", "mlp.post"):
        assert (np.nan_to_num(attribution_patching(model, pairs, f"{stack}blocks.*.{kind}", points=points).values) == 0).all()


@tiny.each([f for f in tiny.FAMILIES if f != "gemma2"])
def test_heads_add_up_to_what_attention_writes(family):
    """The output projection is linear, also below a LayerScale; a norm after it (Gemma-2) is not."""
    model, stack = tiny.model(family), tiny.STACK.get(family, "")
    pairs = tiny.pairs(model)
    heads, whole = (attribution_patching(model, pairs, f"{stack}blocks.*.attn.{n}").values for n in ("z", "out"))
    assert near(heads.sum(-1), whole) and np.nan_to_num(np.abs(whole)).max() > 1e-4


def test_exact_where_all_that_follows_is_affine():
    """Without the final norm the last MLP's output goes straight into the logits; with it, it does not."""
    hf, tokenizer = tiny.net("gpt2")
    with_norm = act.wrap(hf, tokenizer, certify=False)
    pairs = tiny.pairs(with_norm)
    site = "blocks.2.mlp.out"
    assert not near(attribution_patching(with_norm, pairs, site).values, activation_patching(with_norm, pairs, site).values, 1e-2)
    hf.transformer.ln_f = nn.Identity()
    model = act.wrap(hf, tokenizer, certify=False)
    pairs = tiny.pairs(model)
    assert near(attribution_patching(model, pairs, site).values, activation_patching(model, pairs, site, reuse=False).values)


def test_the_score_is_the_gradient_of_a_plain_forward_times_the_difference():
    hf, tokenizer = tiny.net("gpt2")
    model = act.wrap(hf, tokenizer, certify=False)
    pairs = tiny.pairs(model, tiny.CLEAN[:1], tiny.CORRUPT[:1])
    kept = []

    def keep(module, args, out):
        kept.append(out.detach().requires_grad_())
        return kept[-1]

    handle = hf.transformer.h[1].mlp.register_forward_hook(keep)
    ids = [tokenizer(t, return_tensors="pt").input_ids for t in (tiny.CORRUPT[0], tiny.CLEAN[0])]
    logits, _ = (hf(i).logits[0, -1] for i in ids)
    handle.remove()
    metric = logits[tokenizer.convert_tokens_to_ids("Anna")] - logits[tokenizer.convert_tokens_to_ids("Tom")]
    (gradient,) = torch.autograd.grad(metric, kept[0])
    expected = (gradient * (kept[1] - kept[0])).sum(-1)[0].detach().numpy()
    assert near(attribution_patching(model, pairs, "blocks.1.mlp.out").values[0], expected)


def test_two_points_are_the_mean_of_both_ends():
    model = tiny.model("llama")
    pairs = tiny.pairs(model)
    site = "blocks.*.mlp.post"
    one, other = (attribution_patching(model, pairs, site, direction=d) for d in ("denoise", "noise"))
    both = attribution_patching(model, pairs, site, points=2)
    # Seen from the other side the gradient is the other end's and the difference has the other sign.
    assert near(both.values, (one.values - other.values) / 2)
    assert (one.diagnostics["forwards"], one.diagnostics["backwards"]) == (2, 1)
    assert (both.diagnostics["forwards"], both.diagnostics["backwards"]) == (3, 2)


def test_units_and_columns_are_parts_of_the_same_sum():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model, places={"name": [0, 2]})
    site = "blocks.*.mlp.post"
    rows = attribution_patching(model, pairs, site)
    neurons = attribution_patching(model, pairs, site, units="all")
    assert neurons.axes == ("layer", "position", "d_mlp") and near(neurons.values.sum(-1), rows.values)
    chosen = attribution_patching(model, pairs, site, units=[5, 2])
    assert near(chosen.values, neurons.values[..., [5, 2]])
    whole = attribution_patching(model, pairs, site, positions="all")
    assert near(whole.per_example, np.nansum(rows.per_example, 2))
    places = attribution_patching(model, pairs, site, positions="places")
    assert near(places.values[:, 0], (rows.per_example[0, :, 0] + rows.per_example[1, :, 2]) / 2)
    grouped = attribution_patching(tiny.model("llama"), tiny.pairs(tiny.model("llama")), "blocks.*.attn.k")
    assert grouped.values.shape == (2, 7, 2), "keys have two heads, whatever the queries have"


def test_shares_of_the_change():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    plain, share = (attribution_patching(model, pairs, "blocks.*.mlp.out", normalise=n) for n in (False, True))
    assert near(share.values, plain.values / (plain.diagnostics["clean"] - plain.diagnostics["corrupt"]))
    assert plain.unit == "logits" and share.unit == "share of M+ - M-"
    with pytest.raises(InputError, match="no difference to give shares of"):
        attribution_patching(model, tiny.pairs(model, tiny.CLEAN, tiny.CLEAN), "blocks.*.mlp.out", normalise=True)


# --- batches, padding, types


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "bert", "t5"])
def test_ragged_pairs_batches_and_one_by_one_agree(family):
    model, stack = tiny.model(family), tiny.STACK.get(family, "")
    pairs = tiny.pairs(model)
    site = f"{stack}blocks.*.attn.k"
    both, chunked = (attribution_patching(model, pairs, site, batch=n) for n in (32, 1))
    assert near(both.per_example, chunked.per_example) and np.array_equal(np.isnan(both.per_example), np.isnan(chunked.per_example))
    for i in range(2):
        alone = attribution_patching(model, pairs.select([i]), site).values
        assert near(both.per_example[i][:, : alone.shape[1]], alone)
    assert chunked.diagnostics["forwards"] == 4


@pytest.mark.parametrize("method", ["attribution_patching", "attribution_patching_star", "relevance_patching"])
def test_many_batches_show_a_bar_and_few_do_not(method, capsys):
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    pairs = act.pairs(model, ["Anna saw"] * 21, ["Tom saw"] * 21, answers=["Anna"] * 21, foils=["Tom"] * 21)
    score = getattr(act.analyses, method)
    for options, shown in (({"batch": 1}, True), ({"batch": 2}, False), ({"batch": 1, "progress": False}, False)):
        score(model, pairs, "blocks.0.mlp.out", **options)
        assert ("scoring pairs" in capsys.readouterr().out) == shown


def test_a_custom_metric_keeps_its_examples_in_small_batches():
    model = tiny.model("gpt2")
    weights = torch.tensor([1.0, -3.0], dtype=torch.float64)
    metric = Metric(lambda logits, example: weights[example] * logits[:, 7], name="own", position=np.array([1, 4]))
    pairs = act.pairs(model, tiny.CLEAN, tiny.CORRUPT, metric)
    one, two = (attribution_patching(model, pairs, "blocks.*.mlp.out", batch=n) for n in (1, 2))
    assert near(one.per_example, two.per_example) and np.abs(one.per_example[0, :, 0]).max() > 0


def test_padding_side_does_not_matter():
    model = tiny.model("gpt2")
    ids = [[model.tokenizer(t).input_ids for t in side] for side in (tiny.CLEAN, tiny.CORRUPT)]
    found = []
    for left in (True, False):
        sides = []
        for side in ids:
            pads = [max(map(len, side)) - len(t) for t in side]
            rows = [[0] * p + t if left else t + [0] * p for p, t in zip(pads, side, strict=True)]
            mask = [[0] * p + [1] * len(t) if left else [1] * len(t) + [0] * p for p, t in zip(pads, side, strict=True)]
            sides.append({"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)})
        pairs = act.pairs(model, *sides, answers=["Anna", "Tom"], foils=["Tom", "Anna"])
        found.append(attribution_patching(model, pairs, "blocks.*.attn.z").per_example)
    assert np.array_equal(*found, equal_nan=True)


def test_bfloat16_is_near_float32():
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        model = act.wrap(testing.tiny("gpt2")[0].to(dtype), testing.tiny("gpt2")[1], certify=False)
        answers.append(attribution_patching(model, tiny.pairs(model), "blocks.*.attn.out").values.ravel())
    assert np.isfinite(answers).all()
    cosine = answers[0] @ answers[1] / np.linalg.norm(answers[0]) / np.linalg.norm(answers[1])
    assert cosine > 0.98


def test_bfloat16_with_a_change_below_its_resolution_is_refused():
    model = act.wrap(testing.tiny("gpt2")[0].to(torch.bfloat16), testing.tiny("gpt2")[1], certify=False)
    nearly = Metric(lambda logits: 1e-4 * (logits[:, 7] - logits[:, 9]), name="small")
    pairs = act.pairs(model, tiny.CLEAN, tiny.CORRUPT, nearly)
    with pytest.raises(InputError, match="is in bfloat16: its logits.*would be rounding; load the model in float32"):
        attribution_patching(model, pairs, "blocks.*.attn.out")


# --- the same model, held otherwise


@pytest.mark.slow  # TransformerLens takes seconds to import
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize("method", ["activation", "attribution", "attribution_star", "integrated", "relevance"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_folding_and_centring_change_no_score(method, family):
    """Norm gains folded into weights, writers and unembedding centred: the same function, so the same effects of the same nodes."""
    pytest.importorskip("transformer_lens", reason="the extra [lens] is not installed")
    from tests.capture.lens_models import hooked

    made, tokenizer = hooked(family)
    rms = family == "llama"
    made.process_weights_(fold_ln=True, center_writing_weights=not rms, center_unembed=True)
    theirs, ours = act.wrap(made, tokenizer), act.wrap(*testing.tiny(family), certify=False)
    analysis = getattr(act.analyses, {"attribution_star": "attribution_patching_star"}.get(method, f"{method}_patching"))
    for kind in ("attn.q", "attn.z", "attn.out", "mlp.out", "mlp.post"):
        a, b = (analysis(m, tiny.pairs(m), f"blocks.*.{kind}").values for m in (theirs, ours))
        assert a.shape == b.shape and near(a, b, 1e-4), kind


# --- bad input


def test_what_cannot_be_scored_is_refused_with_the_next_step():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    with pytest.raises(InputError, match=r"points=3: the gradient is taken at 1 point .* for more use integrated_patching"):
        attribution_patching(model, pairs, "blocks.*.mlp.out", points=3)
    with pytest.raises(InputError, match="head_out has axes .* Patch z instead"):
        attribution_patching(model, pairs, "blocks.0.attn.head_out")
    with pytest.raises(InputError, match="batch=0: a forward takes at least one pair"):
        attribution_patching(model, pairs, "blocks.*.mlp.out", batch=0)
    half = act.wrap(testing.tiny("gpt2")[0].half(), testing.tiny("gpt2")[1], certify=False)
    with pytest.raises(InputError, match="is in float16, where gradients underflow to zero. Load it in float32 or bfloat16"):
        attribution_patching(half, tiny.pairs(half), "blocks.*.mlp.out")
    model.torch_module.train()
    with pytest.raises(InputError, match="training mode"):
        attribution_patching(model, pairs, "blocks.*.mlp.out")


def test_no_gradient_is_left_on_the_model():
    model = tiny.model("gpt2")
    attribution_patching(model, tiny.pairs(model), "blocks.*.attn.q", points=2)
    assert all(p.grad is None for p in model.torch_module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.torch_module.modules())


def test_frozen_weights_have_gradients_at_their_nodes_all_the_same():
    model = tiny.model("gpt2")
    free = attribution_patching(model, tiny.pairs(model), "blocks.*.attn.k").values
    model.torch_module.requires_grad_(False)
    assert near(attribution_patching(model, tiny.pairs(model), "blocks.*.attn.k").values, free)
