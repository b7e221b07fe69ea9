"""One key and one value for a head, fitted to what its sinks write: sums over queries, solved at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from activarium.attention import repeat_heads
from activarium.recording import Recording


@dataclass(frozen=True, eq=False)
class SinkPart:
    """What the sinks do in one sequence and one layer, for every query that sees them and counts; axes `query head …`.

    Attributes:
        queries: As they enter the scores.
        score: Log of the sinks' summed exponentials, `(query, head)`.
        rest: The same of everything else, so that attention on the sinks is 1 / (1 + exp(rest − score)).
        update: What the heads write because of the sinks, `query head d_head`.
    """

    queries: Tensor
    score: Tensor
    rest: Tensor
    update: Tensor


def sink_part(recording: Recording, block: str, example: int, sinks: Sequence[int], skip: int) -> SinkPart:
    """From `attn.q_rot`, `scores`, `pattern` and `v` of a recording; all in float64."""
    chosen = list(sinks)
    scores, pattern = (recording[f"{block}.{n}"].example(example, queries=slice(skip, None)).tensor.double() for n in ("scores", "pattern"))
    queries, values = (recording[f"{block}.{n}"].example(example).tensor.double() for n in ("q_rot", "v"))
    given = pattern[..., chosen].sum(-1).clamp(1e-12, 1 - 1e-12)
    score = scores[..., chosen].logsumexp(-1)
    update = torch.einsum("hqk,khd->qhd", pattern[..., chosen], repeat_heads(values, pattern.shape[0])[chosen])
    seen = score.isfinite().all(0)  # a window may hide the sinks from late queries
    rest = score + torch.log1p(-given) - given.log()
    return SinkPart(queries[skip:][seen], score.T[seen], rest.T[seen], update[seen])


class KeySums:
    """Least squares of the sinks' scores on the queries, head by head."""

    def __init__(self) -> None:
        self.squares: Tensor | float = 0.0
        self.products: Tensor | float = 0.0

    def add(self, part: SinkPart) -> None:
        """One more sequence."""
        self.squares = self.squares + torch.einsum("qhd,qhe->hde", part.queries, part.queries)
        self.products = self.products + torch.einsum("qhd,qh->hd", part.queries, part.score)

    def key(self) -> Tensor:
        """`head d_head`, the scale of the scores included; the shortest one where queries leave it open."""
        assert isinstance(self.squares, Tensor)
        return (torch.linalg.pinv(self.squares, hermitian=True, rtol=1e-12) @ torch.as_tensor(self.products)[..., None])[..., 0]


class ValueSums:
    """What one key's attention explains of the sinks' update, with one value, beside a constant."""

    def __init__(self) -> None:
        self.energy: Tensor | float = 0.0  # head
        self.given: Tensor | float = 0.0  # head
        self.pulled: Tensor | float = 0.0  # head d_head
        self.total: Tensor | float = 0.0  # head d_head
        self.queries = 0

    def add(self, part: SinkPart, key: Tensor) -> None:
        """One more sequence."""
        share = torch.sigmoid(torch.einsum("qhd,hd->qh", part.queries, key) - part.rest)
        self.energy = self.energy + (part.update**2).sum((0, 2))
        self.given = self.given + (share**2).sum(0)
        self.pulled = self.pulled + (share[..., None] * part.update).sum(0)
        self.total = self.total + part.update.sum(0)
        self.queries += len(part.update)

    def value(self) -> Tensor:
        """The value that fits best, `head d_head`."""
        return torch.as_tensor(self.pulled) / torch.as_tensor(self.given).clamp_min(1e-300)[:, None]

    def mean(self) -> Tensor:
        """The constant that fits best, `head d_head`."""
        return torch.as_tensor(self.total) / max(self.queries, 1)

    def explained(self, value: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the energy of these updates that the key explains with this value, and that this constant explains; per head."""
        energy = torch.as_tensor(self.energy)
        left = energy - 2 * (value * torch.as_tensor(self.pulled)).sum(1) + (value**2).sum(1) * torch.as_tensor(self.given)
        plain = energy - 2 * (mean * torch.as_tensor(self.total)).sum(1) + (mean**2).sum(1) * self.queries
        return 1 - left / energy, 1 - plain / energy
