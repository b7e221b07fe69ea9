"""Every family of the list certifies on random weights, and every site of the vocabulary is there or says why not."""

import copy

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.attention import AttentionSpec, scores_and_pattern, visible
from activarium.errors import MissingSite, UnknownSite

CERTIFIED = [
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt_neox", "opt", "phi", "bert", "distilbert", "albert", "t5", "t5_gated",
    "vit", "dinov2", "dinov2_registers", "clip", "siglip", "mixtral",
]  # fmt: skip
ALGEBRA = {"gpt_neox": "parallel", "phi": "parallel", "bert": "post-norm", "distilbert": "post-norm", "albert": "post-norm"}
# What a family cannot have, by the last words of the site; everything else of the vocabulary must be there.
LACKS = {
    "gpt_neox": {"resid_mid"},
    "phi": {"resid_mid"},
    "albert": {"attn.in"},
    "siglip": {"attn.scores", "attn.pattern"},
    "mixtral": {"mlp.pre", "mlp.act", "mlp.up", "mlp.post", "mlp.proj"},
}


# One of each algebra and modality in the fast run; the whole list in the whole suite.
QUICK = ("gpt2", "llama", "gpt_neox", "bert", "vit")


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in CERTIFIED])
def test_family_certifies(family):
    model = act.wrap(*testing.tiny(family), name=family)
    assert model.certificate.verdict.startswith("certified (full")
    assert set(model.certificate.algebra.values()) == {ALGEBRA.get(family, "pre-norm")}
    names = {c.name for c in model.certificate.checks}
    assert {"untouched forward = instrumented forward", "padded batch = one by one", "every site fires once"} <= names
    assert "a write changes what follows, as computed by hand" in names
    allowed = LACKS.get(family, set()) | {"mlp.up"}  # ungated MLPs have no linear branch
    for name, reason in model.sites.missing.items():
        assert any(name.endswith(a) for a in allowed) or name.endswith("logits"), f"{name}: {reason}"
        assert len(reason) > 10


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt_neox"])
def test_float64_certifies_to_twelve_digits(family):
    hf, tokenizer = testing.tiny(family)
    model = act.wrap(copy.deepcopy(hf).double(), tokenizer)
    assert all(c.gap <= 1e-12 for c in model.certificate.checks)


def test_bfloat16_certifies_within_its_own_rounding():
    hf, tokenizer = testing.tiny("llama")
    model = act.wrap(copy.deepcopy(hf).bfloat16(), tokenizer)
    assert model.certificate.verdict.startswith("certified")
    assert (
        model.run("a b c" if tokenizer is None else testing.texts()[0], read="blocks.0.mlp.post")["blocks.0.mlp.post"].dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize("family", ["bloom", "gptj"])
def test_attention_outside_the_interface_is_missing_by_name(family):
    model = act.wrap(*testing.tiny(family))
    with pytest.raises(MissingSite, match="its attention does not pass through the attention interface"):
        model.run(torch.tensor([[5, 6, 7]]), read="blocks.0.attn.q")
    assert model.run(torch.tensor([[5, 6, 7]]), read="blocks.0.mlp.post")["blocks.0.mlp.post"].shape[0] == 3


class Strange(torch.nn.Module):
    """A transformer-like model of no known family."""

    def __init__(self):
        super().__init__()
        import transformers

        self.config = transformers.GPT2Config(vocab_size=50, n_positions=16)
        self.embed = torch.nn.Embedding(50, 8)
        self.inner = torch.nn.Linear(8, 8)

    def forward(self, input_ids, attention_mask=None):
        import transformers

        return transformers.modeling_outputs.CausalLMOutput(logits=self.inner(self.embed(input_ids)))


def test_unresolved_model_reads_module_paths_and_says_what_is_missing():
    torch.manual_seed(0)
    model = act.wrap(Strange())
    rows = model.run([[1, 2, 3], [4]], read="module:inner")["module:inner"]
    assert rows.shape == (4, 8)
    assert torch.allclose(rows.tensor[3], model.torch_module.inner(model.torch_module.embed(torch.tensor(4))))
    with pytest.raises(MissingSite, match="no chain of blocks was recognised in this model; only module:PATH can be read"):
        model.run([[1, 2]], read="embed")
    with pytest.raises(MissingSite, match="no chain of blocks was recognised"):
        model.run([[1, 2]], read="blocks.*.mlp.post")
    assert len(model.sites.missing) > 20 and "module:PATH" in repr(model.sites)
    with pytest.raises(UnknownSite, match="nothing|No site"):
        model.run([[1, 2]], read="blocks.7.mlp.post")


EAGER = ["gpt2", "llama", "mistral", "qwen3", "gemma2", "gpt_neox", "phi", "opt", "bert", "vit", "dinov2_registers"]


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in EAGER])
def test_patterns_equal_those_of_eager_attention(family):
    """The reference is transformers' own eager attention, which returns its weights."""
    hf, tokenizer = testing.tiny(family)
    model = act.wrap(hf, tokenizer, certify=False)
    data = (
        torch.randn(2, *next(iter(model._encoder.spaces.values())).image)
        if "pixel" in hf.main_input_name
        else torch.arange(3, 15).reshape(2, 6) % 30 + 3
    )
    rec = model.run(data, read="blocks.*.attn.pattern")
    twin = copy.deepcopy(hf)
    twin.set_attn_implementation("eager")
    with torch.no_grad():
        weights = twin(data, output_attentions=True).attentions
    for layer, eager in enumerate(weights):
        for example in range(2):
            ours = rec[f"blocks.{layer}.attn.pattern"].example(example).tensor
            assert torch.allclose(ours, eager[example], atol=1e-6), f"block {layer}"


