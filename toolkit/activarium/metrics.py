"""Scalars of a model's answer: each maps logits to one number per example and says which positions it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """A function of the logits at one position of every example.

    Attributes:
        read: Maps `example vocab` (or `example class`) to `example`.
        position: Which row of each example is read; negative counts from the last real row. Ignored for class logits.
        name: How it is called in results.
    """

    read: Callable[[Tensor], Tensor]
    position: int = -1
    name: str = "metric"


def logit_difference(answers: Sequence[int], foils: Sequence[int], position: int = -1) -> Metric:
    """How much more logit does the answer get than the foil, per example, in logits?"""

    def read(logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, torch.as_tensor(answers)] - logits[rows, torch.as_tensor(foils)]

    return Metric(read, position, "logit_difference")


def log_probability(answers: Sequence[int], position: int = -1) -> Metric:
    """The answer's log-probability, per example, in nats."""

    def read(logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        return logits.log_softmax(-1)[rows, torch.as_tensor(answers)]

    return Metric(read, position, "log_probability")
