"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`, JumpReLU with one threshold."""

from __future__ import annotations

from pathlib import Path

from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.layouts.files import Found, filled, need, our_site, tensors, words


def llama_scope(folder: Path) -> Found | None:
    """A folder of Llama Scope, or None."""
    file = folder / "checkpoints" / "final.safetensors"
    if not file.exists() or not (folder / "hyperparams.json").exists():
        return None
    settings = folder / "hyperparams.json"
    said, found = words(settings), tensors(file)
    encoder = need(found, "encoder.weight", file)
    norms = need(said, "dataset_average_activation_norm", settings)
    scale = encoder.shape[1] ** 0.5 / float(need(norms, "in", settings))
    hook, out = str(said.get("hook_point_in", "")), str(said.get("hook_point_out", ""))
    transcoder = bool(out) and out != hook
    design = Design(
        d_in=encoder.shape[1],
        features=encoder.shape[0],
        kind="jumprelu",
        d_out=need(found, "decoder.weight", file).shape[0],
        transcoder=transcoder,
        subtracts_bias=False,
    )
    weights = {
        "encoder": encoder,
        "W_dec": found["decoder.weight"].T,
        "b_enc": need(found, "encoder.bias", file),
        "b_dec": need(found, "decoder.bias", file),
        # Told for rows as they are; the weights are for rows of length √d.
        "threshold": filled(float(need(said, "jump_relu_threshold", settings)) * scale, design.features, encoder.dtype),
    }
    origin = Origin(our_site(hook), our_site(out) if transcoder else "", model="Llama-3.1-8B", bos=True, more=dict(said))
    return Found(design, weights, origin, scale)
