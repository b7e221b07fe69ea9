"""A sae-lens dictionary names our site, and is refused where it was trained in other coordinates."""

from functools import cache

import pytest

import activarium as act
from activarium import testing
from activarium.capture import site_of
from activarium.errors import InputError, OtherModel, UnknownSite

from .lens_models import hooked

pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
pytestmark = [
    pytest.mark.slow,  # sae-lens takes seconds to import
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:\\nThis SAE has non-empty model_from_pretrained_kwargs:UserWarning"),
]


def sae(hook, width=32, **known):
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    known = {"hook_name": hook, "model_class_name": "HookedTransformer", "prepend_bos": True} | known
    return StandardSAE(StandardSAEConfig(d_in=width, d_sae=64, metadata=SAEMetadata(**known)))


CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
FOLDED = {"model_from_pretrained_kwargs": {"fold_ln": True}}


@cache
def raw():
    return act.wrap(*testing.tiny("gpt2"), certify=False)


@cache
def processed():
    model, tokenizer = hooked("gpt2")
    model.process_weights_()
    return act.wrap(model, tokenizer, certify=False)


@pytest.mark.parametrize(
    ("hook", "site", "width"),
    [
        ("blocks.1.hook_resid_pre", "blocks.1.resid_pre", 32),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.out", 32),
        ("blocks.0.attn.hook_z", "blocks.0.attn.z", 32),  # heads flattened
        ("blocks.2.mlp.hook_post", "blocks.2.mlp.post", 48),
    ],
)
def test_a_hook_is_one_of_our_sites(hook, site, width):
    found = site_of(sae(hook, width), raw())
    assert (found.site, found.out, found.centred, found.folded, found.bos, found.scaling) == (site, None, False, False, True, "none")
    assert raw().sites.find(found.site)


def test_a_module_of_hugging_face_is_our_site_too():
    made = sae("transformer.h.1", model_class_name="AutoModelForCausalLM")
    assert site_of(made, raw()).site == "blocks.1.resid_post"
    assert site_of(made).site == "module:transformer.h.1"
    assert site_of(sae("transformer.h.1.ln_2", model_class_name="AutoModelForCausalLM"), raw()).site == "module:transformer.h.1.ln_2"


def test_coordinates_must_be_the_same():
    stream = "blocks.1.hook_resid_pre"
    with pytest.raises(OtherModel, match=r"trained on centred writing weights and GPT2LMHeadModel has raw ones: blocks\.1\.resid_pre"):
        site_of(sae(stream, **CENTRED), raw())
    with pytest.raises(OtherModel, match=r"trained on raw writing weights and HookedTransformer has centred ones"):
        site_of(sae(stream), processed())
    assert site_of(sae(stream, **CENTRED), processed()).centred
    # Neurons are the same either way.
    assert site_of(sae("blocks.2.mlp.hook_post", 48, **CENTRED), raw()).site == "blocks.2.mlp.post"


def test_what_is_read_before_a_gain_needs_folded_norms():
    transcoder = sae("blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out", **FOLDED)
    with pytest.raises(OtherModel, match=r"reads blocks\.1\.mlp\.in before the norm's gain and bias; GPT2LMHeadModel has it after them"):
        site_of(transcoder, raw())
    both = {"model_from_pretrained_kwargs": {"fold_ln": True, "center_writing_weights": True}}
    found = site_of(sae("blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out", **both), processed())
    assert (found.site, found.out, found.folded) == ("blocks.1.mlp.in", "blocks.1.mlp.out", True)


def test_what_cannot_be_named_is_an_error():
    with pytest.raises(UnknownSite, match=r"No site of ours for the TransformerLens hook called 'blocks\.1\.hook_resid_pst'"):
        site_of(sae("blocks.1.hook_resid_pst"))
    with pytest.raises(InputError, match=r"does not say where it reads: its cfg\.metadata\.hook_name is empty"):
        site_of(sae(None))
    with pytest.raises(InputError, match=r"reads 24 features; blocks\.1\.resid_pre of GPT2LMHeadModel has 32"):
        site_of(sae("blocks.1.hook_resid_pre", 24), raw())
    with pytest.raises(UnknownSite, match="blocks.7.resid_pre"):
        site_of(sae("blocks.7.hook_resid_pre"), raw())


def test_one_head():
    found = site_of(sae("blocks.0.attn.hook_q", 8, hook_head_index=2), raw())
    assert (found.site, found.head, found.width) == ("blocks.0.attn.q", 2, 8)


def test_a_dictionary_reads_what_our_site_holds():
    """The same rows through sae-lens' own hooks and through ours give the same codes."""
    import torch

    model, tokenizer = hooked("gpt2")
    made, ids = sae("blocks.1.hook_resid_pre"), torch.tensor([[20, 31, 42, 53]])
    with torch.no_grad():
        _, cache = model.run_with_cache(ids)
        wanted = made.encode(cache["blocks.1.hook_resid_pre"])[0]
        wrapped = act.wrap(model, tokenizer, certify=False)
        found = made.encode(wrapped.run(ids, site_of(made, wrapped).site)["blocks.1.resid_pre"].tensor)
    assert torch.equal(wanted, found) and bool(found.any())
