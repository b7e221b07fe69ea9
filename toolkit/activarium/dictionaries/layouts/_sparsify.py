"""Sparsify: `cfg.json` and `sae.safetensors`, top-k dictionaries and transcoders with or without a skip."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.layouts.files import Found, need, tensors, whole, words
from activarium.errors import InputError


def sparsify(folder: Path) -> Found | None:
    """A folder of Sparsify, or None. The folder's name says the layer: `layers.5`, `layers.5.mlp`."""
    file, settings = folder / "sae.safetensors", folder / "cfg.json"
    if not file.exists() or not settings.exists():
        return None
    said, found = words(settings), tensors(file)
    if said.get("signed") or said.get("multi_topk"):
        raise InputError(f"{settings} asks for signed or multiple top-k codes, which are not read here.")
    encoder, decoder = need(found, "encoder.weight", file), need(found, "W_dec", file)  # both feature by column
    transcoder = bool(said.get("transcode", False))
    weights: dict[str, Tensor] = {"encoder": encoder, "W_dec": decoder}
    weights["b_enc"] = found.get("encoder.bias", torch.zeros(len(encoder), dtype=encoder.dtype))
    weights["b_dec"] = need(found, "b_dec", file)
    skip = found.get("W_skip")
    if skip is not None:
        weights["W_skip"] = skip
    design = Design(
        d_in=encoder.shape[1],
        features=len(encoder),
        kind="topk",
        k=whole(said, "k", settings),
        d_out=decoder.shape[1],
        transcoder=transcoder,
        skip=skip is not None,
        subtracts_bias=not transcoder,
    )
    above = words(folder.parent / "config.json") if (folder.parent / "config.json").exists() else {}
    site, target = _place(folder.name, transcoder)
    return Found(design, weights, Origin(site, target, model=str(above.get("model", "")), more={"cfg": dict(said)}))


def _place(name: str, transcoder: bool) -> tuple[str, str]:
    layer = re.search(r"(?:layers|h)[._](\d+)", name)
    if name == "embed_tokens":
        return "token_embed", ""
    if layer is None:
        return "", ""
    block = f"blocks.{layer[1]}"
    if transcoder:
        return f"{block}.mlp.in", f"{block}.mlp.proj"
    return (f"{block}.mlp.proj" if name.endswith("mlp") else f"{block}.attn.proj" if "attn" in name else f"{block}.resid_post"), ""
