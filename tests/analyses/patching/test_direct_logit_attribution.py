"""direct_logit_attribution: shares add up in every architecture, by hand with a frozen norm, TransformerLens twins, sources, refusals."""

import numpy as np
import pytest
import torch
from torch import nn

import activarium as act
from activarium.edits import Add
from activarium.errors import InputError, MissingSite
from activarium.metrics import Metric, class_logit, log_probability, logit_difference

direct_logit_attribution = act.analyses.direct_logit_attribution
IMAGES = ("vit", "dinov2", "dinov2_registers")
FAMILIES = ("gpt2", "llama", "gpt_neox", "phi", "qwen3", "gemma2", "opt", "mixtral", "t5_gated", *IMAGES)
DIFFERENCE = logit_difference([1, 2, 3], [3, 4, 0])


def made(family: str):
    return act.wrap(*act.testing.tiny(family), certify=False)


def inputs_of(family: str):
    if family.startswith("t5"):
        return {"encoder": act.testing.texts(3), "decoder": ["the cat", "who", "Anna gave Tom"]}
    return act.testing.images(3) if family in IMAGES else act.testing.texts(3)


def measured(model, inputs, metric: Metric) -> np.ndarray:
    return model.run(inputs, metrics=metric).metric[metric.name].double().numpy()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
@pytest.mark.parametrize("metric", [DIFFERENCE, class_logit([1, 2, 3])], ids=["difference", "one logit"])
def test_the_terms_add_up_to_the_metric(family: str, metric: Metric) -> None:
    """Sequential and parallel blocks, both norms, experts, cross-attention, LayerScale, pooled heads, ragged texts."""
    model, inputs = made(family), inputs_of(family)
    report = direct_logit_attribution(model, inputs, metric, batch=2)
    wanted = measured(model, inputs, metric)
    terms = report["terms"].per_example
    assert np.abs(terms.sum(1) - wanted).max() < 1e-5 * max(np.abs(wanted).max(), np.abs(terms).max())
    assert report.diagnostics["completeness_error"] < 1e-5
    assert np.abs(report["terms"].values).max() > 10 * np.abs(terms.sum(1) - wanted).max() > 0, "terms of a size that could be wrong"
    assert (np.abs(report["heads"].values) > 1e-6).all(), "every head writes something here"


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mixtral"])
def test_sources_add_up_to_each_head(family: str) -> None:
    """Causal, sliding, grouped, biased by position, both ways; cross-attention sums over the encoder's tokens."""
    report = direct_logit_attribution(made(family), inputs_of(family), DIFFERENCE, per_source=True, batch=2)
    for sources, heads in (("sources", "heads"), ("cross sources", "cross heads")):
        if sources in report.parts:
            whole = report[heads].per_example
            assert np.abs(report[sources].per_example.sum(-1) - whole).max() < 1e-5 * np.abs(whole).max()
            assert np.abs(report[sources].per_example).max() > 0.01 * np.abs(whole).max()
    assert ("cross sources" in report.parts) == family.startswith("t5")


def test_writes_and_heads_and_terms_agree() -> None:
    report = direct_logit_attribution(made("gpt2"), inputs_of("gpt2"), DIFFERENCE)
    whole = direct_logit_attribution(made("gpt2"), inputs_of("gpt2"), DIFFERENCE, heads=False)
    assert np.allclose(report["writes"].per_example, whole["writes"].per_example, atol=1e-6)
    assert "heads" not in whole.parts
    names = report["terms"].label("term")
    for layer in range(3):
        bias = report["terms"].values[names.index(f"blocks.{layer}.attn.bias")]
        assert report["heads"].values[layer].sum() + bias == pytest.approx(report["writes"].values[layer, 0], abs=1e-6)
    assert names[0] == "embed"
    assert names[-2:] == ["final norm shift", "unembedding bias"]


def test_a_share_is_what_the_logit_loses_when_the_term_is_taken_from_under_a_frozen_norm() -> None:
    """By another way: the model's own final norm and head, its mean and deviation held, with one write taken out of the stream."""
    model = made("gpt2")
    text, metric = ["the cat sat on the house ."], logit_difference([11], [12])
    recording = model.run(text, read=["blocks.*.attn.head_out", "blocks.*.mlp.out", "blocks.2.resid_post"])
    norm, head = model.torch_module.transformer.ln_f, model.torch_module.lm_head
    last = recording["blocks.2.resid_post"].tensor[-1]
    sigma = (last.var(unbiased=False) + norm.eps).sqrt()

    def answer(stream: torch.Tensor) -> float:
        logits = head((stream - stream.mean()) / sigma * norm.weight + norm.bias).detach()
        return float(logits[11] - logits[12])

    report = direct_logit_attribution(model, text, metric)
    assert report.diagnostics["metric"] == pytest.approx(answer(last), abs=1e-5)
    for layer in range(3):
        for h in range(4):
            without = answer(last - recording[f"blocks.{layer}.attn.head_out"].tensor[-1, h])
            assert report["heads"].values[layer, h] == pytest.approx(answer(last) - without, abs=2e-5)
        without = answer(last - recording[f"blocks.{layer}.mlp.out"].tensor[-1])
        assert report["writes"].values[layer, 1] == pytest.approx(answer(last) - without, abs=2e-5)


