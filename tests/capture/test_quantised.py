"""Quantised models can be read; what needs their weights or gradients is refused with words."""

import pytest
import torch
import transformers

import activarium as act
from activarium import metrics, testing
from activarium.errors import CertificateError, InputError, MissingSite

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what the quantising libraries say at import and while casting


def loaded(tmp_path, config):
    hf, tokenizer = testing.tiny("llama", hidden_size=128, intermediate_size=256)
    hf.save_pretrained(tmp_path)
    return transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu"), tokenizer, hf


def test_eight_bit_weights_are_read_and_certified(tmp_path):
    pytest.importorskip("optimum.quanto", reason="the package optimum-quanto is missing")
    quantised, tokenizer, hf = loaded(tmp_path, transformers.QuantoConfig(weights="int8"))
    model = act.wrap(quantised, tokenizer)
    assert model.certificate.verdict.startswith("certified (full")
    assert model.quantised == "model.layers.0.self_attn.q_proj"
    text = testing.texts()[0]
    ours = model.run(text, read="blocks.1.resid_post")["blocks.1.resid_post"].tensor
    plain = act.wrap(hf, tokenizer, certify=False).run(text, read="blocks.1.resid_post")["blocks.1.resid_post"].tensor
    assert not torch.equal(ours, plain)
    assert torch.nn.functional.cosine_similarity(ours, plain).min() > 0.99
    with pytest.raises(
        InputError, match=r"is quantised \(model.layers.0.self_attn.q_proj holds rounded codes\), so it can be read but gives no gradients"
    ):
        model.run(text, read="blocks.0.mlp.post", metrics=metrics.logit_difference([5], [6]), grad=True)


def test_four_bit_weights_are_read_and_have_no_names(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is missing")
    quantised, tokenizer, _ = loaded(tmp_path, transformers.BitsAndBytesConfig(load_in_4bit=True))
    model = act.wrap(quantised, tokenizer)
    assert model.certificate.verdict.startswith("certified (full")
    assert model.run(testing.texts()[0], read="blocks.0.mlp.post")["blocks.0.mlp.post"].shape[1] == 256
    with pytest.raises(
        MissingSite,
        match="has no weight 'blocks.0.attn.W_Q' to give: model.layers.0.self_attn.q_proj holds rounded codes. Load the model unquantised",
    ):
        model.weight("blocks.0.attn.W_Q")


def test_inputs_that_are_rounded_with_their_batch_are_told(tmp_path):
    """LLM.int8 picks its outlier columns over the whole batch, so rows change with the company they keep."""
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is missing")
    quantised, tokenizer, _ = loaded(tmp_path, transformers.BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(CertificateError, match="padded batch = one by one"):
        act.wrap(quantised, tokenizer)
    model = act.wrap(quantised, tokenizer, certify=False)
    assert model.run(testing.texts()[0], read="blocks.0.mlp.post")["blocks.0.mlp.post"].shape[1] == 256
