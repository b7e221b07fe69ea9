"""Gemma Scope: JumpReLU dictionaries in `params.npz`; Gemma Scope 2 in `params.safetensors` with a `config.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.layouts.files import Found, filled, need, tensors, words
from activarium.errors import InputError

# Words in the folders' names → where such a dictionary reads and writes.
PLACES = {
    "resid_post": ("resid_post", ""),
    "res": ("resid_post", ""),
    "attn_out": ("attn.z", ""),
    "att": ("attn.z", ""),
    "mlp_out": ("mlp.out", ""),
    "mlp": ("mlp.out", ""),
    "transcoder": ("mlp.in", "mlp.out"),
    "transcoders": ("mlp.in", "mlp.out"),
}


def gemma_scope(folder: Path) -> Found | None:
    """A folder of Gemma Scope or Gemma Scope 2, or None."""
    file = next((folder / name for name in ("params.npz", "params.safetensors") if (folder / name).exists()), None)
    if file is None:
        return None
    said = words(folder / "config.json") if (folder / "config.json").exists() else {}
    if said.get("architecture", "jump_relu") != "jump_relu":
        raise InputError(f"{folder / 'config.json'} says architecture {said['architecture']!r}; Gemma Scope's are 'jump_relu'.")
    found = {name.lower(): value for name, value in tensors(file).items()}
    encoder, decoder = need(found, "w_enc", file), need(found, "w_dec", file)
    if decoder.ndim == 3:
        raise InputError(
            f"{file} writes to {decoder.shape[1]} layers at once (a cross-layer transcoder, w_dec {tuple(decoder.shape)}), which one site does not hold."
        )
    skip = found.get("affine_skip_connection")
    site, target = _place(folder)
    transcoder = bool(target) or skip is not None or decoder.shape[1] != encoder.shape[0]
    design = Design(
        d_in=encoder.shape[0],
        features=encoder.shape[1],
        kind="jumprelu",
        d_out=decoder.shape[1],
        transcoder=transcoder,
        skip=skip is not None,
        subtracts_bias=False,
    )
    weights: dict[str, Tensor] = {
        "W_enc": encoder,
        "W_dec": decoder,
        "b_enc": need(found, "b_enc", file),
        "b_dec": need(found, "b_dec", file),
    }
    weights["threshold"] = filled(need(found, "threshold", file), design.features, encoder.dtype)
    if skip is not None:
        weights["W_skip"] = skip.T  # stored d_in by d_out
    return Found(design, weights, Origin(site, target, model=_model(folder, said), bos=True, more=dict(said)))


def _place(folder: Path) -> tuple[str, str]:
    """Site and target, from names such as `layer_12/width_16k/average_l0_80` under `gemma-scope-2b-pt-res`."""
    path = "/".join(folder.resolve().parts[-6:]).lower()
    layer = re.search(r"layer_(\d+)", path)
    place = next(
        (PLACES[word] for word in re.split(r"[/\-]", path) + re.findall(r"resid_post|attn_out|mlp_out|transcoder", path) if word in PLACES),
        None,
    )
    if layer is None or place is None:
        return "", ""
    return tuple(f"blocks.{layer[1]}.{short}" if short else "" for short in place)  # pyright: ignore[reportReturnType]


def _model(folder: Path, said: dict[str, Any]) -> str:
    if "model_name" in said:
        return str(said["model_name"])
    known = re.search(r"gemma-scope-(\d+b)-(pt|it)", "/".join(folder.resolve().parts))
    return f"gemma-2-{known[1]}{'' if known[2] == 'pt' else '-it'}" if known else ""
