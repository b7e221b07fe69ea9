"""sae-lens folders: `cfg.json` and `sae_weights.safetensors`, of both generations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.layouts.files import Found, our_site, tensors, whole, words
from activarium.errors import InputError

WEIGHTS = "sae_weights.safetensors"
ARCHITECTURES = {
    "standard": ("standard", False, False),
    "gated": ("gated", False, False),
    "jumprelu": ("jumprelu", False, False),
    "topk": ("topk", False, False),
    "abstopk": ("abstopk", False, False),
    "transcoder": ("standard", True, False),
    "skip_transcoder": ("standard", True, True),
    "jumprelu_transcoder": ("jumprelu", True, False),
    "jumprelu_skip_transcoder": ("jumprelu", True, True),
    "matching_pursuit": ("pursuit", False, False),
    # Words of ours: sae-lens has no such dictionaries.
    "absjump": ("absjump", False, False),
    "absjump_transcoder": ("absjump", True, False),
    "absjump_skip_transcoder": ("absjump", True, True),
    "gated_transcoder": ("gated", True, False),
    "gated_skip_transcoder": ("gated", True, True),
    "topk_transcoder": ("topk", True, False),
    "topk_skip_transcoder": ("topk", True, True),
    "abstopk_transcoder": ("abstopk", True, False),
    "abstopk_skip_transcoder": ("abstopk", True, True),
}
THEIRS = tuple(ARCHITECTURES)[:10]  # those that sae-lens reads too
OLD_NAMES = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
ABOUT = ("model_name", "hook_name", "hook_name_out", "hook_head_index", "context_size", "prepend_bos", "dataset_path", "model_class_name")


def sae_lens(folder: Path) -> Found | None:
    """A folder that sae-lens wrote, or None."""
    if not (folder / WEIGHTS).exists() or not (folder / "cfg.json").exists():
        return None
    said = modern(words(folder / "cfg.json"))
    found = of_words(said, tensors(folder / WEIGHTS), folder.name)
    return replace(found, scale=_scale(folder, str(said.get("normalize_activations") or "none")))


def of_words(said: Mapping[str, Any], weights: Mapping[str, Tensor], name: str) -> Found:
    """A dictionary from its settings in the words of sae-lens 6 and its tensors.

    Raises:
        InputError: Its architecture is not computed here, or a setting is missing.
    """
    architecture = str(said.get("architecture", "standard"))
    if architecture == "temporal":
        raise InputError(
            f"{name} is a temporal dictionary of sae-lens: its code of a token depends on all tokens before it, and a dictionary here reads "
            "rows one by one. sae-lens itself runs it on whole texts: SAE.load_from_disk."
        )
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{name} is a sae-lens dictionary of the architecture {architecture!r}, whose codes are not computed here. "
            f"Known: {', '.join(ARCHITECTURES)}. sae-lens itself loads it: SAE.load_from_disk({name!r})."
        )
    kind, transcoder, skip = ARCHITECTURES[architecture]
    pursuit = kind == "pursuit"
    scaling = str(said.get("normalize_activations") or "none")
    design = Design(
        d_in=whole(said, "d_in", name),
        features=whole(said, "d_sae", name),
        kind=kind,  # pyright: ignore[reportArgumentType]
        k=whole(said, "k", name) if kind in ("topk", "abstopk") else said.get("max_iterations") if pursuit else None,
        d_out=whole(said, "d_out", name) if transcoder else None,
        transcoder=transcoder,
        skip=skip,
        subtracts_bias=bool(said.get("apply_b_dec_to_input", True)) and not transcoder,
        ranks_by_norm=bool(said.get("rescale_acts_by_decoder_norm", False)),
        residual=float(said.get("residual_threshold", 1e-2)) if pursuit else 0.0,
        repeats=pursuit and not said.get("stop_on_duplicate_support", True),
        scaling="none" if scaling == "expected_average_only_in" else scaling,
    )
    return Found(design, _weights(weights), origin(said.get("metadata") or {}))


def modern(said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in the words of sae-lens 6; before it they were one flat table, with other names."""
    if "metadata" in said:
        return dict(said)
    flat = {OLD_NAMES.get(name, name): value for name, value in said.items()}
    options = flat.get("activation_fn_kwargs") or {}
    if flat.get("activation_fn") == "topk" and options.get("k") is not None:
        flat |= {"architecture": "topk", "k": options["k"]}
    if isinstance(flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = "expected_average_only_in" if flat["normalize_activations"] else "none"
    flat.setdefault("prepend_bos", True)
    return flat | {"metadata": {name: flat[name] for name in ABOUT if name in flat}}


def origin(about: Mapping[str, Any]) -> Origin:
    """What it was trained on. A dictionary of ours says so itself; another's says it in hooks of TransformerLens."""
    if isinstance(about.get("activarium"), Mapping):
        return Origin.of_json(about["activarium"])
    given = about.get("model_from_pretrained_kwargs") or {}
    hook = str(about.get("hook_name") or "")
    by_path = about.get("model_class_name") == "AutoModelForCausalLM"
    return Origin(
        site=f"module:{hook}" if by_path and hook else our_site(hook),
        target="" if by_path else our_site(about.get("hook_name_out")),
        model=str(about.get("model_name") or ""),
        centred=bool(given.get("center_writing_weights", False)),
        folded=bool(given.get("fold_ln", False)) or ".hook_normalized" in hook,
        bos=about.get("prepend_bos"),
        more={str(k): v for k, v in about.items()},
    )


def _weights(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = dict(found)
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    factor = weights.pop("scaling_factor", None)
    if factor is not None and not bool((factor == 1).all()):
        # A later tuning of how much each feature writes: it multiplies codes on their way out.
        weights["W_dec"] = factor[:, None] * weights["W_dec"]
    return weights


def _scale(folder: Path, scaling: str) -> float | None:
    if scaling != "expected_average_only_in":
        return 1.0
    file = folder / "activation_scaler.json"
    if not file.exists():
        return None
    factor = words(file).get("scaling_factor")
    return 1.0 if factor is None else float(torch.tensor(factor, dtype=torch.float64))
