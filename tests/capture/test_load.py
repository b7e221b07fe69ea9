"""Loading by name or folder; missing weights and unreachable hubs are refused with words."""

import json

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.errors import InputError


@pytest.fixture
def folder(tmp_path):
    hf, tokenizer = testing.tiny("llama")
    hf.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_folder_round_trip(folder):
    model = act.load(folder)
    hf, _ = testing.tiny("llama")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model.run(ids).logits.tensor, act.wrap(hf, certify=False).run(ids).logits.tensor)
    assert model.run(testing.texts()[0]).rows[""]["text"][0]
    assert model.certificate.mode == "full" and act.load(folder, certify="quick").certificate.mode == "quick"


def test_dtype_is_chosen(folder):
    assert act.load(folder, dtype="float64", certify=False).dtype == torch.float64


def test_missing_weights_are_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"lacks weights of LlamaForCausalLM: model\.layers\.0\.mlp\.up_proj\.weight\. They would be random"
    ):
        act.load(folder)


def test_wrong_places(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder \./nowhere"):
        act.load("./nowhere")
    with pytest.raises(InputError, match=r"has no config\.json, so it holds no model"):
        act.load(tmp_path)
    with pytest.raises(InputError, match="is not in the local cache and HF_HUB_OFFLINE is set"):
        act.load("somebody/some-model")
    with pytest.raises(InputError, match="Did you mean the bundled 'scribe'"):
        act.load("scrib")


def test_unknown_class(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NobodyForCausalLM"]}))
    with pytest.raises(InputError, match=r"names the classes \['NobodyForCausalLM'\]"):
        act.load(folder)
