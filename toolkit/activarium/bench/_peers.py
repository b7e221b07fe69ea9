"""TransformerLens on the same shape and the same places, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PEERS = "TransformerBridge", "HookedTransformer"

# The counterparts of our row-wise sites; resid_pre is resid_post of the layer below and out is proj in a GPT-2.
LEAVES = "resid_mid resid_post normalized q k v z attn_out mlp_out pre post embed pos_embed".split()


def peer(kind: str, hf_model: Any, config: dict[str, Any], parts: Sequence[Any], place: Path) -> Callable[[], None] | None:
    """A call that caches and saves every batch as bfloat16; None where TransformerLens is not installed."""
    try:
        lens = _bridge(hf_model, place) if kind == "TransformerBridge" else _hooked(config)
    except ImportError:
        return None
    import torch
    from safetensors.torch import save_file

    known = {f"hook_{leaf}" for leaf in LEAVES}
    target = place / kind
    target.mkdir(exist_ok=True)

    def call() -> None:
        with torch.no_grad():
            for i, part in enumerate(parts):
                _, cache = lens.run_with_cache(part, names_filter=lambda name: name.rpartition(".")[2] in known)
                save_file({k: cache[k].to(torch.bfloat16).contiguous() for k in cache}, target / f"{i}.safetensors")

    return call


def _bridge(hf_model: Any, place: Path) -> Any:
    from copy import deepcopy

    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging

    logging.disable_progress_bar()
    hf_model.config.architectures = ["GPT2LMHeadModel"]
    hf_model.save_pretrained(place / "hf")
    # A copy, because the bridge rewires the modules it is given.
    return TransformerBridge.boot_transformers(str(place / "hf"), hf_model=deepcopy(hf_model), device="cpu")


def _hooked(config: dict[str, Any]) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape: dict[str, Any] = {
        "n_layers": config["n_layer"],
        "d_model": config["n_embd"],
        "n_ctx": config["n_positions"],
        "n_heads": config["n_head"],
    }
    sizes: dict[str, Any] = {"d_head": config["n_embd"] // config["n_head"], "d_mlp": 4 * config["n_embd"], "d_vocab": config["vocab_size"]}
    made = HookedTransformerConfig(**shape, **sizes, act_fn="gelu_new", normalization_type="LN", device="cpu", seed=0)
    return HookedTransformer(made)
