"""A resumed forward is the rest of the whole one, bit for bit, and a read-out is the model's own last step."""

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Where, Zero
from activarium.errors import InputError, MissingSite, UnknownName

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
RAGGED = [[5, 6, 7, 8, 9], [10, 11]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "bert", "albert", "opt"])
@pytest.mark.parametrize("data", [IDS, RAGGED], ids=["even", "ragged"])
def test_resume_equals_the_whole_forward(family, data):
    model = act.wrap(*testing.tiny(family), certify=False)
    whole = model.run(data, read="blocks.*.resid_post")
    rest = model.resume(data, "blocks.1.resid_pre", whole["blocks.0.resid_post"], read="blocks.1.resid_post")
    assert torch.equal(rest.logits.tensor, whole.logits.tensor)
    assert torch.equal(rest["blocks.1.resid_post"].tensor, whole["blocks.1.resid_post"].tensor)
    last = len(model.anatomy.stacks[""].blocks) - 1
    end = model.resume(data, f"blocks.{last}.resid_post", whole[f"blocks.{last}.resid_post"])
    assert torch.equal(end.logits.tensor, whole.logits.tensor)


def test_resume_runs_only_the_rest():
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    whole = model.run(IDS, read="blocks.*.resid_post")
    ran = []
    handles = [b.mlp.register_forward_hook(lambda *a, i=i: ran.append(i)) for i, b in enumerate(model.torch_module.transformer.h)]
    model.resume(IDS, "blocks.2.resid_pre", whole["blocks.1.resid_post"])
    for handle in handles:
        handle.remove()
    assert ran == [2]


def test_resumed_values_matter():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    whole = model.run(IDS, read="blocks.0.resid_post")
    other = model.resume(IDS, "blocks.1.resid_pre", whole["blocks.0.resid_post"].tensor + 1)
    assert not torch.equal(other.logits.tensor, whole.logits.tensor)


def test_encoder_decoder_and_vision():
    t5 = act.wrap(*testing.tiny("t5"), certify=False)
    data = {"encoder": IDS, "decoder_input_ids": IDS[:, :3]}
    whole = t5.run(data, read=["decoder.blocks.*.resid_post", "encoder.blocks.0.resid_post"])
    assert torch.equal(
        t5.resume(data, "decoder.blocks.1.resid_pre", whole["decoder.blocks.0.resid_post"]).logits.tensor, whole.logits.tensor
    )
    assert torch.equal(
        t5.resume(data, "encoder.blocks.1.resid_pre", whole["encoder.blocks.0.resid_post"]).logits.tensor, whole.logits.tensor
    )
    vit = act.wrap(*testing.tiny("vit"), certify=False)
    pixels = torch.randn(2, *vit._encoder.spaces[""].image)
    whole = vit.run(pixels, read="blocks.0.resid_post")
    assert torch.equal(vit.resume(pixels, "blocks.1.resid_pre", whole["blocks.0.resid_post"]).logits.tensor, whole.logits.tensor)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "mistral", "gpt_neox", "phi"])
@pytest.mark.parametrize("start", [1, 3])
def test_position_prefix_is_reused(family, start):
    """Only the later positions run; earlier keys and values come from the recording."""
    model = act.wrap(*testing.tiny(family), certify=False)
    ids = torch.arange(5, 17).reshape(2, 6)
    whole = model.run(ids, read=["blocks.*.attn.k_rot", "blocks.*.attn.v", "blocks.0.resid_post", "blocks.1.resid_post"])
    late = whole["blocks.0.resid_post"].tensor.reshape(2, 6, -1)[:, start:].flatten(0, 1)
    rest = model.resume(ids, "blocks.1.resid_pre", late, read="blocks.1.resid_post", start=start, cached_kv=whole)
    wanted = whole.logits.tensor.reshape(2, 6, -1)[:, start:].flatten(0, 1)
    assert rest.logits.tensor.shape == wanted.shape
    assert torch.allclose(rest.logits.tensor, wanted, atol=1e-5)


