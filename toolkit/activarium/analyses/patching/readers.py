"""How a metric reads the stream after the last block: one direction per row, when the final norm's scale is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.frozen import FITS, freeze
from activarium.edits import Zero
from activarium.errors import InputError
from activarium.metrics import Metric


@dataclass(frozen=True)
class Reader:
    """What the terms of one batch are measured with.

    Attributes:
        rows: The rows that the metric reads, over all examples.
        example: Example of each of those.
        direction: Their direction in the stream after the last block, `row d_model`.
        shift: What the final norm's own bias gives, per example.
        bias: What the head's bias gives, per example.
        value: What all terms add up to, per example.
        cap: The soft-cap that the logits went through, which `value` has not; None without one.
    """

    rows: Tensor
    example: np.ndarray
    direction: Tensor
    shift: Tensor
    bias: Tensor
    value: Tensor
    cap: float | None

    def per_example(self, values: Tensor) -> Tensor:
        """Values `row …` added up over the rows of each example."""
        return _added(values, self.example, len(self.value))


def reader(model: Any, inputs: Any, metric: Metric, recording: Any, last: str, norm: str) -> Reader:
    """The directions of a linear metric.

    Args:
        model: The runner.
        inputs: The inputs of the recording, numbered from 0.
        metric: A linear function of logits.
        recording: A run of them, with the sites `last` and `norm`.
        last: The stream after the last block.
        norm: The final norm's output.

    Raises:
        InputError: The metric is not linear, or the head is none that follows its input linearly.
    """
    slopes, picked = _slopes(metric, recording.logits)
    cap = _soft_cap(model)
    out = recording[norm].tensor.detach().cpu().double()
    if cap is None:
        direction, bias, value = _by_gradient(model, inputs, metric, norm, out, recording)
    else:
        direction, bias, value = _before_cap(model, metric, slopes, picked, out, recording.logits, cap)
    rows = (direction != 0).any(-1).nonzero().flatten()
    if not len(rows):
        raise InputError(f"Metric {metric.name!r} does not depend on the logits: nothing can be attributed. Is every answer its own foil?")
    example = np.asarray(recording[last].index["example"], dtype=int)[rows.numpy()]
    before = recording[last].tensor.detach().cpu().double()[rows]
    stack = model.anatomy.stacks[recording[norm].space]
    kept = freeze(model, stack.final_norm, before, out[rows], "the final norm")
    shift = _added((direction[rows] * kept.bias).sum(-1), example, len(value))
    return Reader(rows, example, kept.back(direction[rows]), shift, bias, value, cap)


def _added(values: Tensor, example: np.ndarray, count: int) -> Tensor:
    return values.new_zeros((count, *values.shape[1:])).index_add(0, torch.as_tensor(example), values)


def _by_gradient(model: Any, inputs: Any, metric: Metric, norm: str, out: Tensor, recording: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The metric's gradient at the final norm, its constant part (its value without any input), and its value."""
    graph = model.run(inputs, read=norm, metrics={"metric": metric}, grad=True)
    direction = graph.backward("metric")[norm].tensor.cpu().double()
    value = graph.metric["metric"].detach().cpu().double()
    bias = model.run(inputs, edits=[Zero(norm)], metrics={"metric": metric}).metric["metric"].detach().cpu().double()
    example = np.asarray(recording[norm].index["example"], dtype=np.int64)
    followed = bias + _added((direction * out).sum(-1), example, len(bias))
    gap, size = float((followed - value).abs().max()), max(float(value.abs().max()), float(recording.logits.tensor.abs().max()))
    if gap > FITS.get(model.dtype, 5e-2) * size:
        raise InputError(
            f"The head of {model.name} does not follow the final norm linearly (off by {gap:.2g} of {size:.3g}), so logits are no sum of "
            "what is written. Use activation_patching."
        )
    return direction, bias, value


def _before_cap(
    model: Any, metric: Metric, slopes: Tensor, picked: Tensor | None, out: Tensor, logits: Any, cap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for the logits that enter the soft-cap, by the unembedding's own weights."""
    assert picked is not None
    unembedding = model.weight("W_U").cpu().double()
    shift = model.weight("b_U").cpu().double() if "b_U" in model.weights else torch.zeros(unembedding.shape[1], dtype=torch.float64)
    rows = picked.flatten()
    entering = out[rows] @ unembedding + shift
    answered = logits.tensor.detach().cpu().double()[rows]
    gap = float((cap * torch.tanh(entering / cap) - answered).abs().max())
    if gap > FITS.get(model.dtype, 5e-2) * cap:
        raise InputError(f"The logits of {model.name} are not its final norm times W_U, soft-capped at {cap:g} (off by {gap:.2g}).")
    weights = slopes.flatten(0, -2)
    direction = torch.zeros_like(out).index_add(0, rows, weights @ unembedding.T)
    per_example = [(weights * part).sum(-1).reshape(len(slopes), -1).sum(-1) for part in (shift, entering)]
    return direction, per_example[0], per_example[1]


def _soft_cap(model: Any) -> float | None:
    """What the configuration says; the logits themselves decide whether it is true."""
    config: Any = getattr(model.torch_module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "final_logit_softcapping", None) or getattr(
        getattr(model.torch_module, "cfg", None), "output_logits_soft_cap", None
    )
    return float(found) if found and found > 0 else None


def _slopes(metric: Metric, logits: Any) -> tuple[Tensor, Tensor | None]:
    """The metric's slope for every logit it is given, and the rows it reads (None: one answer per example).

    Raises:
        InputError: Its slope is not the same everywhere, or it is not zero for logits of zero.
    """
    given, rows = logits.tensor.detach().cpu().double(), None
    if logits.axes[0] != "example":
        spans = [logits.index.span(e) for e in logits.index.examples]
        places = metric.places([s.stop - s.start for s in spans])
        rows = torch.as_tensor(np.array([s.start for s in spans])[:, None] + places)
        given = given[rows if isinstance(metric.position, tuple) else rows[:, 0]]
    found = []
    for point in (given, torch.randn(given.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * given.abs().max()):
        leaf = point.clone().requires_grad_()
        with torch.enable_grad():
            value = metric.of(leaf)
            slope = torch.autograd.grad(value.sum(), leaf)[0] if value.requires_grad else torch.zeros_like(leaf)
        found.append(slope)
        value = value.detach()
        followed = (slope * point).flatten(1).sum(1)
        if not torch.allclose(followed, value, rtol=1e-6, atol=1e-6 * float(point.abs().max())):
            raise InputError(
                f"Metric {metric.name!r} is not linear in the logits (it gives {float(value[0]):.6g} where its slope explains {float(followed[0]):.6g}), "
                "so it is no sum of what is written. Use logit_difference or class_logit, or activation_patching for any metric."
            )
    return found[0], rows
