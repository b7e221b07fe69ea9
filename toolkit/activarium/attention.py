"""Attention scores and patterns, recomputed from what entered the kernel: rotated queries and keys, scale and mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from activarium.errors import InputError


@dataclass(frozen=True)
class AttentionSpec:
    """How one attention turns queries and keys into a pattern. Plain data: it is stored beside a capture.

    Attributes:
        scaling: Factor on the dot products.
        causal: A query sees only keys up to its own position.
        window: A query sees only keys less than this far away, on the sides that it sees; or None.
        softcap: Scores become `softcap * tanh(score / softcap)`, or None.
        bias: Additive bias `head query key` (T5, ALiBi) for the longest example, or None.
        sinks: One learned extra logit per head that takes attention but has no value, or None.
    """

    scaling: float
    causal: bool
    window: int | None = None
    softcap: float | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON; refused where a learned tensor belongs to it.

        Raises:
            InputError: The attention has a bias or sinks, which are tensors.
        """
        if self.bias is not None or self.sinks is not None:
            raise InputError("This attention has a position bias or sinks, which JSON cannot hold; store `.tensors()` beside it.")
        return self.numbers()

    def numbers(self) -> dict[str, Any]:
        """The part that is numbers."""
        return {"scaling": self.scaling, "causal": self.causal, "window": self.window, "softcap": self.softcap}

    def tensors(self) -> dict[str, Tensor]:
        """The part that is tensors, by field name."""
        return {k: v for k, v in (("bias", self.bias), ("sinks", self.sinks)) if v is not None}

    @classmethod
    def from_json(cls, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Self:
        """Back from `numbers()` and `tensors()`."""
        fields: dict[str, Any] = {**numbers, **(tensors or {})}
        return cls(**fields)


def repeat_heads(keys: Tensor, heads: int) -> Tensor:
    """Key or value heads `key kv_head d_head` repeated so that every query head has its own."""
    return keys if keys.shape[-2] == heads else keys.repeat_interleave(heads // keys.shape[-2], dim=-2)


def visible(queries: int, keys: int, spec: AttentionSpec, device: torch.device | None = None) -> Tensor:
    """Which keys a query may see, boolean `query key`. Fewer queries than keys means the queries are the last ones."""
    if not spec.causal and spec.window is None:
        return torch.ones(queries, keys, dtype=torch.bool, device=device)
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None]
    mask = distance >= 0 if spec.causal else torch.ones_like(distance, dtype=torch.bool)
    return mask & (distance.abs() < spec.window) if spec.window is not None else mask


def scores_and_pattern(q: Tensor, k: Tensor, spec: AttentionSpec, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Scores after scale, bias, soft-cap and mask, and the pattern after softmax, for one example.

    Args:
        q: Rotated queries, `query head d_head`.
        k: Rotated keys, `key kv_head d_head`.
        spec: Scale, mask and the rest.
        dtype: Type to compute in; at least float32 by default, as the models do.

    Returns:
        Two tensors `head query key`; hidden keys have score -inf and share 0. Rows of the pattern sum to 1 minus the sink's share.
    """
    dtype = dtype or (torch.float64 if q.dtype == torch.float64 else torch.float32)
    k = repeat_heads(k, q.shape[-2])
    scores = torch.einsum("qhd,khd->hqk", q.to(dtype), k.to(dtype)) * spec.scaling
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if spec.bias is not None:
        scores = scores + spec.bias[:, : scores.shape[1], : scores.shape[2]].to(scores)
    scores = scores.masked_fill(~visible(scores.shape[1], scores.shape[2], spec, scores.device), -torch.inf)
    if spec.sinks is None:
        return scores, scores.softmax(-1)
    sink = spec.sinks.to(scores).view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    return scores, torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