def test_window_and_softcap_are_seen():
    model = act.wrap(*testing.tiny("mistral"), certify=False)
    rec = model.run(torch.arange(3, 13)[None], read="blocks.0.attn.pattern")
    pattern = rec["blocks.0.attn.pattern"].example(0).tensor
    window = rec.attention["blocks.0.attn"].window
    assert window == 4
    assert (pattern[:, 9, :6] == 0).all() and (pattern[:, 9, 6:] > 0).all()
    gemma = act.wrap(*testing.tiny("gemma2"), certify=False)
    spec = gemma.run(torch.arange(3, 13)[None], read="blocks.0.attn.q_rot").attention["blocks.0.attn"]
    assert spec.softcap is not None
    q, k = torch.randn(5, 2, 4) * 100, torch.randn(5, 2, 4) * 100
    assert scores_and_pattern(q, k, spec)[0].nan_to_num(0, 0, 0).abs().max() <= spec.softcap


def test_windows_that_look_both_ways_by_hand():
    spec = AttentionSpec(scaling=1.0, causal=False, window=2)
    assert visible(3, 3, spec).tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    assert visible(2, 2, AttentionSpec(scaling=1.0, causal=False)).all()


def test_t5_pattern_has_its_position_bias():
    model = act.wrap(*testing.tiny("t5"), certify=False)
    rec = model.run(
        {"encoder": torch.tensor([[5, 6, 7, 8]]), "decoder_input_ids": torch.tensor([[0, 9, 10]])},
        read=["encoder.blocks.1.attn.pattern", "decoder.blocks.0.cross.pattern"],
    )
    assert rec.attention["encoder.blocks.1.attn"].bias is not None
    assert rec["decoder.blocks.0.cross.pattern"].example(0).shape[1:] == (3, 4)


def test_shared_layers_are_counted_by_execution():
    """ALBERT runs one layer many times: its sites differ although its module is one."""
    model = act.wrap(*testing.tiny("albert"))
    rec = model.run(torch.tensor([[5, 6, 7, 8]]), read="blocks.*.resid_post")
    states = rec["blocks.*.resid_post"].tensor
    assert not torch.equal(states[0], states[1])
    with torch.no_grad():
        hidden = model.torch_module(torch.tensor([[5, 6, 7, 8]]), output_hidden_states=True).hidden_states
    for layer, state in enumerate(states):
        assert torch.equal(state, hidden[layer + 1][0])
