"""Which of our sites a sparse dictionary was trained on, and on which coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from activarium.capture._runner import TorchRunner
from activarium.errors import InputError, OtherModel, UnknownSite, unknown
from activarium.lens_names import NORMED, lens_alias

# Values that are written to the stream, or are it: centring the writing weights moves them.
STREAM = ("token_embed", "embed", "resid_pre", "resid_mid", "resid_post", "attn.out", "attn.proj", "mlp.out", "mlp.proj")


@dataclass(frozen=True)
class DictionarySite:
    """Where a dictionary reads, and what had been done to the model it was trained on.

    Attributes:
        site: Our site it reads, `blocks.8.resid_pre`, or `module:PATH`.
        out: Our site it predicts, for transcoders; None where it predicts what it reads.
        head: The one head it reads, or None.
        width: Features of the site, heads flattened.
        centred: The writing weights were centred, so its stream has mean 0 over features.
        folded: Norm gains and biases were folded into the weights, so what follows a norm is before them.
        bos: Whether its texts began with BOS; None where it does not say.
        scaling: How activations were scaled for it, `none` for not at all.
    """

    site: str
    out: str | None
    head: int | None
    width: int
    centred: bool
    folded: bool
    bos: bool | None
    scaling: str


def site_of(sae: Any, model: TorchRunner | None = None) -> DictionarySite:
    """Which of our sites does a dictionary read, and does it fit this model?

    Args:
        sae: A dictionary of ours (`act.dictionaries`), or a sae-lens `SAE` (anything with its `cfg.metadata`). Where that does
            not say how its model was processed, it was not: that is how sae-lens loads models.
        model: The model it will be used on; the names are resolved in it and its processing is compared.

    Returns:
        The site in our words, and the coordinates the dictionary was trained in.

    Raises:
        UnknownSite: Its hook is none of our sites.
        InputError: It names no hook, or its width is not the site's.
        OtherModel: The model's values lie in other coordinates than those it was trained on, or its weights are others.
    """
    found = _of_origin(sae) if hasattr(sae, "origin") else _of_metadata(sae, model)
    if model is not None:
        _check(found, model)
        _same_weights(sae, model)
    return found


def _of_origin(sae: Any) -> DictionarySite:
    origin, design = sae.origin, sae.design
    if not origin.site:
        raise InputError(
            "This dictionary does not say where it reads: its origin.site is empty. Say it: sae.origin = sae.origin.with_(site='blocks.3.resid_post')."
        )
    return DictionarySite(origin.site, origin.target or None, None, design.d_in, origin.centred, origin.folded, origin.bos, design.scaling)


def _same_weights(sae: Any, model: TorchRunner) -> None:
    trained = getattr(getattr(sae, "origin", None), "weight_hash", "")
    if trained and trained != model.identity["weight_hash"]:
        raise OtherModel(
            f"The dictionary was trained on {sae.origin.model or 'a model'} with weights {trained[:12]}…; {model.name} has {model.identity['weight_hash'][:12]}…. "
            "Load the model it was trained on, or train another one here."
        )


def _of_metadata(sae: Any, model: TorchRunner | None) -> DictionarySite:
    known = sae.cfg.metadata
    hook = known.hook_name
    if not hook:
        raise InputError(
            "This dictionary does not say where it reads: its cfg.metadata.hook_name is empty. Set it, as 'blocks.8.hook_resid_pre'."
        )
    given = known.model_from_pretrained_kwargs or {}
    by_path = known.model_class_name == "AutoModelForCausalLM"
    return DictionarySite(
        site=_site(hook, by_path, model),
        out=_site(known.hook_name_out, by_path, model) if known.hook_name_out else None,
        head=known.hook_head_index,
        width=int(sae.cfg.d_in),
        centred=bool(given.get("center_writing_weights", False)),
        folded=bool(given.get("fold_ln", False)) or hook.partition(".ln")[1] != "",
        bos=known.prepend_bos,
        scaling=str(getattr(sae.cfg, "normalize_activations", "none")),
    )


def _site(hook: str, by_path: bool, model: TorchRunner | None) -> str:
    if by_path:
        return _site_at(hook, model)
    stem = ".".join(hook.split(".")[:2])
    ours = lens_alias(hook) or (f"{stem}.{NORMED[short]}" if (short := hook.removeprefix(f"{stem}.")) in NORMED else None)
    if ours is None:
        raise unknown(
            "site of ours for the TransformerLens hook",
            hook,
            ["blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.0.attn.hook_z", "blocks.0.mlp.hook_post"],
            UnknownSite,
        )
    return ours


def _site_at(path: str, model: TorchRunner | None) -> str:
    """A Hugging Face module's output: one of our sites if it is one."""
    sites = {} if model is None else model.sites
    for name, site in sites.items():
        if site.place is not None and (site.place.path, site.place.side) == (path, "output") and site.place.cut is None:
            return name
    return f"module:{path}"


def _check(found: DictionarySite, model: TorchRunner) -> None:
    processing = getattr(model, "processing", None)
    for name in (found.site, *([found.out] if found.out else [])):
        site = model.site(name)
        short = name.split(".", 2)[-1]
        if short in STREAM and found.centred != getattr(processing, "centred_writing", False):
            raise OtherModel(
                f"The dictionary was trained on {_of(found.centred)} writing weights and {model.name} has {_of(not found.centred)} ones: {name} has "
                f"{'another' if found.centred else 'no'} mean over features. Use a model with the same processing (TransformerLens' center_writing_weights={found.centred})."
            )
        if short in ("attn.in", "mlp.in", "final_norm") and found.folded != getattr(processing, "folded_norms", False):
            raise OtherModel(
                f"The dictionary reads {name} {'before' if found.folded else 'after'} the norm's gain and bias; {model.name} has it "
                f"{'after' if found.folded else 'before'} them. Use a model with the same processing (TransformerLens' fold_ln={found.folded})."
            )
    site = model.site(found.site)
    width = site.shape[-1] if found.head is not None and site.shape else math.prod(site.shape)
    if site.shape and width != found.width:
        raise InputError(f"The dictionary reads {found.width} features; {found.site} of {model.name} has {width}. Is it another model's?")


def _of(centred: bool) -> str:
    return "centred" if centred else "raw"
