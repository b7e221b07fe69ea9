"""The inputs of a model's linear layers, and the weights that read them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import STACKS
from activarium.errors import AxisError, UnknownSite
from activarium.protocols import Runner
from activarium.recording import Recording, matching

# Where a linear layer reads → the weights that read there, those that a model may lack included.
READERS: Mapping[str, tuple[str, ...]] = {
    "attn.in": ("attn.W_Q", "attn.W_K", "attn.W_V"),
    "attn.z": ("attn.W_O",),
    "mlp.in": ("mlp.W_gate", "mlp.W_in"),
    "mlp.post": ("mlp.W_down",),
}
STREAM = ("attn.in", "mlp.in")  # inputs whose channels are dimensions of the residual stream


def linear_inputs(source: Recording | Activations) -> dict[str, Activations]:
    """Site → activations of every recorded input of a linear layer, ending by ending, blocks in order.

    Raises:
        UnknownSite: None was recorded; the message says what to read.
        AxisError: A site has no single channel axis, as the slots of a mixture of experts.
    """
    found = dict(source.layers()) if isinstance(source, Activations) else _recorded(source)
    for site, activations in found.items():
        if activations.axes not in (("row", "d_model"), ("row", "head", "d_head"), ("row", "d_mlp")):
            have = " ".join(activations.axes)
            raise AxisError(
                f"{site} has axes {have!r}; channels are those of 'row d_model', 'row head d_head' or 'row d_mlp'. Choose another site."
            )
    return found


def _recorded(source: Recording) -> dict[str, Activations]:
    names = [n for ending in READERS for stack in STACKS for n in matching(f"{stack}blocks.*.{ending}", list(source))]
    if not names:
        have = ", ".join(list(source)[:8]) or "no sites"
        wanted = ", ".join(f'"blocks.*.{e}"' for e in READERS)
        raise UnknownSite(f"This recording has no input of a linear layer; it has {have}. Read some: model.run(inputs, read=[{wanted}]).")
    return {n: source[n] for n in names}


def ending_of(site: str) -> str:
    """`attn.in` of `vision.blocks.3.attn.in`."""
    return ".".join(site.split(".")[-2:])


def weight_at(model: Runner, site: str) -> Tensor | None:
    """All weights that read at a site beside one another, `in out` in float64; None if the model names none."""
    known = getattr(model, "weights", {})
    stem = site.removesuffix(ending_of(site))
    found = []
    for name in READERS.get(ending_of(site), ()):
        if stem + name in known:
            found.append(_matrix(model.weight(stem + name), name).detach().cpu().double())
    return torch.cat(found, 1) if found else None


def _matrix(weight: Tensor, name: str) -> Tensor:
    if weight.ndim == 2:
        return weight
    return weight.flatten(0, 1) if name.endswith("W_O") else weight.movedim(0, 1).flatten(1)


def foldable(model: Runner, site: str) -> bool:
    """Can a scale of this input be folded into what writes it? Not where several query heads share a value head."""
    known = getattr(model, "weights", {})
    stem = site.removesuffix(".z")
    if not site.endswith("attn.z") or f"{stem}.W_V" not in known:
        return True
    return model.weight(f"{stem}.W_V").shape[0] == model.weight(f"{stem}.W_O").shape[0]
