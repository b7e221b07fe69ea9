"""Named weights do what their names say, whatever the module calls them and however it fuses them."""

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.errors import UnknownName

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt", "bert"])
def test_shapes_and_axes(family):
    model = act.wrap(*testing.tiny(family), certify=False)
    sizes = model.anatomy.stacks[""].blocks[0].sizes
    heads, kv, d, width = sizes["attn.heads"], sizes["attn.kv_heads"], sizes["attn.d_head"], sizes["d_model"]
    assert model.weight("blocks.0.attn.W_Q").shape == (heads, width, d)
    assert model.weight("blocks.0.attn.W_K").shape == (kv, width, d)
    assert model.weight("blocks.0.attn.W_O").shape == (heads, d, width)
    assert model.weight("blocks.0.mlp.W_down").shape == (sizes["d_mlp"], width)
    assert model.weight("W_E").shape[1] == width and model.weight("W_U").shape[0] == width
    with pytest.raises(UnknownName, match="No weight called 'blocks.0.attn.W_P'. Did you mean"):
        model.weight("blocks.0.attn.W_P")


def test_head_out_sums_to_proj():
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    rec = model.run(IDS, read=["blocks.1.attn.head_out", "blocks.1.attn.proj"])
    total = rec["blocks.1.attn.head_out"].tensor.sum(1) + model.weight("blocks.1.attn.b_O")
    assert torch.allclose(total, rec["blocks.1.attn.proj"].tensor, atol=1e-6)


def test_gemma_gain_is_one_plus_its_weight():
    model = act.wrap(*testing.tiny("gemma2"), certify=False)
    raw = model.torch_module.model.layers[0].input_layernorm.weight
    assert torch.equal(model.weight("blocks.0.attn.norm.gain"), raw + 1)
    llama = act.wrap(*testing.tiny("llama"), certify=False)
    assert torch.equal(llama.weight("final_norm.gain"), llama.torch_module.model.norm.weight)


def test_fused_parts_are_told_apart():
    model = act.wrap(*testing.tiny("gpt_neox"), certify=False)
    rec = model.run(IDS, read=["blocks.0.attn.in", "blocks.0.attn.k"])
    wanted = torch.einsum("rm,hmd->rhd", rec["blocks.0.attn.in"].tensor, model.weight("blocks.0.attn.W_K")) + model.weight(
        "blocks.0.attn.b_K"
    )
    assert torch.allclose(rec["blocks.0.attn.k"].tensor, wanted, atol=1e-6)
