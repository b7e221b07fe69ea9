"""Dictionaries from files, whatever their layout, and into folders that sae-lens reads too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from activarium._registry import Registry
from activarium.data import dictionaries as bundled
from activarium.dictionaries.design import Design
from activarium.dictionaries.layouts._sae_lens import ARCHITECTURES, WEIGHTS
from activarium.dictionaries.layouts.files import Found
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError
from activarium.lens_names import lens_name

layouts = Registry("activarium.dictionaries.layouts", Path(__file__).parent / "layouts", "layout of dictionaries")


def load(folder: str | Path, *, layout: str | None = None, scale: float | None = None, dtype: torch.dtype | None = None) -> SAE:
    """A bundled dictionary, or one from the folder it was published or saved in.

    Args:
        folder: `"scribe-resid"`, `"scribe-mlp"` or `"glyph-resid"`, which are bundled, or a folder that holds weights and settings
            in one of the known layouts: sae-lens (both generations), Gemma Scope, Gemma Scope 2, Llama Scope,
            dictionary_learning, Sparsify.
        layout: Its name, where several would fit.
        scale: What rows were multiplied by in its training, where the files do not tell; it is folded into the weights.
        dtype: Type of the weights; None keeps that of the file.

    Returns:
        A dictionary that takes rows as the model has them.

    Raises:
        InputError: No such folder, no known layout, another architecture's or damaged weights, or a scale that is not told.
        UnknownName: No layout has that name.
    """
    folder = bundled().get(str(folder)) or Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {str(folder)!r}. Dictionaries are read from local folders: download the release first (huggingface_hub.snapshot_download)."
        )
    found = _found(folder, layout)
    factor = found.scale if scale is None else scale
    if factor is None:
        raise InputError(
            f"{folder.name} was trained on rows multiplied by a factor that its files do not tell (normalize_activations='expected_average_only_in'). "
            "Give it: scale = √d_in / mean length of the rows it was trained on."
        )
    weights = {n: v.to(dtype) if dtype and v.is_floating_point() else v for n, v in found.weights.items()}
    sae = SAE.of_weights(found.design, weights, found.origin)
    return sae if factor == 1.0 else sae.folded(factor)


def _found(folder: Path, layout: str | None) -> Found:
    for entry in [layouts.entry(layout)] if layout else layouts:
        found = entry.load()(folder)
        if found is not None:
            return found
    inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise InputError(f"{folder} holds no dictionary in a layout known here ({layout or ', '.join(layouts.entries)}); it holds {inside}.")


def save(sae: SAE, folder: str | Path) -> Path:
    """Write a dictionary in sae-lens' layout, whole or not at all. What only activarium knows is in the settings' metadata.

    Raises:
        InputError: The folder exists and holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(p.name not in ("cfg.json", WEIGHTS) for p in folder.iterdir()):
        raise InputError(f"{folder} holds other files already. Choose a new folder.")
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: p.detach().cpu() for name, p in sae.named_parameters() if name != "encoder"} | {"W_enc": sae.W_enc.detach().cpu()}
    save_file({name: w.contiguous() for name, w in weights.items()}, temporary / WEIGHTS)
    (temporary / "cfg.json").write_text(json.dumps(_settings(sae), indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    return temporary.rename(folder)


def _settings(sae: SAE) -> dict[str, Any]:
    design, origin = sae.design, sae.origin
    said: dict[str, Any] = {
        "architecture": _architecture(design),
        "d_in": design.d_in,
        "d_sae": design.features,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": design.subtracts_bias,
        "normalize_activations": design.scaling,
        "reshape_activations": "hook_z" if origin.site.endswith("attn.z") else "none",
    }
    said |= {"k": design.k, "rescale_acts_by_decoder_norm": design.ranks_by_norm} if design.k else {}
    said |= {"d_out": design.d_out} if design.transcoder else {}
    processing = {"center_writing_weights": origin.centred, "fold_ln": origin.folded}
    about = {
        "sae_lens_version": "6.0.0",  # the generation of this layout: without it sae-lens takes the settings for an older one
        "model_name": origin.model,
        "hook_name": lens_name(origin.site) or origin.site,
        "hook_name_out": (lens_name(origin.target) or origin.target) or None,
        "prepend_bos": origin.bos,
        "model_from_pretrained_kwargs": {n: True for n, done in processing.items() if done},
        "activarium": origin.to_json(),
    }
    return said | {"metadata": about}


def _architecture(design: Design) -> str:
    wanted = (design.kind, design.transcoder, design.skip)
    return next(name for name, known in ARCHITECTURES.items() if known == wanted)
