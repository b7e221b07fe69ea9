"""TransformerLens twins of the tiny models: the same weights, converted by TransformerLens' own functions."""

import copy
import tempfile

import torch

from activarium import testing

FAMILIES = ("gpt2", "llama", "gpt_neox")
SHAPE = {"d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 48, "n_ctx": 64, "d_vocab": 100, "device": "cpu", "dtype": torch.float32}
ROTARY = {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False}


def hooked(family):
    """A HookedTransformer with the weights of `testing.tiny(family)`."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions as convert

    model, tokenizer = testing.tiny(family)
    differs = {
        "gpt2": {"n_layers": 3, "act_fn": "gelu_new", "normalization_type": "LN"},
        "llama": {
            "n_layers": 2,
            "act_fn": "silu",
            "normalization_type": "RMS",
            "final_rms": True,
            "gated_mlp": True,
            "n_key_value_heads": 2,
        }
        | {"rotary_dim": 8, "eps": 1e-6, **ROTARY},
        "gpt_neox": {"n_layers": 2, "act_fn": "gelu", "normalization_type": "LN", "parallel_attn_mlp": True, "rotary_dim": 2, **ROTARY},
    }[family]
    cfg = HookedTransformerConfig(**SHAPE, **differs)
    weights = {"gpt2": convert.convert_gpt2_weights, "llama": convert.convert_llama_weights, "gpt_neox": convert.convert_neox_weights}
    made = HookedTransformer(cfg)
    lacking = made.load_state_dict(weights[family](model, cfg), strict=False).missing_keys
    assert not [n for n in lacking if "W_" in n], lacking  # buffers only
    return made.eval(), tokenizer


def bridge(family):
    """A TransformerBridge around a copy of `testing.tiny(family)`."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, tokenizer = testing.tiny(family)
    model.config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # A copy, because the bridge rewires the modules it is given.
        made = TransformerBridge.boot_transformers(folder, hf_model=copy.deepcopy(model), device="cpu")
    return made.eval(), tokenizer


KINDS = {"HookedTransformer": hooked, "TransformerBridge": bridge}
