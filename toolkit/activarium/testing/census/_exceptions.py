"""Where shrinking by field names cannot know: values by model type, as data. Sub-configurations are nested."""

from __future__ import annotations

from typing import Any

EXCEPTIONS: dict[str, dict[str, Any]] = {
    # Numbers that are written into the code, or that other sizes must divide or add up to.
    "mpnet": {"relative_attention_num_buckets": 32},
    "esm": {"pad_token_id": 0, "mask_token_id": 5},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "squeezebert": {"embedding_size": 32},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "is_decoder": True, "max_position_embeddings": 64},
    "led": {"attention_window": 8},
    "longformer": {"attention_window": [8, 8]},
    "xmod": {"default_language": "en_XX"},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_hidden_layers": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "t5gemma": {"decoder": {"is_decoder": True}},
    "zamba2": {"use_long_context": False, "hybrid_layer_ids": [1], "num_hidden_layers": 2, "mamba_headdim": 8, "n_mamba_heads": 8},
    "perceiver": {"num_cross_attention_heads": 1, "num_self_attention_heads": 4},
    "swin": {"patch_size": 4, "window_size": 4},
    "donut-swin": {"patch_size": 4, "window_size": 4},
    "bit": {"num_groups": 4},
    # Factors whose usual value of one would hide that they are there.
    "granite": {"residual_multiplier": 0.25},
    "granitemoe": {"residual_multiplier": 0.25},
    "granitemoeshared": {"residual_multiplier": 0.25},
    "minicpm3": {"scale_depth": 1.5},
}