def test_soft_capped_logits_are_attributed_before_the_cap() -> None:
    model, inputs = made("gemma2"), inputs_of("gemma2")
    seen: list[torch.Tensor] = []
    hook = model.torch_module.lm_head.register_forward_hook(lambda module, given, out: seen.append(out))
    try:
        model.run(inputs)
    finally:
        hook.remove()
    lengths = model.inputs(inputs).lengths
    entering = [seen[0][e, n - 1] for e, n in enumerate(lengths)]
    wanted = [float(entering[e][a] - entering[e][b]) for e, (a, b) in enumerate(DIFFERENCE.columns.tolist())]
    report = direct_logit_attribution(model, inputs, DIFFERENCE, per_source=True)
    assert report["terms"].per_example.sum(1) == pytest.approx(wanted, abs=1e-5)
    assert np.abs(np.array(wanted) - measured(model, inputs, DIFFERENCE)).max() > 0.05, "the cap matters here"
    assert report.diagnostics["soft-cap"] == "attributed before the cap of 3"
    assert "before the soft-cap of 3" in report.words[0]


def test_a_metric_of_several_positions_is_the_sum_over_them() -> None:
    model, inputs = made("llama"), inputs_of("llama")
    both = Metric(lambda logits: logits[:, 0, 11] - logits[:, 1, 12], position=(0, -1), name="both")
    first, last = (Metric(lambda logits, c=c: logits[:, c], position=p) for p, c in ((0, 11), (-1, 12)))
    whole, a, b = (direct_logit_attribution(model, inputs, m)["terms"].per_example for m in (both, first, last))
    assert np.allclose(whole, a - b, atol=1e-6)


def test_float64_is_complete_to_rounding() -> None:
    model, tokenizer = act.testing.tiny("gpt2")
    report = direct_logit_attribution(act.wrap(model.double(), tokenizer, certify=False), inputs_of("gpt2"), DIFFERENCE)
    assert report.diagnostics["completeness_error"] < 1e-13


