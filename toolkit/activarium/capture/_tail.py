"""From streams after the last block to the metric: only the rows and the logits that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from activarium.capture._probe import Stack
from activarium.capture._resume import Resume, standing_aside
from activarium.capture._staircase import Walk
from activarium.metrics import Metric

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

ROWS = 4096  # rows read out at once


def answers(model: TorchRunner, stack: Stack, walk: Walk, inputs: Any, example: np.ndarray, metric: Metric) -> np.ndarray:
    """The metric of each branch of a walk.

    Args:
        model: The runner.
        stack: The blocks that were run.
        walk: The walk, with its stream after the last block.
        inputs: All examples.
        example: Example of each branch, among those.
        metric: What is measured.
    """
    assert walk.stream is not None
    rows_each = model.sites["logits"].rows == stack.name
    parts = [np.empty(0)]
    step = ROWS if rows_each else max(1, ROWS // walk.stream.shape[1])
    for first in range(0, len(walk.stream), step):
        some, who = slice(first, first + step), example[first : first + step]
        if rows_each:
            logits, picked = _rows(model, walk, some, who, metric)
        elif stack.name == "encoder":
            logits, picked = _decoded(model, stack, walk.stream[some], inputs.select(who).numbered(0), metric.select(who)), False
        else:
            logits, picked = _pooled(model, stack, walk.stream[some], walk.base.arguments), False
        parts.append(metric.of(logits, who, picked=picked).detach().double().cpu().numpy())
    return np.concatenate(parts)


def _rows(model: TorchRunner, walk: Walk, some: slice, example: np.ndarray, metric: Metric) -> tuple[Tensor, bool]:
    """Logits at the metric's positions alone; of the vocabulary only what it reads, where the head is a plain matrix."""
    before, after = walk.base.streams[-1], walk.stream[some]  # type: ignore[index]
    device = after.device
    places = torch.as_tensor(metric.select(example).places(np.full(len(after), before.shape[1])), device=device)
    rows = after[torch.arange(len(after), device=device)[:, None], (places - walk.start).clamp(min=0)]
    # Rows before those that were run are what they were in the base forward.
    earlier = before[torch.as_tensor(walk.example[some], device=device)[:, None], places]
    rows = torch.where((places < walk.start)[..., None], earlier, rows)
    wanted, count = metric.wanted(example), places.shape[1]
    head = getattr(model.torch_module, "get_output_embeddings", lambda: None)()
    narrow = wanted is not None and count == 1 and plain(head)
    with _columns(head, wanted.to(device)) if narrow else nullcontext():  # type: ignore[union-attr]
        logits = Resume(model).readout(rows.flatten(0, 1))
    return (logits.unflatten(0, (-1, count)) if isinstance(metric.position, tuple) else logits), narrow


def _decoded(model: TorchRunner, stack: Stack, stream: Tensor, inputs: Any, metric: Metric) -> Tensor:
    """The decoder on encoders that end with these streams: it starts anew, as all of its cross-attention changes."""
    arguments = {k: v.to(model.device) for k, v in inputs.batch.arguments.items()}
    with standing_aside({stack.name: (stack, len(stack.blocks), stream)}, model), torch.no_grad():
        logits = model.call(**arguments, **model._encoder.quiet).logits
    places = torch.as_tensor(metric.places(inputs.rows_of(model.sites["logits"].rows)), device=logits.device)
    rows = logits[torch.arange(len(logits), device=logits.device)[:, None], places]
    return rows if isinstance(metric.position, tuple) else rows[:, 0]


def plain(head: Any) -> bool:
    """A linear layer and nothing else, so that single logits are single rows of its weight."""
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks and "forward" not in head.__dict__


@contextmanager
def _columns(head: nn.Linear, columns: Tensor) -> Iterator[None]:
    """The head gives only these logits, `row k` of its own for each row."""

    def picked(rows: Tensor) -> Tensor:
        found = torch.einsum("rpd,rkd->rpk", rows, head.weight[columns])
        return found if head.bias is None else found + head.bias[columns][:, None]

    head.__dict__["forward"] = picked
    try:
        yield
    finally:
        del head.__dict__["forward"]


def _pooled(model: TorchRunner, stack: Stack, stream: Tensor, arguments: dict[str, Tensor]) -> Tensor:
    """The model's own end on whole streams: a head that pools rows needs all of them."""
    with standing_aside({stack.name: (stack, len(stack.blocks), stream)}, model), torch.no_grad():
        return model.call(**arguments, **model._encoder.quiet).logits
