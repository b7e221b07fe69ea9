"""Where shrinking by field names cannot know: values by model type, as data."""

from __future__ import annotations

from typing import Any

EXCEPTIONS: dict[str, dict[str, Any]] = {
    # Sizes that other sizes must divide or add up to.
    "mpnet": {"relative_attention_num_buckets": 32},  # the number is written into its code
    "esm": {"pad_token_id": 0, "mask_token_id": 5},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16},
    "swin": {"patch_size": 4, "window_size": 4},
    "donut-swin": {"patch_size": 4, "window_size": 4},
}
