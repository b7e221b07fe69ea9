"""Blocks that are no plain sums of attention and MLP: what is found is what is computed, what is not is refused by name."""

import pytest
import torch

import activarium as act
from activarium.errors import CertificateError, InputError, MissingSite
from activarium.testing import census

TOKENS = torch.arange(7, 17).reshape(2, 5)
CLASSES = {c.name: c for c in census.every_class()}
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers about its own configurations


def tiny(name):
    model = census.tiny_model(name, CLASSES[name].model_type)
    census.fresh(model, name)
    return act.wrap(model, name=name)


def module_output(model, path, *run):
    """What a module gives in a plain forward, copied at once."""
    seen = []
    handle = model.torch_module.get_submodule(path).register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    with torch.no_grad():
        model.torch_module(*run, use_cache=False)
    handle.remove()
    return seen[0].flatten(0, 1)


def test_writes_under_a_factor():
    model = tiny("GraniteForCausalLM")
    rec = model.run(TOKENS, read=["blocks.0.attn.proj", "blocks.0.attn.out", "blocks.0.resid_pre", "blocks.0.resid_mid"])
    assert model.torch_module.config.residual_multiplier == 0.25
    assert torch.equal(rec["blocks.0.attn.out"].tensor, rec["blocks.0.attn.proj"].tensor * 0.25)
    assert torch.allclose(rec["blocks.0.resid_mid"].tensor, rec["blocks.0.resid_pre"].tensor + rec["blocks.0.attn.out"].tensor, atol=1e-6)


@pytest.mark.slow
def test_shared_experts_are_not_taken_for_the_neurons():
    model = tiny("Qwen2MoeForCausalLM")
    with pytest.raises(MissingSite, match="experts, or a gate, make what it adds; no one projection of neurons does"):
        model.run(TOKENS, read="blocks.0.mlp.post")
    out = model.run(TOKENS, read="blocks.0.mlp.out")["blocks.0.mlp.out"].tensor
    assert torch.equal(out, module_output(model, "model.layers.0.mlp", TOKENS).reshape(out.shape))


def test_state_space_blocks_have_a_stream_and_a_write_and_refuse_the_rest_by_name():
    model = tiny("MambaForCausalLM")
    rec = model.run(TOKENS, read=["blocks.1.resid_pre", "blocks.1.attn.out", "blocks.1.resid_post", "module:backbone.layers.1.mixer"])
    assert torch.equal(rec["blocks.1.resid_post"].tensor, rec["blocks.1.resid_pre"].tensor + rec["blocks.1.attn.out"].tensor)
    assert torch.equal(rec["module:backbone.layers.1.mixer"].tensor, rec["blocks.1.attn.out"].tensor)
    with pytest.raises(MissingSite, match="its attention does not pass through the attention interface"):
        model.run(TOKENS, read="blocks.0.attn.q")
    with pytest.raises(MissingSite, match="this block has one sub-layer"):
        model.run(TOKENS, read="blocks.0.mlp.post")


@pytest.mark.slow
def test_values_that_the_model_changes_in_place_are_read_before():
    model = tiny("FalconForCausalLM")
    rec = model.run(TOKENS, read=["blocks.0.mlp.proj", "blocks.0.mlp.post"])
    wanted = rec["blocks.0.mlp.post"].tensor @ model.weight("blocks.0.mlp.W_down")
    assert torch.allclose(rec["blocks.0.mlp.proj"].tensor, wanted, atol=1e-5)


@pytest.mark.slow
def test_latent_attention_gives_its_values_from_the_kernel():
    model = tiny("DeepseekV3ForCausalLM")
    rec = model.run(TOKENS, read=["blocks.0.attn.v", "blocks.0.attn.pattern", "blocks.0.attn.z"])
    share, v = rec["blocks.0.attn.pattern"].example(0).tensor, rec["blocks.0.attn.v"].tensor[:5]
    assert torch.allclose(torch.einsum("hqk,khd->qhd", share, v), rec["blocks.0.attn.z"].tensor[:5], atol=1e-5)
    assert "blocks.0.attn.W_V" not in model.weights
    with pytest.raises(MissingSite, match="no single projection gives it"):
        model.run(TOKENS, read="blocks.0.attn.k")


