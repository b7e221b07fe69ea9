"""A certificate is worth what it refuses: faults are planted, and each must be caught by name."""

import dataclasses

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.capture import certify
from activarium.capture._sites import Place, SiteTable
from activarium.errors import CertificateError


def runner(family="llama"):
    return act.wrap(*testing.tiny(family), name=family, certify=False)


def replant(model, name, **changes):
    """The same model with one wrong entry in its site table."""
    sites = [dataclasses.replace(s, **changes) if s.name == name else s for s in model.sites._sites.values()]
    model.sites = SiteTable(sites, model.sites.title)
    return model


def failed(model):
    certificate = certify(model)
    assert certificate.verdict.startswith("refused")
    with pytest.raises(CertificateError):
        certificate.require()
    return {c.name: c for c in certificate.checks if not c.passed}


def test_sound_model_passes():
    assert certify(runner()).verdict.startswith("certified")


@pytest.mark.parametrize(
    ("site", "other", "check"),
    [
        ("blocks.1.attn.in", "blocks.1.mlp.in", "reads norm(stream)"),
        ("blocks.0.mlp.pre", "blocks.0.mlp.up", "pre = in W + b"),
        ("blocks.1.attn.proj", "blocks.1.mlp.proj", "proj = sum of head_out + b_O"),
        ("blocks.0.attn.k", "blocks.0.attn.v", "k = in W_K + b"),
        ("blocks.1.mlp.post", "blocks.0.mlp.post", "post = act * up"),
    ],
)
def test_wrong_site_table(site, other, check):
    """A table that names another module for a site."""
    model = runner()
    wrong = failed(replant(model, site, place=model.sites[other].place))
    assert check in wrong
    assert wrong[check].site == site


def test_resid_post_read_after_the_norm():
    """The classic: the last hidden state that transformers returns is already normed."""
    model = runner()
    final = model.sites["final_norm"].place
    wrong = failed(replant(model, "blocks.1.resid_post", place=final))
    assert any(c.site == "blocks.1.resid_post" and name.startswith("resid_post") for name, c in wrong.items())


@pytest.mark.parametrize("when", ["before wrapping", "after wrapping"])
def test_block_that_adds_a_bias_behind_our_back(when):
    hf, tokenizer = testing.tiny("llama")
    model = act.wrap(hf, tokenizer, certify=False) if when == "after wrapping" else None
    block = hf.model.layers[1]
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs) + 0.01
    model = model or act.wrap(hf, tokenizer, certify=False)
    wrong = failed(model)
    assert any(c.site == "blocks.1.resid_post" for c in wrong.values())
    with pytest.raises(CertificateError, match=r"at blocks\.1\.resid_post"):
        act.wrap(hf, tokenizer)


def test_hook_that_never_fires():
    """A site on a module that the forward does not run."""
    model = runner()
    model.torch_module.spare = torch.nn.Linear(2, 2)
    model._modules["spare"] = model.torch_module.spare
    wrong = failed(replant(model, "blocks.0.mlp.post", place=Place("spare", "output")))
    assert "blocks.0.mlp.post did not fire" in wrong["every site fires once"].note


def test_hook_that_fires_twice():
    hf, tokenizer = testing.tiny("llama")
    model = act.wrap(hf, tokenizer, certify=False)
    mlp = hf.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: (forward(x), forward(x))[1]
    wrong = failed(model)
    assert "blocks.0.mlp" in str([c.site + c.note for c in wrong.values()]) or "untouched" in str(wrong)


def test_padding_that_leaks_into_real_rows():
    """A model that counts positions from the padded end: rows change with the company they keep."""
    hf, tokenizer = testing.tiny("gpt2")
    forward = hf.transformer.forward

    def leaking(input_ids=None, attention_mask=None, **kwargs):
        width = input_ids.shape[1]
        positions = torch.arange(width)[None] + 40 - width
        return forward(input_ids=input_ids, attention_mask=attention_mask, **{**kwargs, "position_ids": positions})

    hf.transformer.forward = leaking
    with pytest.raises(CertificateError, match="padded batch = one by one at blocks"):
        act.wrap(hf, tokenizer)


def test_encoder_that_ignores_its_mask():
    hf, tokenizer = testing.tiny("bert")
    forward = hf.bert.forward
    hf.bert.forward = lambda input_ids=None, attention_mask=None, **kwargs: forward(input_ids=input_ids, **kwargs)
    with pytest.raises(CertificateError, match="padded batch = one by one"):
        act.wrap(hf, tokenizer)


def test_write_that_reaches_nothing():
    """Reads alone would pass: a place whose change the model does not use (read-then-write identity proves nothing)."""
    hf, tokenizer = testing.tiny("llama")
    attention = hf.model.layers[1].self_attn
    model = act.wrap(hf, tokenizer, certify=False)
    attention.o_proj = Deaf(attention.o_proj)
    model._modules |= {p: m for p, m in hf.named_modules() if "o_proj" in p}
    site = model.sites["blocks.1.attn.z"].place
    model = replant(model, "blocks.1.attn.z", place=dataclasses.replace(site, path="model.layers.1.self_attn.o_proj.copy"))
    wrong = failed(model)
    assert "a write changes what follows, as computed by hand" in wrong
    assert wrong["a write changes what follows, as computed by hand"].site == "blocks.1.attn.z"


class Deaf(torch.nn.Linear):
    """A projection that shows its input to a spectator and computes with the original."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        self.copy = torch.nn.Identity()

    def forward(self, x):
        self.copy(x)
        return super().forward(x)


def test_rounding_is_told_from_a_bug():
    """A tolerance that float32 cannot keep: the float64 repetition shows that nothing is wrong."""
    from activarium.capture import _certify

    model = runner("gpt2")
    tight = dict(_certify.TOLERANCE)
    try:
        _certify.TOLERANCE[torch.float32] = 1e-9
        notes = [c.note for c in certify(model, full=False).checks if c.note.startswith("rounding")]
    finally:
        _certify.TOLERANCE.update(tight)
    assert notes


def test_certifying_leaves_the_model_alone():
    hf, tokenizer = testing.tiny("gemma2")
    before = {k: v.clone() for k, v in hf.state_dict().items()}
    implementation = hf.config._attn_implementation
    act.wrap(hf, tokenizer)
    assert all(torch.equal(v, before[k]) for k, v in hf.state_dict().items())
    assert hf.config._attn_implementation == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


def test_certificate_prints_itself():
    model = act.wrap(*testing.tiny("vit"))
    assert "padded batch = one by one" in repr(model.certificate)
    assert "<table>" in model.certificate._repr_html_()
    assert model.certificate.summary()["verdict"].startswith("certified")
    assert act.wrap(*testing.tiny("vit"), certify=False).certificate.verdict == "uncertified"
    assert act.wrap(*testing.tiny("vit"), certify="quick").certificate.mode == "quick"


def test_no_false_alarm_where_a_projection_is_zero():
    hf, tokenizer = testing.tiny("gpt2")
    torch.nn.init.zeros_(hf.transformer.h[0].attn.c_proj.weight)
    assert act.wrap(hf, tokenizer).certificate.verdict.startswith("certified")


def test_no_false_alarm_where_width_equals_the_number_of_patches():
    """A convolution's channels and its cells are told apart by their place, not by their number."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=4, num_labels=3
    )
    assert act.wrap(transformers.ViTForImageClassification(config)).certificate.verdict.startswith("certified")
