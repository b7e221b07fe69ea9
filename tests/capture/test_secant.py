"""Secants: differences add up at every cut, equal inputs give the ordinary gradient, and values stay bit for bit."""

import copy

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.errors import InputError
from activarium.metrics import class_logit, logit_difference
from activarium.rules import Secant, as_rules

from .test_rules import double

FAMILIES = ["gpt2", "llama", "qwen3", "gpt_neox", "phi", "opt", "gemma2", "mistral", "bert", "albert", "t5", "t5_gated", "vit", "dinov2"]
QUICK = ("gpt2", "llama", "gemma2", "bert", "t5_gated", "vit")
INPUT, REFERENCE = torch.tensor([20, 31, 42, 53, 64, 70]), torch.tensor([20, 75, 42, 33, 64, 81])


def pair(family, same=False):
    if testing.FAMILIES[family].images:
        first, second = testing.images(2)
        return [first, first if same else second]
    if family.startswith("t5"):
        return {"encoder": [INPUT, INPUT if same else REFERENCE], "decoder": [INPUT[:3], INPUT[:3] if same else REFERENCE[:3]]}
    return [INPUT, INPUT if same else REFERENCE]


def measured(family, model, data, rules):
    metric = class_logit([1, 1]) if testing.FAMILIES[family].images else logit_difference([7, 7], [11, 11])
    sites = [f"{s.prefix}blocks.*.resid_pre" for s in model.anatomy.stacks.values()]
    rec = model.run(data, read=sites, metrics={"m": metric}, grad=True, rules=rules)
    rec.backward("m")
    return rec


def each(families):
    return pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in families])


@each(FAMILIES)
def test_differences_add_up_at_every_cut(family):
    model = double(family)
    rec = measured(family, model, pair(family), Secant())
    change = (rec.metric["m"][0] - rec.metric["m"][1]).item()
    stacks = list(model.anatomy.stacks.values())
    # In an encoder-decoder a cut through the decoder leaves out the encoder's own path, so there the whole cut is at both entrances.
    cuts = (
        [[f"{s.prefix}blocks.0.resid_pre" for s in stacks]]
        if len(stacks) > 1
        else [[f"blocks.{i}.resid_pre"] for i in range(len(stacks[0].blocks))]
    )
    for cut in cuts:
        total = 0.0
        for site in cut:
            (a, b), (g, g_base) = (t.tensor.detach().chunk(2) for t in (rec[site], rec.gradient[site]))
            assert (g_base == 0).all()
            total += ((a - b) * g).sum().item()
        assert abs(change) > 1e-2
        # Gemma's and T5's norms compute in float32; double() replaces those that it knows.
        assert abs(total - change) <= (1e-5 if family == "gemma2" else 1e-9) * max(1, abs(change))
    assert torch.equal(rec.logits.tensor, measured(family, model, pair(family), None).logits.tensor)


@each(FAMILIES)
def test_an_input_that_is_its_own_reference_has_the_ordinary_gradient(family):
    model = double(family)
    ours, ordinary = (measured(family, model, pair(family, same=True), rules) for rules in (Secant(), None))
    for site in ours.gradient:
        a, b = (r.gradient[site].tensor.chunk(2)[0] for r in (ours, ordinary))
        if "resid_pre" in site:
            assert (a - b).abs().max() <= (1e-4 if family == "gemma2" else 1e-8) * b.abs().max()


def test_a_fused_gate_without_an_activation_module_adds_up():
    model = double("dinov2", use_swiglu_ffn=True)
    rec = measured("dinov2", model, pair("dinov2"), Secant())
    a, b = rec["blocks.0.resid_pre"].tensor.detach().chunk(2)
    g = rec.gradient["blocks.0.resid_pre"].tensor.chunk(2)[0]
    assert ((a - b) * g).sum().item() == pytest.approx((rec.metric["m"][0] - rec.metric["m"][1]).item(), rel=1e-9)


@pytest.mark.parametrize("rules", [Secant(), "gim"])
def test_padding_takes_no_part(rules):
    """Texts of two lengths: the rows of each are what they are alone, or in a batch of one length."""
    model = double("llama")
    metric = logit_difference([7] * 4, [11] * 4)

    def slopes(data):
        rec = model.run(data, read="blocks.0.resid_pre", metrics={"m": metric}, grad=True, rules=rules)
        found = rec.backward("m")["blocks.0.resid_pre"]
        return [found.example(e).tensor for e in range(2)]

    ragged = slopes([INPUT, INPUT[:4], REFERENCE, REFERENCE[:4]])
    long, short = slopes([INPUT, INPUT, REFERENCE, REFERENCE])[0], slopes([INPUT[:4], INPUT[:4], REFERENCE[:4], REFERENCE[:4]])[0]
    for ours, alone in zip(ragged, (long, short), strict=True):
        assert (ours - alone).abs().max() <= 1e-10 * alone.abs().max()


def test_what_no_secant_passes_is_refused():
    mixtral = act.wrap(*testing.tiny("mixtral"), name="mixtral", certify=False)
    with pytest.raises(InputError, match="mixtral has parts that no secant passes: .*shows no neurons"):
        measured("mixtral", mixtral, [INPUT, REFERENCE], Secant())
    gpt2 = act.wrap(copy.deepcopy(testing.tiny("gpt2")[0]), testing.tiny("gpt2")[1], name="gpt2", certify=False)
    with pytest.raises(InputError, match="second half is the reference of the first; transformer.h.0.ln_1 was given 3 lines"):
        gpt2.run([INPUT] * 3, metrics=logit_difference([7] * 3, [11] * 3), grad=True, rules=Secant())
    with pytest.raises(InputError, match="rules='secant' changes gradients and no values"):
        gpt2.run([INPUT, REFERENCE], rules=Secant())


def test_secants_are_no_set_of_rules():
    """Who takes rules for single inputs must not be given what reads half of the batch as reference."""
    with pytest.raises(InputError, match=r"rules=Secant\(\) is neither a Rules nor the name of a set"):
        as_rules(Secant())


def test_the_logarithmic_mean_by_hand_and_where_it_is_hard():
    from activarium.capture._secant import logarithmic_mean

    def of(a, b):
        return logarithmic_mean(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)).item()

    assert of(1.0, 0.0) == pytest.approx(torch.e - 1)
    assert of(0.3, 0.3) == pytest.approx(torch.tensor(0.3).exp().item())
    assert of(0.3 + 1e-12, 0.3) == pytest.approx(of(0.3, 0.3), rel=1e-11)
    assert of(0.499999, -0.5) == pytest.approx(of(0.500001, -0.5), rel=1e-5)  # where the series ends
    assert of(-float("inf"), -float("inf")) == of(0.0, -float("inf")) == 0
    assert of(0.0, -800.0) == pytest.approx(1 / 800)


def test_slopes_stay_small_where_scores_are_far_apart():
    """T5 does not scale its scores: through exp and reciprocal the slopes would be in the billions here."""
    rec = measured("t5", double("t5"), pair("t5"), Secant())
    assert rec.gradient["encoder.blocks.0.resid_pre"].tensor.abs().max() < 1e3
