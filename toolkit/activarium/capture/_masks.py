"""What an attention kernel was told, as a small description from which its pattern can be recomputed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from activarium.attention import AttentionSpec, visible
from activarium.errors import InputError


def describe(
    module: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None, options: dict[str, Any], eager: bool, queries: list[int], keys: list[int]
) -> AttentionSpec:
    """The attention's description, checked against the mask it really got on every example's real rows.

    Args:
        module: The module that called the kernel.
        q: Queries `example head row d_head`, rotated and padded.
        k: Keys, likewise.
        mask: What the kernel got: boolean, additive, or None.
        options: The kernel's other arguments.
        eager: Whether the kernel is eager attention, which takes no mask for full attention.
        queries: Real query rows per example.
        keys: Real key rows per example.

    Raises:
        InputError: The mask is neither full, nor causal, nor a window.
    """
    bias = options.get("position_bias")
    spec = AttentionSpec(
        scaling=float(options["scaling"] if options.get("scaling") is not None else q.shape[-1] ** -0.5),
        causal=is_causal(module, mask, options, eager, queries, keys),
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        bias=None if bias is None or not bool(bias.any()) else bias[0].detach(),
        sinks=options.get("s_aux"),
    )
    if mask is not None and spec.window is not None and not spec.causal and not _agrees(mask, spec, queries, keys):
        spec = replace(spec, window=spec.window + 1)  # two-sided windows are given with and without the query's own place
    if mask is not None and not _agrees(mask, spec, queries, keys):
        raise InputError(
            f"The attention of {type(module).__name__} has a mask that is neither full, causal nor a window; its pattern cannot be recomputed."
        )
    return spec


def is_causal(module: nn.Module, mask: Tensor | None, options: dict[str, Any], eager: bool, queries: list[int], keys: list[int]) -> bool:
    """Does a query see no later key? Read off the mask, or off what the kernel is told where there is none."""
    if mask is None:
        told = options.get("is_causal")
        return not eager and bool(getattr(module, "is_causal", True) if told is None else told)
    longest = max(range(len(queries)), key=queries.__getitem__)
    open_ = _allowed(mask, longest, queries[longest], keys[longest])
    if queries[longest] > 1:
        return not bool(open_[0, 1:].any())  # a first query that sees what follows is not causal
    return bool(getattr(module, "is_causal", False))


def _agrees(mask: Tensor, spec: AttentionSpec, queries: list[int], keys: list[int]) -> bool:
    return all(
        torch.equal(_allowed(mask, e, n, m), visible(n, m, spec, mask.device)) for e, (n, m) in enumerate(zip(queries, keys, strict=True))
    )


def _allowed(mask: Tensor, example: int, queries: int, keys: int) -> Tensor:
    part = mask[min(example, mask.shape[0] - 1), 0]
    part = part.expand(max(part.shape[0], queries), -1)[:queries, :keys]
    return part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
