"""CETT of one layer: how much of an MLP's output is lost when its faintest neurons are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.sparsity.dropped import even_blocks, pieces

BLOCK = 256  # rows in one product: always the same, so that its rounding does not depend on how the rows came
CLOSE = 0.01  # the search ends when CETT is this near below its target, as a share of it
STEPS = 40


class CettLayer:
    """One layer's neurons and what they write.

    Attributes:
        norms: What |neuron| is multiplied with to rank it, `(d_mlp,)`: the norm of what it writes, or ones.
    """

    def __init__(self, neurons: Activations, down: Tensor, bias: Tensor | None, norms: Tensor | None, exclude: Sequence[str]) -> None:
        self.neurons, self.exclude = neurons, exclude
        wide = torch.float64 if neurons.dtype == torch.float64 else torch.float32
        self.down, self.bias = down.to(wide), None if bias is None else bias.to(wide)
        self.norms = self.down.norm(dim=1) if norms is None else norms.to(wide)
        self.known: dict[float, float] = {0.0: 0.0}  # eps → CETT; what is exactly zero costs nothing

    @cached_property
    def largest(self) -> float:
        """The strongest neuron of all rows: above this eps all are dropped."""
        return max((float((v.abs() * self.norms).max()) for v in self._blocks()), default=0.0)

    @cached_property
    def sizes(self) -> list[Tensor]:
        """Norm of the output of each row, block by block; only these are kept."""
        return [(v @ self.down + (0 if self.bias is None else self.bias)).norm(dim=1) for v in self._blocks()]

    @property
    def silent(self) -> int:
        """Rows whose output is zero; they have no CETT and enter no mean."""
        return sum(int((size == 0).sum()) for size in self.sizes)

    def limits(self, eps: float) -> Tensor:
        """A neuron is dropped where |neuron| is not above this, `(d_mlp,)`; neurons that write nothing always are."""
        return torch.where(self.norms > 0, eps / self.norms, torch.inf)

    def cett(self, eps: float) -> float:
        """Mean over rows of ‖what the dropped neurons write together‖ / ‖output‖."""
        if eps not in self.known:
            self.known[eps] = self._measured(eps)
        return self.known[eps]

    def _measured(self, eps: float) -> float:
        limits, total, rows = self.limits(eps), 0.0, 0
        for values, size in zip(self._blocks(), self.sizes, strict=True):
            lost = (torch.where(values.abs() <= limits, values, 0) @ self.down).norm(dim=1)
            total += float((lost[size > 0] / size[size > 0]).double().sum())
            rows += int((size > 0).sum())
        return total / rows if rows else float("nan")

    def eps_for(self, target: float) -> float:
        """The largest eps found by bisection whose CETT does not exceed the target; earlier searches narrow the start."""
        low = max((e for e, c in self.known.items() if c <= target), default=0.0)
        high = min((e for e, c in self.known.items() if c > target and e > low), default=self.largest)
        if self.cett(high) <= target:
            return high
        for _ in range(STEPS):
            if self.cett(low) >= (1 - CLOSE) * target:
                break
            middle = (low + high) / 2
            low, high = (middle, high) if self.cett(middle) <= target else (low, middle)
        return low

    def dropped(self, eps: float) -> Iterator[Tensor]:
        """Block by block, what is dropped: boolean `row d_mlp`."""
        limits = self.limits(eps)
        return (values.abs() <= limits for values in self._blocks())

    def _blocks(self) -> Iterator[Tensor]:
        """The rows that count."""
        return even_blocks((values.to(self.down.dtype) for values, _ in pieces(self.neurons, self.exclude)), BLOCK)
