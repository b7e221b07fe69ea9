"""The untrained twin: the same architecture and sites, other weights, the model itself untouched."""

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.errors import InputError

TEXTS = testing.texts()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5", "vit"])
def test_the_twin_has_the_same_sites_and_other_weights(family):
    model = act.wrap(*testing.tiny(family), name=family, certify=False)
    data = testing.images() if family == "vit" else {"encoder": TEXTS, "decoder": TEXTS} if family == "t5" else TEXTS
    read = "decoder.blocks.*.resid_post" if family == "t5" else "blocks.*.resid_post"
    before, drawn = model.run(data, read=read), torch.get_rng_state()
    twin = model.untrained()
    assert torch.equal(torch.get_rng_state(), drawn)
    ours, theirs = model.run(data, read=read), twin.run(data, read=read)
    for name in ours:
        assert torch.equal(ours[name].tensor, before[name].tensor)
        assert theirs[name].shape == ours[name].shape
        assert not torch.allclose(theirs[name].tensor, ours[name].tensor)
    assert list(twin.sites) == list(model.sites)
    assert twin.name == f"{family}, untrained" and twin.certificate.verdict == "uncertified"
    assert twin.identity["kernel"] == model.identity["kernel"] and twin.dtype == model.dtype


def test_a_seed_draws_the_weights():
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    one, same, other = (model.untrained(s).run(TEXTS).logits.tensor for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_bundled_model_forgets_what_it_knew():
    scribe = act.load("scribe")
    text = ["the keys to the house are near the river ."]
    logits = scribe.untrained().run(text).logits.tensor.softmax(-1)
    assert scribe.run(text).logits.tensor.softmax(-1).amax(-1).mean() > 5 * logits.amax(-1).mean()


def test_a_model_that_was_changed_has_no_twin():
    network, tokenizer = testing.tiny("gpt2")
    network.transformer.h = network.transformer.h[:2]
    with pytest.raises(InputError, match=r"transformer.h.2.* of shape .*; the model has None.*changed after loading"):
        act.wrap(network, tokenizer, certify=False).untrained()


def test_other_libraries_models_are_refused():
    model = act.wrap(*testing.tiny("gpt2"), name="mine", certify=False)
    model.torch_module = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="mine is a Linear; only transformers' models can be made anew"):
        model.untrained()
