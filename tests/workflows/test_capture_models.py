"""Captures of real models: what a store and memory hold is what separate runs read, however slowly the disk takes it."""

import time

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.errors import InputError, NotFinite, OtherModel
from activarium.store import StoreWriter

SITES = ["*.resid_post", "*.attn.q", "*.mlp.post", "*.attn.pattern"]


def data_for(model):
    generator = torch.Generator().manual_seed(3)
    spaces = model._encoder.spaces
    lengths = [3, 9, 5, 1, 7, 2, 8, 4, 6, 9, 3]
    texts = [torch.randint(20, 40, (n,), generator=generator).tolist() for n in lengths]
    made = {}
    for name, space in spaces.items():
        if space.modality == "vision":
            made["pixel_values"] = torch.randn(len(lengths), *space.image, generator=generator)
        else:
            made[{"decoder": "decoder"}.get(name, "encoder" if name == "encoder" else "text")] = texts
    return made


def wanted(model):
    return [n for n in model.sites if any(n.endswith(s.removeprefix("*")) for s in SITES)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5", "vit", "clip"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_many_batches_through_a_slow_writer(tmp_path, monkeypatch, family, dtype):
    """The memory of a batch is used again for a later one: a writer that lags behind would show it."""
    add = StoreWriter.add
    monkeypatch.setattr(StoreWriter, "add", lambda self, *a: (time.sleep(0.03), add(self, *a))[1])
    model = act.wrap(*testing.tiny(family), name=family, certify=False)
    data, sites = data_for(model), wanted(model)
    store = act.capture(model, data, sites, to=tmp_path / "s.acts", dtype=dtype, batch_tokens=20, shard_bytes=4000, progress=False)
    kept = act.capture(model, data, sites, dtype=dtype, batch_tokens=20, progress=False)
    assert len(store.manifest.plan.sizes) >= 4
    inputs = model.inputs(data)
    for name in store:
        assert torch.equal(store[name].tensor, kept[name].tensor)
    for e in range(len(inputs)):
        alone = model.run(inputs.select([e]), read=sites)
        for name in (n for n in sites if not n.endswith("pattern")):
            ours = store[name].example(e).tensor.double()
            assert torch.allclose(
                ours, alone[name].tensor.double(), atol=1e-5 if dtype is None else 5e-2, rtol=1e-4 if dtype is None else 2e-2
            )
        for name in (n for n in sites if n.endswith("pattern") and dtype is None):
            assert torch.allclose(store[name].example(e).tensor, alone[name].tensor, atol=1e-5)


def test_what_is_kept_does_not_change_the_forward():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    ids = torch.arange(20, 28)[None]
    kept = {}

    def zeros(name, value):
        kept[name] = value.clone()
        return torch.zeros_like(value)

    plain, other = model.run(ids, read="blocks.*.attn.q"), model.run(ids, read="blocks.*.attn.q", keep=zeros)
    assert torch.equal(plain.logits.tensor, other.logits.tensor)
    assert (other["blocks.0.attn.q"].tensor == 0).all()
    assert torch.equal(kept["blocks.0.attn.q"].flatten(0, 1), plain["blocks.0.attn.q"].tensor)


def test_store_of_another_model_is_refused(tmp_path):
    one = act.wrap(*testing.tiny("llama"), name="one", certify=False)
    data = [[20, 21, 22], [23, 24]]
    act.capture(one, data, ["blocks.0.mlp.post"], to=tmp_path / "s.acts", progress=False)
    hf, tokenizer = testing.tiny("llama")
    with torch.no_grad():
        hf.lm_head.weight.add_(1)
    other = act.wrap(hf, tokenizer, name="other", certify=False)
    with pytest.raises(OtherModel, match="one"):
        act.capture(other, data, ["blocks.0.mlp.post"], to=tmp_path / "s.acts", progress=False)


def test_nan_in_activations_is_named_and_nothing_stored_is_lost(tmp_path):
    hf, tokenizer = testing.tiny("llama")
    model = act.wrap(hf, tokenizer, certify=False)
    with torch.no_grad():
        hf.model.embed_tokens.weight[39] = float("nan")
    data = [[20, 21, 22, 23], [24, 25, 26], [27, 39], [28]]
    with pytest.raises(NotFinite, match=r"blocks\.0\.mlp\.post holds NaN in example 2"):
        act.capture(model, data, ["blocks.0.mlp.post"], to=tmp_path / "s.acts", batch_tokens=4, shard_bytes=1, progress=False)
    store = act.open(tmp_path / "s.acts")
    assert store.rows[""].examples == [0, 1]  # what ran before it
    with torch.no_grad():
        hf.model.embed_tokens.weight[39] = 0
    with pytest.raises(OtherModel):  # these are no longer the weights it was begun with
        act.capture(model, data, ["blocks.0.mlp.post"], to=tmp_path / "s.acts", batch_tokens=4, progress=False)
    act.open(tmp_path / "s.acts").verify()


def test_unknown_site_is_refused_before_anything_is_written(tmp_path):
    model = act.wrap(*testing.tiny("llama"), certify=False)
    with pytest.raises(KeyError, match=r"Did you mean 'blocks.0.mlp.post'"):
        act.capture(model, [[20]], ["blocks.0.mlp.pots"], to=tmp_path / "s.acts", progress=False)
    with pytest.raises(InputError, match="empty"):
        act.capture(model, [], ["blocks.0.mlp.post"], to=tmp_path / "s.acts", progress=False)
    assert not (tmp_path / "s.acts").exists()
