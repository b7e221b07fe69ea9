"""A softmax whose gradient is taken at another temperature (GIM), so that keys out of a saturated pattern are heard again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from activarium.attention import AttentionSpec, repeat_heads, scores_of
from activarium.capture._gradients import checked

if TYPE_CHECKING:
    from activarium.capture._masks import Span

TEMPERATURE = 2.0


class Tempered(torch.autograd.Function):
    """Softmax over the last axis; backward is that of a softmax at the temperature, without the factor 1 / temperature."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        ctx.save_for_backward((scores / TEMPERATURE).softmax(-1))
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (warm,) = ctx.saved_tensors
        return warm * (gradient - (warm * gradient).sum(-1, keepdim=True))


def tempered_mix(path: str, z: Tensor, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, spans: list[Span]) -> Tensor:
    """The mix `example query head d_head` of an attention, its values bit for bit, its gradient through the tempered softmax.

    Args:
        path: Of the attention, for messages.
        z: The mix as the kernel gave it.
        q: Queries as they entered it, `example head query d_head`.
        k: Keys, `example kv_head key d_head`.
        v: Values, `example kv_head key d_head`.
        spec: How its pattern follows.
        spans: Where each example's real rows lie.
    """
    made = z.detach().clone()  # rows of padding stay what they are
    for i, span in enumerate(spans):
        queries, keys, values = (t[i, :, at].transpose(0, 1) for t, at in ((q, span.queries), (k, span.keys), (v, span.keys)))
        scores = scores_of(queries, keys, spec, example=i)
        if spec.sinks is not None:
            scores = torch.cat([scores, spec.sinks.to(scores)[:, None, None].expand(*scores.shape[:2], 1)], -1)
        pattern = Tempered.apply(scores)[..., : len(keys)]  # type: ignore[index]
        mixed = torch.einsum("hqk,khd->qhd", pattern.to(v.dtype), repeat_heads(values, q.shape[1]))
        made = made.index_put((torch.tensor(i), torch.arange(span.queries.start, span.queries.stop)), mixed)
    return checked(made, z, path)
