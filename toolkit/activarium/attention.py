"""Attention scores and patterns, recomputed from what entered the kernel: rotated queries and keys, scale and mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from activarium._parts import Computed
from activarium.errors import InputError

DERIVED = ("scores", "pattern")


@dataclass(frozen=True)
class AttentionSpec:
    """How one attention turns queries and keys into a pattern. Plain data: it is stored beside a capture.

    Attributes:
        scaling: Factor on the dot products.
        causal: A query sees only keys up to its own position.
        window: A causal query sees only this many latest keys (its own included), or None.
        softcap: Scores become `softcap * tanh(score / softcap)`, or None.
        bias: Additive bias `head query key` (T5, ALiBi) for the longest example, or None.
        sinks: One learned extra logit per head that takes attention but has no value, or None.
        mask: The kernel's own mask where it is neither full, causal nor a causal window: `example head query key`, boolean or
            additive; one example stands for all, one head for all heads.
        edited: The scores or the pattern were edited, so that they do not follow from queries and keys.
    """

    scaling: float
    causal: bool
    window: int | None = None
    softcap: float | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    mask: Tensor | None = None
    edited: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON; refused where a learned tensor belongs to it.

        Raises:
            InputError: The attention has a bias, sinks or a mask of its own, which are tensors.
        """
        if self.tensors():
            raise InputError(f"This attention has {' and '.join(self.tensors())}, which JSON cannot hold; store `.tensors()` beside it.")
        return self.numbers()

    def numbers(self) -> dict[str, Any]:
        """The part that is numbers."""
        return {"scaling": self.scaling, "causal": self.causal, "window": self.window, "softcap": self.softcap}

    def tensors(self) -> dict[str, Tensor]:
        """The part that is tensors, by field name."""
        return {k: v for k, v in (("bias", self.bias), ("sinks", self.sinks), ("mask", self.mask)) if v is not None}

    @classmethod
    def from_json(cls, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Self:
        """Back from `numbers()` and `tensors()`."""
        fields: dict[str, Any] = {**numbers, **(tensors or {})}
        return cls(**fields)


def repeat_heads(keys: Tensor, heads: int) -> Tensor:
    """Key or value heads `key kv_head d_head` repeated so that every query head has its own."""
    return keys if keys.shape[-2] == heads else keys.repeat_interleave(heads // keys.shape[-2], dim=-2)


def visible(queries: range, keys: range, spec: AttentionSpec, device: torch.device | None = None) -> Tensor:
    """Which keys a query may see by their positions alone, boolean `query key`."""
    if not spec.causal:
        return torch.ones(len(queries), len(keys), dtype=torch.bool, device=device)
    query = torch.arange(queries.start, queries.stop, device=device)[:, None]
    key = torch.arange(keys.start, keys.stop, device=device)
    # Comparisons, not a table of distances: that would be eight times as large as the mask.
    mask = key <= query
    return mask & (key > query - spec.window) if spec.window is not None else mask


def scores_and_pattern(q: Tensor, k: Tensor, spec: AttentionSpec, **tile: Any) -> tuple[Tensor, Tensor]:
    """Scores and the pattern after softmax, `head query key`, for one example or a tile of it; arguments as of `scores_of`."""
    scores = scores_of(q, k, spec, **tile)
    return scores, pattern_of(scores, spec, tile.get("heads", slice(None)))


def scores_of(
    q: Tensor,
    k: Tensor,
    spec: AttentionSpec,
    *,
    dtype: torch.dtype | None = None,
    heads: slice = slice(None),
    queries: slice = slice(None),
    example: int = 0,
) -> Tensor:
    """Scores after scale, bias, soft-cap and mask, for one example or a tile of it.

    Args:
        q: Rotated queries, `query head d_head`. Where a causal attention has fewer queries than keys, they are the last ones.
        k: Rotated keys, `key kv_head d_head`.
        spec: Scale, mask and the rest.
        dtype: Type to compute in; at least float32 by default, as the models do.
        heads: Only these heads.
        queries: Only these queries; nothing larger than the tile is made on the way.
        example: Which example of the batch, where the mask tells them apart.

    Returns:
        `head query key`; hidden keys have score -inf.
    """
    dtype = dtype or (torch.float64 if q.dtype == torch.float64 else torch.float32)
    chosen, asking = range(*heads.indices(q.shape[1])), range(*queries.indices(q.shape[0]))
    keys = range(k.shape[0])
    first = len(keys) - q.shape[0] if spec.causal else 0
    shared = q.shape[1] // k.shape[1]
    q = q[asking.start : asking.stop, chosen.start : chosen.stop].to(dtype)
    k = (k[:, chosen.start : chosen.stop] if shared == 1 else k[:, [h // shared for h in chosen]]).to(dtype)
    # In place where autograd allows it: a fresh tile costs more than the arithmetic on it.
    scores = torch.einsum("qhd,khd->hqk", q, k).mul_(spec.scaling)
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if spec.bias is not None:
        scores = scores + spec.bias[chosen.start : chosen.stop, asking.start : asking.stop, : len(keys)].to(scores)
    scores = _masked(scores, spec, chosen, asking, example)
    if not spec.causal:
        return scores
    seen = visible(range(first + asking.start, first + asking.stop), keys, spec, scores.device)
    return scores.masked_fill_(seen.logical_not_(), -torch.inf)


def pattern_of(scores: Tensor, spec: AttentionSpec, heads: slice = slice(None)) -> Tensor:
    """The pattern of scores `head query key`: hidden keys have share 0; rows sum to 1 minus the sink's share."""
    if spec.sinks is None:
        return scores.softmax(-1)
    sink = spec.sinks[heads].to(scores)[:, None, None]
    top = torch.maximum(scores.amax(-1, keepdim=True), sink).detach()
    weights = (scores - top).exp()
    return weights / (weights.sum(-1, keepdim=True) + (sink - top).exp())


def _masked(scores: Tensor, spec: AttentionSpec, heads: range, queries: range, example: int) -> Tensor:
    """Scores under the kernel's own mask, if one was kept."""
    if spec.mask is None:
        return scores
    part = spec.mask[min(example, len(spec.mask) - 1)]
    part = part if len(part) == 1 else part[heads.start : heads.stop]
    part = part[:, queries.start : queries.stop, : scores.shape[2]]
    if part.dtype != torch.bool:
        scores = scores + part.to(scores.dtype)
    return scores.masked_fill(~opened(part), -torch.inf)


def opened(mask: Tensor) -> Tensor:
    """Which cells a kernel's mask leaves open: models hide with the most negative number of a type."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def attention_part(
    what: str,
    q: Callable[[], Tensor],
    k: Callable[[], Tensor],
    sizes: tuple[int, int, int],
    spec: AttentionSpec,
    kind: torch.dtype,
    example: int,
) -> Computed:
    """One example's scores or pattern, calculated from its queries and keys when asked for.

    Args:
        what: `scores` or `pattern`.
        q: Gives its rotated queries, `query head d_head`.
        k: Gives its rotated keys, `key kv_head d_head`.
        sizes: Heads, queries and keys.
        spec: Scale, mask and the rest.
        kind: Type of the queries.
        example: Its place in the batch.
    """

    def tile(heads: slice = slice(None), queries: slice = slice(None)) -> Tensor:
        return scores_and_pattern(q(), k(), spec, heads=heads, queries=queries, example=example)[DERIVED.index(what)]

    return Computed(sizes, torch.float64 if kind == torch.float64 else torch.float32, tile, tile)
