"""relevance_patching: no rule is attribution patching, frozen coefficients make it exact, counts say what was bound."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import activarium as act
from activarium import testing
from activarium.errors import InputError, UnknownName
from activarium.rules import PRESETS, Rules

from . import patched_models as tiny

relevance_patching, attribution_patching = act.analyses.relevance_patching, act.analyses.attribution_patching


def near(a, b, relative=1e-9):
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    return np.abs(a - b).max() <= relative * max(np.abs(b).max(), 1e-300)


# --- what it equals


@tiny.each()
def test_without_rules_it_is_attribution_patching(family):
    model, stack = tiny.model(family), tiny.STACK.get(family, "")
    pairs = tiny.pairs(model)
    for kind in ("resid_pre", "attn.k", "mlp.post"):
        off = relevance_patching(model, pairs, f"{stack}blocks.*.{kind}", rules=Rules())
        plain = attribution_patching(model, pairs, f"{stack}blocks.*.{kind}")
        assert near(off.per_example, plain.per_example, 1e-14)
        if kind == "resid_pre":
            ruled = relevance_patching(model, pairs, f"{stack}blocks.*.{kind}", rules="ln")
            assert not near(ruled.per_example, plain.per_example, 1e-3)
            assert [ruled.diagnostics[n] for n in ("clean", "corrupt")] == [plain.diagnostics[n] for n in ("clean", "corrupt")]


def test_a_net_of_relus_without_norms_has_nothing_to_bend():
    """The ratio of a ReLU is its slope, also at zero: every rule leaves the scores as they are."""
    hf, tokenizer = tiny.net("opt")
    for path, module in list(hf.named_modules()):
        if isinstance(module, nn.LayerNorm):
            parent, _, name = path.rpartition(".")
            setattr(hf.get_submodule(parent), name, nn.Identity())
    with torch.no_grad():  # without norms the values would grow
        for weights in hf.parameters():
            weights *= 0.3
    model = act.wrap(hf, tokenizer, certify=False)
    pairs = tiny.pairs(model)
    found = relevance_patching(model, pairs, "blocks.*.resid_pre", rules="relp")
    assert found.diagnostics["rules"]["activations"] == 2 and found.diagnostics["rules"]["norms"] == 0
    plain = attribution_patching(model, pairs, "blocks.*.resid_pre").values
    assert near(found.values, plain, 1e-12) and np.nanmax(np.abs(plain)) > 1e-8


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_it_is_exact_patching_in_the_model_whose_coefficients_are_frozen(family, direction):
    """Norm scales, patterns, activation ratios and gate operands held at the base run by a forward of their own: every cell."""
    from tests.capture.test_rules import IDS, METRIC, OTHER, PARTS, Frozen, double

    model = double(family)
    clean, corrupt = (OTHER, IDS) if direction == "denoise" else (IDS, OTHER)
    pairs = act.pairs(model, {"input_ids": clean}, {"input_ids": corrupt}, METRIC)
    frozen = Frozen(copy.deepcopy(model.torch_module), IDS)  # IDS are the base in both
    for number, kind in ((0, "resid_post"), (1, "attn.out"), (2, "mlp.out")):
        found = relevance_patching(model, pairs, f"blocks.*.{kind}", rules="relp-ah", direction=direction)
        source = model.run(OTHER, f"blocks.*.{kind}")
        exact = np.array(
            [
                [frozen(parts[number], p, source[f"blocks.{i}.{kind}"].tensor[p]) - frozen.base for p in range(IDS.shape[1])]
                for i, parts in enumerate(PARTS[family](frozen.hf))
            ]
        )
        assert near(found.values, exact, 1e-12), kind
        assert np.abs(exact).max() > 0.1 and not near(
            attribution_patching(model, pairs, f"blocks.*.{kind}", direction=direction).values, exact, 1e-2
        )


def test_each_set_of_rules_gives_other_scores_of_a_net_that_has_it_all():
    model = tiny.model("llama")
    pairs = tiny.pairs(model)
    found = {name: relevance_patching(model, pairs, "blocks.*.resid_pre", rules=name) for name in PRESETS}
    for one in PRESETS:
        assert found[one].title.startswith(f"Relevance patching ({one})")
        for other in PRESETS:
            assert one == other or not near(found[one].values, found[other].values, 1e-3)
    # An ungated net has no gate to halve.
    gpt2 = tiny.model("gpt2")
    a, b = (relevance_patching(gpt2, tiny.pairs(gpt2), "blocks.*.resid_pre", rules=r).values for r in ("ln-id", "relp"))
    assert np.array_equal(a, b, equal_nan=True)


# --- what it says


def test_counts_say_what_was_bound():
    model = tiny.model("llama")
    found = relevance_patching(model, tiny.pairs(model), "blocks.*.mlp.out", rules="relp-ah").diagnostics["rules"]
    # Two blocks of two norms and the final one, an activation, a gate and an attention in each block.
    assert [found[n] for n in ("norms", "activations", "gates", "attention", "qk_norms")] == [5, 2, 2, 2, 0]
    assert found["name"] == "relp-ah" and found["fields"]["attention"] == "frozen"


def test_rules_that_find_nothing_are_told():
    model = tiny.model("gpt2")
    with pytest.warns(
        UserWarning, match="None of the rules 'custom' found anything to act on in gpt2: these are the scores of attribution"
    ):
        found = relevance_patching(model, tiny.pairs(model), "blocks.*.mlp.out", rules=Rules(gates=True))
    assert near(found.values, attribution_patching(model, tiny.pairs(model), "blocks.*.mlp.out").values, 1e-14)


def test_the_model_is_clean_afterwards_also_after_an_error():
    model = tiny.model("llama")
    pairs = tiny.pairs(model)
    before = attribution_patching(model, pairs, "blocks.*.resid_pre").values

    def broken(logits):
        raise RuntimeError("no such logit")

    for _ in range(2):
        with pytest.raises(InputError, match="no such logit"):
            relevance_patching(model, act.pairs(model, tiny.CLEAN, tiny.CORRUPT, act.metrics.Metric(broken)), "blocks.*.mlp.out")
        relevance_patching(model, pairs, "blocks.*.mlp.out", rules="attnlrp")
    assert np.array_equal(attribution_patching(model, pairs, "blocks.*.resid_pre").values, before, equal_nan=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.torch_module.modules())


# --- the best of several


def test_auto_gives_the_candidate_that_is_nearest_to_exact_effects():
    model = tiny.model("llama")
    pairs = tiny.pairs(model)
    nodes = "blocks.*.attn.z"
    found = relevance_patching(model, pairs, nodes, rules="auto", sample=1000)
    exact = act.analyses.activation_patching(model, pairs, nodes)
    real = np.isfinite(exact.values) & ~exact.masks["known_zero"]
    expected = {}
    for name in found.diagnostics["compared"]:
        if name == "mid-AtP":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                grid = act.analyses.integrated_patching(model, pairs, nodes, steps=1)
        else:
            grid = relevance_patching(model, pairs, nodes, rules=name)
        expected[name] = np.corrcoef(grid.values[real], exact.values[real])[0, 1]
        if name == found.diagnostics["chosen"]:
            assert np.array_equal(grid.values, found.values, equal_nan=True) and grid.title == found.title
    assert set(expected) == {"relp", "relp-ah", "ln", "ln-id", "mid-AtP"}
    assert found.diagnostics["compared"] == pytest.approx(expected)
    assert found.diagnostics["chosen"] == max(expected, key=expected.get) and min(expected.values()) < max(expected.values()) - 0.01
    low, high = found.check.diagnostics["interval"]
    assert low <= found.check.diagnostics["pearson"] <= high


def test_auto_runs_only_a_sample_once_for_all():
    model = tiny.model("gpt2")
    found = relevance_patching(model, tiny.pairs(model), "blocks.*.attn.z", rules="auto", sample=20, direction="noise", normalise=True)
    assert found.check.diagnostics["cells"] == 20 and found.unit == "share of M+ - M-" and found.diagnostics["direction"] == "noise"


# --- pairs


@tiny.each()
def test_identical_inputs_score_exactly_nothing(family):
    model, stack = tiny.model(family), tiny.STACK.get(family, "")
    side = testing.images(2) if model.tokenizer is None else tiny.CLEAN
    pairs = tiny.pairs(model, side, side)
    assert (np.nan_to_num(relevance_patching(model, pairs, f"{stack}blocks.*.attn.z", rules="relp-ah").values) == 0).all()


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "bert", "t5"])
def test_ragged_pairs_batches_and_one_by_one_agree(family):
    model, stack = tiny.model(family), tiny.STACK.get(family, "")
    pairs = tiny.pairs(model)
    both, chunked = (relevance_patching(model, pairs, f"{stack}blocks.*.mlp.out", batch=n) for n in (32, 1))
    assert near(both.per_example, chunked.per_example)
    for i in range(2):
        alone = relevance_patching(model, pairs.select([i]), f"{stack}blocks.*.mlp.out").values
        assert near(both.per_example[i][:, : alone.shape[1]], alone)
    assert (both.diagnostics["forwards"], both.diagnostics["backwards"]) == (2, 1)


@tiny.each([f for f in tiny.FAMILIES if f != "gemma2"])
def test_heads_add_up_to_what_attention_writes(family):
    model, stack = tiny.model(family), tiny.STACK.get(family, "")
    pairs = tiny.pairs(model)
    heads, whole = (relevance_patching(model, pairs, f"{stack}blocks.*.attn.{n}").values for n in ("z", "out"))
    assert near(heads.sum(-1), whole)


def test_bfloat16_is_near_float32():
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        model = act.wrap(testing.tiny("llama")[0].to(dtype), testing.tiny("llama")[1], certify=False)
        answers.append(relevance_patching(model, tiny.pairs(model), "blocks.*.attn.out").values.ravel())
    cosine = answers[0] @ answers[1] / np.linalg.norm(answers[0]) / np.linalg.norm(answers[1])
    assert cosine > 0.98


def test_what_cannot_be_scored_is_refused_with_the_next_step():
    model = tiny.model("gpt2")
    with pytest.raises(UnknownName, match="set of rules.*'lrp'.*relp"):
        relevance_patching(model, tiny.pairs(model), "blocks.*.mlp.out", rules="lrp")
    with pytest.raises(InputError, match="rules=None is neither a Rules nor the name of a set"):
        relevance_patching(model, tiny.pairs(model), "blocks.*.mlp.out", rules=None)
    half = act.wrap(testing.tiny("gpt2")[0].half(), testing.tiny("gpt2")[1], certify=False)
    with pytest.raises(InputError, match="float16"):
        relevance_patching(half, tiny.pairs(half), "blocks.*.mlp.out")
