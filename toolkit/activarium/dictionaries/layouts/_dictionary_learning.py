"""dictionary_learning: `ae.pt` and `config.json` with its trainer's settings."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from activarium.dictionaries.design import Design, Kind, Origin
from activarium.dictionaries.layouts.files import Found, filled, need, tensors, whole, words
from activarium.errors import InputError

CLASSES: dict[str, Kind] = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "JumpReluAutoEncoder": "jumprelu",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
NAMES = {"encoder.bias": "b_enc", "bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag"}


def dictionary_learning(folder: Path) -> Found | None:
    """A folder of dictionary_learning, or None."""
    file, settings = folder / "ae.pt", folder / "config.json"
    if not file.exists() or not settings.exists():
        return None
    trainer = need(words(settings), "trainer", settings)
    called = str(need(trainer, "dict_class", settings))
    if called not in CLASSES:
        raise InputError(f"{settings} says dict_class {called!r}, which is not read here. Known: {', '.join(CLASSES)}.")
    kind, found = CLASSES[called], tensors(file)
    encoder = found["W_enc"].T if "W_enc" in found else need(found, "encoder.weight", file)
    weights: dict[str, Tensor] = {
        NAMES.get(name, name): v for name, v in found.items() if NAMES.get(name, name) in ("b_enc", "b_dec", "b_gate", "b_mag", "r_mag")
    }
    weights |= {"encoder": encoder, "W_dec": found["W_dec"] if "W_dec" in found else need(found, "decoder.weight", file).T}
    if kind == "jumprelu":
        weights["threshold"] = filled(need(found, "threshold", file), len(encoder), encoder.dtype)
    design = Design(
        d_in=encoder.shape[1],
        features=len(encoder),
        kind=kind,
        k=whole(trainer, "k", settings) if kind == "topk" else None,
        subtracts_bias=called != "JumpReluAutoEncoder",
    )
    layer = trainer.get("layer")
    model = str(trainer.get("lm_name", "")).rpartition("/")[2]
    return Found(
        design,
        weights,
        Origin("" if layer is None else f"blocks.{layer}.resid_post", model=model, bos=True, more={"trainer": dict(trainer)}),
    )