def test_bfloat16_adds_up_as_far_as_it_can() -> None:
    model, tokenizer = act.testing.tiny("llama")
    rough = direct_logit_attribution(act.wrap(model.bfloat16(), tokenizer, certify=False), inputs_of("llama"), DIFFERENCE)
    exact = direct_logit_attribution(made("llama"), inputs_of("llama"), DIFFERENCE)
    a, b = rough["terms"].values, exact["terms"].values
    assert 1e-6 < rough.diagnostics["completeness_error"] < 5e-2
    assert (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


@pytest.mark.slow  # TransformerLens takes seconds to import
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")  # told to whoever makes one
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_transformerlens_gives_the_same_shares(family: str, kind: str) -> None:
    from ...capture import lens_models

    inputs, plain = inputs_of(family), direct_logit_attribution(made(family), inputs_of(family), DIFFERENCE, per_source=True)
    twin, tokenizer = getattr(lens_models, kind)(family)
    found = direct_logit_attribution(act.wrap(twin, tokenizer, certify=False), inputs, DIFFERENCE, per_source=True)
    assert found["terms"].label("term") == plain["terms"].label("term")
    for part in ("terms", "heads", "sources"):
        assert np.allclose(found[part].per_example, plain[part].per_example, atol=1e-4 * np.abs(plain[part].values).max())


@pytest.mark.slow  # TransformerLens takes seconds to import
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")  # told to whoever makes one
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_folded_weights_leave_every_share_but_move_the_constants(family: str) -> None:
    """Folding moves the final norm's shift into the unembedding's bias and value biases into the attention's: sums stay."""
    from ...capture.lens_models import hooked

    inputs, plain = inputs_of(family), direct_logit_attribution(made(family), inputs_of(family), DIFFERENCE)
    twin, tokenizer = hooked(family)
    norms = family != "llama"  # TransformerLens centres only what a LayerNorm reads
    twin.load_and_process_state_dict(
        twin.state_dict(), fold_ln=True, center_writing_weights=norms, center_unembed=True, fold_value_biases=True
    )
    found = direct_logit_attribution(act.wrap(twin, tokenizer, certify=False), inputs, DIFFERENCE)
    size = np.abs(plain["terms"].values).max()
    names = plain["terms"].label("term")
    for kind in ("embed", *(n for n in names if ".mlp." in n)):
        i = names.index(kind)
        assert np.allclose(found["terms"].per_example[:, i], plain["terms"].per_example[:, i], atol=1e-4 * size)
    assert np.allclose(found["writes"].per_example, plain["writes"].per_example, atol=1e-4 * size)
    constants = [r["terms"].per_example[:, -2:].sum(1) for r in (found, plain)]
    assert np.allclose(*constants, atol=1e-4 * size)
    assert np.abs(found["terms"].values[-2]) < 1e-6, "nothing is left of the shift"


def test_scribes_last_heads_copy_the_receiver() -> None:
    """Trained weights: the shares add up there too, and the largest source of the last block's strongest copier is the receiver."""
    model = act.load("scribe", certify=False)
    made = act.pairs.ioi(model, 40)
    report = direct_logit_attribution(model, made, per_source=True)
    assert report["terms"].per_example.sum(1) == pytest.approx(measured(model, made.clean, made.metric), abs=1e-4)
    assert report.diagnostics["completeness_error"] < 1e-5
    sources = report["sources"].per_example[:, -1]  # example head position
    at = {name: sources[np.arange(40), :, p].mean(0) for name, p in made.places.items()}
    copier = int(at["IO"].argmax())
    assert at["IO"][copier] > 1
    assert at["S1"][copier] < 0, "what it copies from the giver speaks for the giver"
    assert at["IO"][copier] > 5 * max(abs(at[n][copier]) for n in ("S1+1", "S2", "END"))


def test_pairs_use_their_clean_side_and_their_metric() -> None:
    model = made("gpt2")
    pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
    assert act.identical(direct_logit_attribution(model, pairs), direct_logit_attribution(model, ["Anna saw the cat"], pairs.metric))


def test_batches_do_not_matter() -> None:
    one, many = (direct_logit_attribution(made("gpt2"), inputs_of("gpt2"), DIFFERENCE, per_source=True, batch=b) for b in (1, 3))
    for part in one:
        assert np.allclose(one[part].per_example, many[part].per_example, atol=1e-5)


def test_what_is_no_sum_is_refused() -> None:
    gpt2 = made("gpt2")
    with pytest.raises(InputError, match=r"'log_probability' is not linear in the logits .* Use logit_difference or class_logit"):
        direct_logit_attribution(gpt2, ["who ?"], log_probability([1]))
    shifted = Metric(lambda logits: logits[:, 0] + 1.0, name="shifted")
    with pytest.raises(InputError, match="'shifted' is not linear"):
        direct_logit_attribution(gpt2, ["who ?"], shifted)
    with pytest.raises(InputError, match="These inputs have no metric: give metric="):
        direct_logit_attribution(gpt2, ["who ?"])
    with pytest.raises(InputError, match="is post-norm: each norm follows the sum"):
        direct_logit_attribution(made("bert"), ["who ?"], class_logit([1]))
    with pytest.raises(InputError, match="compare vision and text: they are read from no single stream"):
        direct_logit_attribution(made("clip"), {"text": ["who ?"], "images": act.testing.images(1)}, class_logit([0]))


def test_an_answer_that_is_its_own_foil_gives_nothing() -> None:
    model = made("gpt2")
    report = direct_logit_attribution(model, ["who ?", "who saw Tom"], logit_difference([11, 12], [11, 13]), per_source=True)
    assert (report["terms"].per_example[0] == 0).all()
    assert (report["sources"].per_example[0] == 0).all()
    assert (report["terms"].per_example[1] != 0).any()
    with pytest.raises(InputError, match=r"'logit_difference' does not depend on the logits.* Is every answer its own foil\?"):
        direct_logit_attribution(model, ["who ?"], logit_difference([11], [11]))


def test_opt_350m_is_refused_as_post_norm() -> None:
    model, tokenizer = act.testing.tiny("opt", do_layer_norm_before=False)
    with pytest.raises(InputError, match="is post-norm"):
        direct_logit_attribution(act.wrap(model, tokenizer, certify=False), ["who ?"], class_logit([1]))


def test_an_edit_that_writes_to_the_stream_is_noticed() -> None:
    model = made("gpt2")
    with (
        model.edited(Add("blocks.1.resid_post", torch.ones(32))),
        pytest.raises(InputError, match=r"The stream of .* is not the sum of attn, mlp writes \(off by 1 of"),
    ):
        direct_logit_attribution(model, ["who ?"], class_logit([1]))


def test_a_head_that_is_not_linear_is_refused() -> None:
    model, tokenizer = act.testing.tiny("gpt2")

    class Squashed(nn.Linear):
        """Not a linear read-out."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).tanh()

    model.lm_head.__class__ = Squashed
    with pytest.raises(InputError, match="does not follow the final norm linearly"):
        direct_logit_attribution(act.wrap(model, tokenizer, certify=False), ["who ?"], class_logit([1]))


def test_models_without_heads_to_follow_still_have_writes() -> None:
    model = made("bloom")
    with pytest.raises(
        MissingSite,
        match=r"The heads of blocks.0.attn.z cannot be followed: its attention does not pass.* With heads=False each attention is one term",
    ):
        direct_logit_attribution(model, inputs_of("bloom"), DIFFERENCE)
    report = direct_logit_attribution(model, inputs_of("bloom"), DIFFERENCE, heads=False)
    assert report["terms"].per_example.sum(1) == pytest.approx(measured(model, inputs_of("bloom"), DIFFERENCE), abs=1e-5)