def test_keys_of_a_prefix_reach_edits_and_no_half_pattern_is_given():
    """Rotated keys of the later positions are read alone; an edited pattern covers the earlier keys too."""
    model, start = act.wrap(*testing.tiny("llama"), certify=False), 3
    ids = torch.arange(20, 26)[None]
    read = ["blocks.*.attn.k_rot", "blocks.*.attn.v", "blocks.*.resid_post"]
    edit = Zero("blocks.1.attn.pattern", where=Where(keys=1))
    whole, edited = model.run(ids, read=read), model.run(ids, read="blocks.1.resid_post", edits=[edit])
    late = {"at": "blocks.1.resid_pre", "values": whole["blocks.0.resid_post"].tensor[start:], "start": start, "cached_kv": whole}
    rest = model.resume(ids, read="blocks.1.attn.k_rot", **late)
    assert torch.allclose(rest["blocks.1.attn.k_rot"].tensor, whole["blocks.1.attn.k_rot"].tensor[start:], atol=1e-6)
    rest = model.resume(ids, read="blocks.1.resid_post", edits=[edit], **late)
    assert torch.allclose(rest["blocks.1.resid_post"].tensor, edited["blocks.1.resid_post"].tensor[start:], atol=1e-5)
    with pytest.raises(
        InputError, match="blocks.1.attn was given earlier keys from a cache, which were not read, so its pattern is not known"
    ):
        model.resume(ids, read="blocks.1.attn.pattern", **late)["blocks.1.attn.pattern"]


def test_prefix_reuse_is_refused_where_it_would_be_wrong():
    bert = act.wrap(*testing.tiny("bert"), certify=False)
    whole = bert.run(IDS, read=["blocks.*.attn.k_rot", "blocks.*.attn.v", "blocks.0.resid_post"])
    with pytest.raises(InputError, match="looks both ways"):
        bert.resume(IDS, "blocks.1.resid_pre", whole["blocks.0.resid_post"].tensor[:4], start=3, cached_kv=whole)
    llama = act.wrap(*testing.tiny("llama"), certify=False)
    with pytest.raises(InputError, match="needs cached_kv"):
        llama.resume(IDS, "blocks.1.resid_pre", torch.zeros(4, 32), start=3)
    with pytest.raises(InputError, match=r"wants values for 10 rows"):
        llama.resume(IDS, "blocks.1.resid_pre", torch.zeros(3, 32))
    with pytest.raises(UnknownName, match="No block boundary to resume at called 'blocks.1.mlp.in'"):
        llama.resume(IDS, "blocks.1.mlp.in", torch.zeros(10, 32))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert", "t5", "opt"])
def test_readout_of_the_last_stream_is_the_logits(family):
    model = act.wrap(*testing.tiny(family), certify=False)
    prefix = "decoder." if family == "t5" else ""
    last = f"{prefix}blocks.{len(model.anatomy.stacks[prefix.rstrip('.')].blocks) - 1}.resid_post"
    rec = model.run({"encoder": IDS, "decoder_input_ids": IDS} if family == "t5" else IDS, read=last)
    assert torch.allclose(model.readout(rec[last]), rec.logits.tensor, atol=1e-6)


def test_readout_of_a_class_head():
    vit = act.wrap(*testing.tiny("vit"), certify=False)
    rec = vit.run(torch.randn(3, *vit._encoder.spaces[""].image), read="blocks.1.resid_post")
    rows = rec["blocks.1.resid_post"]
    cls = [rows.index.span(e).start for e in rows.index.examples]
    assert torch.allclose(vit.readout(rows)[cls], rec.logits.tensor, atol=1e-6)
    dino = act.wrap(*testing.tiny("dinov2"), certify=False)
    with pytest.raises(InputError, match="pools several rows, so one row alone has no answer"):
        dino.readout(torch.zeros(2, 32))
    with pytest.raises(MissingSite, match="no head that reads one row"):
        act.wrap(*testing.tiny("clip"), certify=False).readout(torch.zeros(2, 32))
    with pytest.raises(InputError, match="takes rows 'row d_model' with 32 features; found shape"):
        vit.readout(torch.zeros(2, 3))
