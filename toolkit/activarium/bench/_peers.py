"""The same reads by other libraries, on the same weights, where they are installed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from activarium.capture import lens_alias

Reader = Callable[[Any, str], Mapping[str, Any]]
"""Token ids and what to read (`resid_post` or `sites`) → the tensors, by the peer's own names."""

MISSING = "not installed: pip install '{}'"
# The counterparts of our row-wise sites; resid_pre is resid_post of the layer below and out is proj in a GPT-2.
LEAVES = "resid_mid resid_post normalized q k v z attn_out mlp_out pre post embed pos_embed".split()


def readers(hf_model: Any, config: Mapping[str, Any], names: tuple[str, ...] = ()) -> dict[str, Reader | str]:
    """Each peer's way to read, or why there is none.

    Args:
        hf_model: A GPT-2; every peer gets a copy, because some rewire what they are given.
        config: What it was made with.
        names: Only these peers; all by default.
    """
    found: dict[str, Reader | str] = {}
    for name, (make, package) in MAKERS.items():
        if not names or name in names:
            try:
                found[name] = make(hf_model, config)
            except ImportError:
                found[name] = MISSING.format(package)
    return found


def gap(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Largest difference, relative to the largest value, between what a peer read and our site of that name."""
    worst = 0.0
    for name, value in theirs.items():
        site = lens_alias(name) or name
        if site in ours:
            a, b = (value[0] if isinstance(value, tuple) else value).flatten().double(), ours[site].tensor.flatten().double()
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst


def _bridge(hf_model: Any, config: Mapping[str, Any]) -> Reader:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging

    logging.disable_progress_bar()
    copied = deepcopy(hf_model)
    copied.config.architectures = [type(hf_model).__name__]
    with tempfile.TemporaryDirectory() as place:
        copied.save_pretrained(place)
        return _lens(TransformerBridge.boot_transformers(str(Path(place)), hf_model=copied, device="cpu"))


def hooked_transformer(hf_model: Any, config: Mapping[str, Any]) -> Any:
    """A HookedTransformer with a GPT-2's weights, converted by TransformerLens' own function."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

    shape: dict[str, Any] = {
        "n_layers": config["n_layer"],
        "d_model": config["n_embd"],
        "n_ctx": config["n_positions"],
        "n_heads": config["n_head"],
        "d_head": config["n_embd"] // config["n_head"],
        "d_mlp": 4 * config["n_embd"],
        "d_vocab": config["vocab_size"],
    }
    made = HookedTransformer(HookedTransformerConfig(**shape, act_fn="gelu_new", normalization_type="LN", device="cpu"))
    made.load_state_dict(convert_gpt2_weights(hf_model, made.cfg), strict=False)
    return made.eval()


def _lens(model: Any) -> Reader:
    known = {f"hook_{leaf}" for leaf in LEAVES}
    wanted = {"resid_post": lambda n: n.endswith("hook_resid_post"), "sites": lambda n: n.rpartition(".")[2] in known}

    def read(ids: Any, what: str) -> Mapping[str, Any]:
        import torch

        with torch.no_grad():
            return model.run_with_cache(ids, names_filter=wanted[what])[1].cache_dict

    return read


def _nnsight(hf_model: Any, config: Mapping[str, Any]) -> Reader:
    import nnsight
    import torch

    model = nnsight.NNsight(deepcopy(hf_model))

    def resid_post(ids: Any) -> Mapping[str, Any]:
        with torch.no_grad(), model.trace(ids, use_cache=False):
            # The name is needed: nnsight runs this block elsewhere and puts what was saved back under it.
            saved = nnsight.save({f"blocks.{i}.resid_post": block.output for i, block in enumerate(model.transformer.h)})
        return saved  # noqa: RET504

    def sites(ids: Any) -> Mapping[str, Any]:
        with torch.no_grad(), model.trace(ids, use_cache=False):
            saved = nnsight.save({})
            for i, block in enumerate(model.transformer.h):  # in the order of the computation, as nnsight asks for
                saved[f"blocks.{i}.attn.in"] = block.ln_1.output
                saved[f"{i} q k v"] = block.attn.c_attn.output
                saved[f"{i} z"] = block.attn.c_proj.input
                saved[f"blocks.{i}.attn.proj"] = block.attn.c_proj.output
                saved[f"blocks.{i}.resid_mid"] = block.ln_2.input
                saved[f"blocks.{i}.mlp.in"] = block.ln_2.output
                saved[f"blocks.{i}.mlp.pre"] = block.mlp.c_fc.output
                saved[f"blocks.{i}.mlp.post"] = block.mlp.c_proj.input
                saved[f"blocks.{i}.mlp.proj"] = block.mlp.c_proj.output
                saved[f"blocks.{i}.resid_post"] = block.output
            saved["final_norm"] = model.transformer.ln_f.output
        return saved

    return lambda ids, what: (resid_post if what == "resid_post" else sites)(ids)


MAKERS: dict[str, tuple[Callable[[Any, Mapping[str, Any]], Reader], str]] = {
    "TransformerBridge": (_bridge, "transformer-lens"),
    "HookedTransformer": (lambda model, config: _lens(hooked_transformer(model, config)), "transformer-lens"),
    "nnsight": (_nnsight, "nnsight"),
}
