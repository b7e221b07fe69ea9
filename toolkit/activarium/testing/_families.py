"""How each family's tiny model differs: names of classes and configuration values, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WIDTH, HEADS, LAYERS = 32, 4, 2
IMAGE, PATCH = 32, 8

# The spellings of width, heads, depth that most configurations share.
USUAL = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    # Families default to 0.1 here and there; a model in evaluation mode ignores it, one that trains would not repeat.
    "attention_dropout": 0.0,
}
GROUPED = USUAL | {"num_key_value_heads": 2}
PICTURE = {k: v for k, v in USUAL.items() if k != "max_position_embeddings"} | {"image_size": IMAGE, "patch_size": PATCH}
CLASSES = {"num_labels": 5}


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model: Class in transformers.
        config: Its configuration class.
        values: What the configuration is made with.
        around: Special tokens around a text, `"<bos> $A"`.
        images: Image processor class, for models that see.
        towers: For models of two towers: values of the text and the vision configuration.
    """

    model: str
    config: str
    values: dict[str, Any] = field(default_factory=dict)
    around: str = "$A"
    images: str = ""
    towers: dict[str, dict[str, Any]] = field(default_factory=dict)


def _t5(feed_forward: str) -> Family:
    shape = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_decoder_layers": 3, "num_heads": HEADS}
    distances = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0}
    return Family("T5ForConditionalGeneration", "T5Config", shape | distances | {"feed_forward_proj": feed_forward}, "$A <eos>")


def _dino(name: str, **more: Any) -> Family:
    values = {k: v for k, v in PICTURE.items() if k != "intermediate_size"} | {"mlp_ratio": 2, **CLASSES, **more}
    return Family(f"{name}ForImageClassification", f"{name}Config", values, images="BitImageProcessorPil")


def _towers(name: str, images: str, around: str, **more: Any) -> Family:
    towers = {"text_config": USUAL | more, "vision_config": PICTURE | more}
    return Family(f"{name}Model", f"{name}Config", {}, around, images, towers)


FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", {"n_embd": WIDTH, "n_head": HEADS, "n_layer": 3, "n_positions": 64, "n_inner": 48}),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", GROUPED, "<bos> $A"),
    # Windows of four and soft-caps of the size of the scores: a wrong mask or a forgotten cap shows on six tokens.
    "mistral": Family("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 4}, "<bos> $A"),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    # Heads that are wider than d_model / heads, as in the real one.
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", GROUPED | {"head_dim": 16}),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        GROUPED
        | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 4}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "<bos> $A",
    ),
    "gpt_neox": Family("GPTNeoXForCausalLM", "GPTNeoXConfig", USUAL | {"hidden_act": "gelu"}),
    "opt": Family("OPTForCausalLM", "OPTConfig", USUAL | {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "dropout": 0.0}, "<eos> $A"),
    "phi": Family("PhiForCausalLM", "PhiConfig", USUAL),
    "mixtral": Family("MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, "<bos> $A"),
    "bloom": Family("BloomForCausalLM", "BloomConfig", {"hidden_size": WIDTH, "n_head": HEADS, "n_layer": LAYERS}),
    "gptj": Family(
        "GPTJForCausalLM",
        "GPTJConfig",
        {"n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS, "n_positions": 64, "rotary_dim": 4, "n_inner": 48},
    ),
    "bert": Family("BertForMaskedLM", "BertConfig", USUAL, "<cls> $A <sep>"),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": 48, "max_position_embeddings": 64},
        "<cls> $A <sep>",
    ),
    # One shared layer that runs three times.
    "albert": Family("AlbertForMaskedLM", "AlbertConfig", USUAL | {"embedding_size": 16, "num_hidden_layers": 3}, "<cls> $A <sep>"),
    "t5": _t5("relu"),
    "t5_gated": _t5("gated-gelu"),
    "vit": Family("ViTForImageClassification", "ViTConfig", PICTURE | CLASSES, images="ViTImageProcessorPil"),
    "dinov2": _dino("Dinov2"),
    "dinov2_registers": _dino("Dinov2WithRegisters", num_register_tokens=3),
    "clip": _towers("CLIP", "CLIPImageProcessorPil", "<bos> $A <eos>", projection_dim=24),
    "siglip": _towers("Siglip", "SiglipImageProcessorPil", "$A <eos>"),
}
