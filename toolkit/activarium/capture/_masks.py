"""What an attention kernel was told, as a small description from which its pattern can be recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from activarium.attention import AttentionSpec, opened, visible


@dataclass(frozen=True)
class Span:
    """Where one example's real rows lie in a padded kernel call. Queries are the last of the keys where there are fewer.

    Attributes:
        row: Place in the batch.
        queries: Its cells among the queries.
        keys: Its cells among the keys.
    """

    row: int
    queries: slice
    keys: slice

    @property
    def sizes(self) -> tuple[int, int]:
        """Queries and keys."""
        return self.queries.stop - self.queries.start, self.keys.stop - self.keys.start


def describe(
    module: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None, options: dict[str, Any], eager: bool, spans: Sequence[Span]
) -> AttentionSpec:
    """The attention's description; a mask that is neither full, causal nor a causal window is kept as it is.

    Args:
        module: The module that called the kernel.
        q: Queries `example head row d_head`, rotated and padded.
        k: Keys, likewise.
        mask: What the kernel got: boolean, additive, or None.
        options: The kernel's other arguments.
        eager: Whether the kernel is eager attention, which takes no mask for full attention.
        spans: Where the real rows lie.
    """
    bias, causal = options.get("position_bias"), is_causal(module, mask, options, eager, spans)
    if bias is not None and len(bias) > 1:
        bias, mask = None, bias + _additive(mask, bias.dtype)
    spec = AttentionSpec(
        scaling=float(options["scaling"] if options.get("scaling") is not None else q.shape[-1] ** -0.5),
        causal=causal,
        window=options.get("sliding_window") if causal else None,
        softcap=options.get("softcap"),
        bias=None if bias is None or not bool(bias.any()) else bias[0].detach(),
        sinks=options.get("s_aux"),
    )
    if mask is None or all(_agrees(_part(mask, s), spec, s) for s in spans):
        return spec
    return replace(spec, window=None, mask=_kept(mask.detach().expand(-1, -1, q.shape[2], -1), spans))


def is_causal(module: nn.Module, mask: Tensor | None, options: dict[str, Any], eager: bool, spans: Sequence[Span]) -> bool:
    """Does a query see no later key? Read off the mask, or off what the kernel is told where there is none."""
    if mask is None:
        told = options.get("is_causal")
        return not eager and bool(getattr(module, "is_causal", True) if told is None else told)
    if all(s.sizes[0] == 1 for s in spans):
        return bool(getattr(module, "is_causal", False))  # the last query has no later key
    past = AttentionSpec(scaling=1.0, causal=True)
    return not any(bool((opened(_part(mask, s)) & ~_seen(past, s, mask.device)).any()) for s in spans)


def _seen(spec: AttentionSpec, span: Span, device: torch.device) -> Tensor:
    queries, keys = span.sizes
    first = keys - queries if spec.causal else 0
    return visible(range(first, first + queries), range(keys), spec, device)


def _agrees(part: Tensor, spec: AttentionSpec, span: Span) -> bool:
    """Does the mask hide just what the description hides, and add nothing to the rest?"""
    open_ = opened(part)
    plain = part.dtype == torch.bool or not bool(part[open_].any())
    return plain and bool((open_ == _seen(spec, span, part.device)).all())


def _part(mask: Tensor, span: Span) -> Tensor:
    """One example's `head query key` of a mask."""
    part = mask[min(span.row, len(mask) - 1)]
    rows = part if part.shape[1] == 1 else part[:, span.queries]
    return rows.expand(-1, span.sizes[0], -1)[:, :, span.keys]


def _kept(mask: Tensor, spans: Sequence[Span]) -> Tensor:
    """The mask, of one example where that says it for all of them."""
    parts = [_part(mask, s) for s in spans]
    longest = max(parts, key=lambda p: p.shape)
    flush = all(s.queries.start == 0 and s.keys.start == 0 for s in spans)
    return longest[None] if flush and all(_corner(longest, p) for p in parts) else mask


def _corner(whole: Tensor, part: Tensor) -> bool:
    """Is this the beginning of the other?"""
    _, queries, keys = part.shape
    return queries <= whole.shape[1] and keys <= whole.shape[2] and torch.equal(part, whole[:, :queries, :keys])


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    if mask is None:
        return 0.0
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
