"""Weights by name with named axes, whatever the module calls them and however it fuses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from activarium.capture._cuts import Cut, read_cut
from activarium.errors import MissingSite, unknown

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

NORMS = ("attn.norm", "cross.norm", "mlp.norm", "attn.post", "mlp.post", "attn.end", "mlp.end")


def weight(model: TorchRunner, name: str) -> Tensor:
    """See `TorchRunner.weight`."""
    if name not in model.weights:
        if model.quantised:
            raise MissingSite(
                f"{model.name} has no weight {name!r} to give: {model.quantised} holds rounded codes. Load the model unquantised."
            )
        raise unknown("weight", name, model.weights)
    path, role, cut = model.weights[name]
    module: Any = model.module(path) if path else model.torch_module.get_output_embeddings()
    return _read(module, role, cut)


def names(model: TorchRunner) -> dict[str, tuple[str, str, Cut]]:
    """Every named weight: where it is, what it is, and its cut."""
    table: dict[str, tuple[str, str, Cut]] = {}
    for stack in model.anatomy.stacks.values():
        if stack.name in model.anatomy.embeddings:
            path = model.anatomy.embeddings[stack.name]
            if isinstance(model.module(path), nn.Embedding):
                table[f"{stack.prefix}W_E"] = (path, "embedding", None)
        if stack.final_norm:
            table |= {
                f"{stack.prefix}final_norm.{n}": (stack.final_norm, n, None) for n in ("gain", "bias") if _has(model, stack.final_norm, n)
            }
        for i, block in enumerate(stack.blocks):
            prefix = f"{stack.prefix}blocks.{i}."
            for short, (path, cut) in block.weights.items():
                if not model.module(path).weight.is_floating_point():  # type: ignore[union-attr,operator]
                    continue  # codes of a quantised layer are no weights
                table[prefix + short] = (path, short.rpartition(".")[2], cut)
                if getattr(model.module(path), "bias", None) is not None:
                    table[prefix + short.replace("W_", "b_")] = (path, short.rpartition(".")[2].replace("W_", "b_"), cut)
            for role in NORMS:
                if role in block.modules:
                    path = block.modules[role]
                    table |= {f"{prefix}{role}.{n}": (path, n, None) for n in ("gain", "bias") if _has(model, path, n)}
    head = getattr(model.torch_module, "get_output_embeddings", lambda: None)()
    if head is not None:
        table["W_U"] = ("", "head", None)
        if getattr(head, "bias", None) is not None:
            table["b_U"] = ("", "b_U", None)
    return table


def is_quantised(module: nn.Module) -> bool:
    """Does this layer hold rounded codes in the place of a weight?"""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return not weight.is_floating_point() or type(weight) not in (Tensor, nn.Parameter)
    return callable(weight)  # torch's own quantised layers give theirs on request


def _has(model: TorchRunner, path: str, name: str) -> bool:
    module = model.module(path)
    attribute = "bias" if name == "bias" else "weight"
    return isinstance(getattr(module, attribute, None), Tensor) or (name == "gain" and isinstance(getattr(module, "lambda1", None), Tensor))


def _read(module: nn.Module, role: str, cut: Cut) -> Tensor:
    if role == "embedding":
        return module.weight.detach()  # type: ignore[union-attr,operator]
    if role == "gain":
        return effective_gain(module)
    if role == "bias":
        return module.bias.detach()  # type: ignore[union-attr,operator]
    if role.startswith("b_"):
        return read_cut(module.bias.detach(), cut if role in ("b_Q", "b_K", "b_V", "b_in", "b_gate") else None)  # type: ignore[union-attr,operator]
    matrix = module.weight.detach()  # type: ignore[union-attr,operator]
    # Conv1D keeps `in out`, Linear `out in`; ours is always `in out`.
    matrix = matrix if hasattr(module, "nf") else matrix.T
    if role in ("W_Q", "W_K", "W_V"):
        return read_cut(matrix, cut).movedim(1, 0)
    if role == "W_O":
        return matrix.unflatten(0, (int(cut[3]), -1))  # type: ignore[index]
    return read_cut(matrix, cut) if role in ("W_in", "W_gate") else matrix


def effective_gain(norm: nn.Module) -> Tensor:
    """The factor a norm applies per feature: its weight, or one plus it (Gemma), told apart by running it."""
    gain = norm.lambda1 if hasattr(norm, "lambda1") else norm.weight
    gain = gain.detach()  # type: ignore[union-attr,operator]
    signs = torch.ones_like(gain)
    signs[1::2] = -1  # mean 0 and mean square 1, so LayerNorm and RMSNorm both leave it as it is
    with torch.no_grad():
        seen = (norm(signs[None]) - norm(-signs[None]))[0] / 2 * signs
    return gain + 1 if (seen - gain - 1).abs().sum() < (seen - gain).abs().sum() else gain
