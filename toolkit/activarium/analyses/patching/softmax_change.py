"""What other queries or keys do to `sum(pattern * gradient)`: the softmax is taken again, never linearised."""

from __future__ import annotations

import torch
from torch import Tensor


def query_change(scores: Tensor, changed: Tensor, gradient: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Change of `sum_j pattern_ij gradient_ij` when query i alone is another one.

    Args:
        scores: `head query key` after scale, bias and mask; -inf where a key is hidden.
        changed: The same with every query replaced: row i belongs to the new query i.
        gradient: Of the metric at the pattern, `head query key`.
        sinks: One further logit per head that takes attention and gives nothing.

    Returns:
        `head query`.
    """
    before, after = (_ended(t, sinks).softmax(-1)[..., : t.shape[-1]] for t in (scores, changed))
    return ((after - before) * gradient).sum(-1)


def key_change(scores: Tensor, changed: Tensor, gradient: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Change of `sum_ij pattern_ij gradient_ij` when key t alone is another one, for every t at once.

    Only column t of the scores changes. With a the log odds of key t against all others and d its change of score, each query i
    adds `(sigmoid(a + d) - sigmoid(a)) (gradient_it - mean gradient of the others)`: as many numbers as one softmax, and no step
    cancels or overflows. It equals `A e / (1 + A e) (gradient_it - sum_j A_ij gradient_ij)` with `e = exp(d) - 1`.

    Args:
        scores: `head query key` after scale, bias and mask; -inf where a key is hidden.
        changed: The same with every key replaced: column t belongs to the new key t.
        gradient: Of the metric at the pattern, `head query key`.
        sinks: One further logit per head that takes attention and gives nothing.

    Returns:
        `head key`.
    """
    keys, nothing = scores.shape[-1], None if sinks is None else torch.zeros_like(sinks)
    rest, mean = (t[..., :keys] for t in _others(_ended(scores, sinks), _ended(gradient, nothing)))
    odds, step = scores - rest, changed - scores
    up = (odds + step).sigmoid() * (-odds).sigmoid() * -torch.expm1(-step.clamp(min=0))
    down = odds.sigmoid() * (-odds - step).sigmoid() * torch.expm1(step.clamp(max=0))
    # Hidden keys stay hidden; a query that sees one key alone gives it everything before and after.
    still = scores.isneginf() | rest.isneginf()
    return (torch.where(step > 0, up, down) * (gradient - mean)).masked_fill(still, 0).sum(-2)


def _others(scores: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """For every query and key t: log-sum-exp of the scores of all other keys, and the mean gradient there by their shares."""
    pattern, total = scores.softmax(-1), scores.logsumexp(-1, keepdim=True)
    rest = total + torch.log1p(-pattern)
    mean = ((pattern * gradient).sum(-1, keepdim=True) - pattern * gradient) / (1 - pattern)
    # Only the largest share can be near 1, where 1 - share loses its digits: for that one key the others are summed directly.
    top = scores.argmax(-1, keepdim=True)
    without = scores.scatter(-1, top, -torch.inf)
    exact = without.logsumexp(-1, keepdim=True)
    average = ((without - exact).exp() * gradient).sum(-1, keepdim=True)  # NaN where nothing else is seen
    return rest.scatter(-1, top, exact), mean.scatter(-1, top, average)


def _ended(values: Tensor, last: Tensor | None) -> Tensor:
    """Values `head query key` with one more key, which holds one number per head."""
    if last is None:
        return values
    return torch.cat([values, last.to(values)[:, None, None].expand(*values.shape[:2], 1)], -1)
