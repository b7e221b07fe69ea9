"""Relevance rules on TransformerLens models: the coefficients of the Hugging Face model with the same weights, and values bit for bit."""

from functools import cache

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.metrics import logit_difference
from activarium.rules import PRESETS, Rules

from .lens_models import FAMILIES, KINDS

pytest.importorskip("transformer_lens", reason="the extra [lens] is not installed")
pytestmark = [
    pytest.mark.slow,  # TransformerLens takes seconds to import
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),  # told to whoever makes one
]

IDS = [torch.tensor([20, 31, 42, 53, 64, 75]), torch.tensor([33, 44, 55])]
METRIC = logit_difference([7, 9], [11, 13])
BOTH = [(family, kind) for family in FAMILIES for kind in KINDS]
SHARED = ["resid_pre", "attn.q", "attn.k", "attn.v", "attn.z", "attn.out", "mlp.pre", "mlp.post", "mlp.out", "resid_post"]


@cache
def original(family):
    return act.wrap(*testing.tiny(family), name=family, certify=False)


@cache
def lens(family, kind):
    return act.wrap(*KINDS[kind](family), name=f"{family} in {kind}", certify=False)


def measured(model, rules, sites):
    rec = model.run(IDS, read=sites, metrics=METRIC, grad=True, rules=rules)
    rec.backward()
    return rec


@pytest.mark.parametrize("rules", list(PRESETS))
@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_the_same_coefficients_and_counts_as_in_the_original(family, kind, rules):
    sites = [f"blocks.*.{n}" for n in SHARED]
    if kind == "HookedTransformer":
        sites += ["blocks.*.attn.q_rot", "blocks.*.attn.k_rot"]
    ours, theirs = measured(lens(family, kind), rules, sites), measured(original(family), rules, sites)
    for site in theirs.gradient:
        a, b = ours.gradient[site].tensor, theirs.gradient[site].tensor
        assert (a - b).abs().max() <= 1e-4 * max(float(b.abs().max()), 1e-6), site
    counts = [{n: rec.provenance["rules"][n] for n in ("norms", "qk_norms", "activations", "gates", "attention")} for rec in (ours, theirs)]
    assert counts[0] == counts[1]
    assert ours.provenance["rules"]["notes"] == []


@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_logits_are_bit_identical_and_nothing_stays(family, kind):
    model = lens(family, kind)
    plain = model.run(IDS, metrics=METRIC, grad=True)
    hooks = [p for p, m in model.torch_module.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    forwards = [p for p, m in model.torch_module.named_modules() if "forward" in m.__dict__]
    for name in PRESETS:
        assert torch.equal(model.run(IDS, metrics=METRIC, grad=True, rules=name).logits.tensor, plain.logits.tensor)
    assert hooks == [p for p, m in model.torch_module.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    assert forwards == [p for p, m in model.torch_module.named_modules() if "forward" in m.__dict__]


def test_folding_the_norms_into_the_weights_leaves_relevance_where_it_was():
    """A norm without gain or bias is still a norm; scores of what is written to the stream are those of the unprocessed model."""
    hooked, tokenizer = KINDS["HookedTransformer"]("gpt2")
    hooked.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    folded = act.wrap(hooked, tokenizer, certify=False)
    assert folded.processing.folded_norms and folded.processing.centred_writing
    sites = ["blocks.*.attn.out", "blocks.*.mlp.out"]
    ours, theirs = measured(folded, "relp", sites), measured(original("gpt2"), "relp", sites)
    assert ours.provenance["rules"]["norms"] == 7
    for site in theirs.gradient:
        assert torch.allclose(ours.gradient[site].tensor, theirs.gradient[site].tensor, rtol=1e-3, atol=1e-4)


def test_a_soft_cap_inside_transformer_lens_is_found():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    shape = {"d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 48, "n_ctx": 16, "d_vocab": 100, "n_layers": 1, "device": "cpu"}
    hooked = HookedTransformer(HookedTransformerConfig(**shape, act_fn="gelu", normalization_type="LN", output_logits_soft_cap=2.0)).eval()
    model = act.wrap(hooked, testing.tiny("gpt2")[1], certify=False)
    rec = measured(model, Rules(activations=True), "final_norm")
    assert rec.provenance["rules"]["activations"] == 2
    with torch.no_grad():
        before = rec["final_norm"].tensor @ model.weight("W_U") + model.weight("b_U")
    ratio = torch.tanh(before / 2) / (before / 2)
    wanted = model.weight("W_U")[:, 7] * ratio[5, 7] - model.weight("W_U")[:, 11] * ratio[5, 11]
    assert torch.allclose(rec.gradient["final_norm"].tensor[5], wanted, rtol=1e-4, atol=1e-6)