@pytest.mark.slow
def test_gated_mixes_are_read_before_the_gate_and_have_no_head_out():
    model = tiny("AfmoeForCausalLM")
    rec = model.run(TOKENS, read=["blocks.0.attn.v", "blocks.0.attn.pattern", "blocks.0.attn.z"])
    v = rec["blocks.0.attn.v"].tensor[:5]
    share = rec["blocks.0.attn.pattern"].example(0).tensor
    v = v.repeat_interleave(share.shape[0] // v.shape[1], 1)
    assert torch.allclose(torch.einsum("hqk,khd->qhd", share, v), rec["blocks.0.attn.z"].tensor[:5], atol=1e-5)
    with pytest.raises(MissingSite, match="a gate or a norm stands between its mixed heads and the output projection"):
        model.run(TOKENS, read="blocks.0.attn.head_out")


@pytest.mark.slow
def test_zeroing_a_kernel_value_reaches_what_follows():
    model = tiny("AfmoeForCausalLM")
    edited = model.run(TOKENS, read="blocks.0.attn.proj", edits=[act.edits.Zero("blocks.0.attn.z")])
    assert edited["blocks.0.attn.proj"].tensor.abs().max() == 0


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", pytest.param("BartForConditionalGeneration", marks=pytest.mark.slow)])
def test_cross_attention_equals_that_of_eager_attention(name):
    model = tiny(name)
    start = model._encoder.spaces["decoder"].start
    given = {"encoder": torch.tensor([[5, 6, 7, 8]]), "decoder_input_ids": torch.tensor([[start, 9, 10]])}
    sites = [f"decoder.blocks.{i}.cross.{n}" for i in range(2) for n in ("pattern", "k", "out", "q")] + ["decoder.blocks.0.resid_cross"]
    rec = model.run(given, read=sites)
    model.torch_module.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = model.torch_module(input_ids=given["encoder"], decoder_input_ids=given["decoder_input_ids"], output_attentions=True)
    for i, eager in enumerate(theirs.cross_attentions):
        ours = rec[f"decoder.blocks.{i}.cross.pattern"].example(0).tensor
        assert ours.shape == (4, 3, 4)
        assert torch.allclose(ours, eager[0], atol=1e-6)
    assert rec["decoder.blocks.0.cross.k"].space == "encoder"
    assert len(rec["decoder.blocks.0.cross.k"].tensor) == 4
    assert len(rec["decoder.blocks.0.cross.q"].tensor) == 3


def test_extra_rows_are_refused_with_their_number():
    model = tiny("FSMTForConditionalGeneration")
    assert model.certificate.verdict == "uncertified"
    with pytest.raises(MissingSite, match=r"its blocks work on \(5, 2\) rows for 2 examples of 5 tokens; only module:PATH can be read"):
        model.run({"encoder": [[5, 6]]}, read="encoder.blocks.0.resid_post")


def test_a_model_that_needs_more_than_its_inputs_is_refused_in_words():
    with pytest.raises(InputError, match="VivitModel does not run on pixel_values alone: ValueError: not enough values to unpack"):
        tiny("VivitModel")
    with pytest.raises(InputError, match="The configuration of PoolFormerModel states no image_size, so no grid of patches is known"):
        tiny("PoolFormerModel")


def test_position_tables_that_take_ids_are_not_the_embedding():
    model = tiny("OPTForCausalLM")
    rows = model.run(TOKENS, read="token_embed")["token_embed"].tensor
    assert torch.equal(rows, model.torch_module.get_input_embeddings()(TOKENS).flatten(0, 1))


@pytest.mark.slow
def test_an_encoder_without_a_last_norm_has_none_made_up():
    model = tiny("BartForConditionalGeneration")
    assert model.sites["encoder.final_norm"].same_as == "encoder.blocks.1.resid_post"
    assert model.certificate.algebra == {"encoder": "post-norm", "decoder": "post-norm"}


@pytest.mark.slow
def test_a_norm_that_also_runs_before_the_blocks_is_read_after_them():
    model = tiny("NanoChatForCausalLM")
    rec = model.run(TOKENS, read="final_norm")
    with torch.no_grad():
        plain = model.torch_module.model(TOKENS, use_cache=False).last_hidden_state
    assert torch.equal(rec["final_norm"].tensor, plain.flatten(0, 1))


@pytest.mark.slow
def test_shapes_that_are_no_rows_fail_the_certificate_not_the_program():
    with pytest.raises(CertificateError, match="the forward"):
        tiny("HieraModel")
