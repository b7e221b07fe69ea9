"""Scalars of a model's answer: each maps logits to one number per example and says which positions and columns it reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError


@dataclass(frozen=True, eq=False)
class Metric:
    """A function of the logits at the positions it declares.

    Attributes:
        read: Maps logits `example vocab` (or `example class`) to `example`. With a second argument it is also given the number of
            each example, so that it can look up what it knows of it.
        position: Which row of each example is read, or one for each example (an array); negative counts from the last real
            row. With a tuple of positions the logits are `example position vocab`. Ignored for class logits.
        name: How it is called in results.
        unit: Unit of its numbers.
        columns: `example k`: the only logits that are read; `read` is then given `example k`. None reads all.
        chosen: Which of its examples it stands for, after `select`.
    """

    read: Callable[..., Tensor]
    position: int | tuple[int, ...] | np.ndarray = -1
    name: str = "metric"
    unit: str = "logits"
    columns: Tensor | None = None
    chosen: np.ndarray | None = None

    def select(self, index: Sequence[int] | np.ndarray) -> Self:
        """The metric of some of its examples."""
        index = np.asarray(index, dtype=int)
        return replace(self, chosen=index if self.chosen is None else self.chosen[index])

    def places(self, lengths: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which rows are read, `example position`, counted from each example's first; `lengths` are the rows of each.

        Raises:
            InputError: An example is too short for a position.
        """
        lengths = np.asarray(lengths)
        given = self.position
        if isinstance(given, np.ndarray):
            wanted = given[self._numbers(len(lengths))][:, None]
        else:
            wanted = np.broadcast_to(np.atleast_1d(np.array(given)), (len(lengths), np.size(given)))
        rows = np.where(wanted < 0, wanted + lengths[:, None], wanted)
        wrong = (rows < 0) | (rows >= lengths[:, None])
        if wrong.any():
            example = int(np.flatnonzero(wrong.any(1))[0])
            position = int(wanted[example][wrong[example]][0])
            raise InputError(f"Metric {self.name!r} reads position {position}; example {example} has {lengths[example]} rows.")
        return rows

    def wanted(self, example: Sequence[int] | np.ndarray) -> Tensor | None:
        """Columns of the logits that these examples need, `example k`, or None for all."""
        return None if self.columns is None else self.columns[torch.as_tensor(self._numbers(0, example))]

    def of(self, logits: Tensor, example: Sequence[int] | np.ndarray | None = None, *, picked: bool = False) -> Tensor:
        """One number per example.

        Args:
            logits: `example vocab`, or `example position vocab` where several positions are declared.
            example: Number of the example that each line belongs to; 0, 1, … if not given.
            picked: Only the wanted columns were calculated.

        Raises:
            InputError: `read` failed, or did not give one number per example.
        """
        example = np.arange(len(logits)) if example is None else np.asarray(example)
        if self.columns is not None and not picked:
            logits = logits.gather(-1, self._among(logits, example))
        numbers = torch.as_tensor(self._numbers(0, example), device=logits.device)
        try:
            value = self.read(logits, numbers) if _takes_examples(self.read) else self.read(logits)
        except (IndexError, RuntimeError) as error:
            hint = " If it reads several positions, declare them: Metric(read, position=(-3, -2, -1))." if logits.ndim == 2 else ""
            raise InputError(f"Metric {self.name!r} failed on logits of shape {tuple(logits.shape)}: {error}.{hint}") from error
        if not isinstance(value, Tensor) or value.shape != (len(logits),):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"Metric {self.name!r} gave {found} for {len(logits)} examples; wanted one number for each, shape ({len(logits)},)."
            )
        return value

    def _among(self, logits: Tensor, example: np.ndarray) -> Tensor:
        columns = self.wanted(example)
        assert columns is not None
        if int(columns.max()) >= logits.shape[-1]:
            raise InputError(f"Metric {self.name!r} reads logit {int(columns.max())}; the model has {logits.shape[-1]}.")
        columns = columns.to(logits.device)
        return columns if logits.ndim == 2 else columns[:, None].expand(-1, logits.shape[1], -1)

    def _numbers(self, count: int, example: Any = None) -> np.ndarray:
        """Places in the metric's own tables."""
        example = np.arange(count) if example is None else np.asarray(example)
        numbers = example if self.chosen is None else self.chosen[example]
        known = len(self.columns) if self.columns is not None else len(self.position) if isinstance(self.position, np.ndarray) else None
        if known is not None and len(numbers) and numbers.max() >= known:
            raise InputError(
                f"Metric {self.name!r} knows {known} examples; it was asked for number {int(numbers.max())}. Give it one answer for each."
            )
        return numbers


def logit_difference(answers: Sequence[int] | Tensor, foils: Sequence[int] | Tensor, position: Any = -1) -> Metric:
    """How much more logit does the answer get than the foil, per example, in logits? Tokens or classes."""
    columns = torch.stack([torch.as_tensor(answers), torch.as_tensor(foils)], 1)
    return Metric(lambda logits: logits[..., 0] - logits[..., 1], position, "logit_difference", columns=columns)


def class_logit(classes: Sequence[int] | Tensor, position: Any = -1) -> Metric:
    """The logit of one class (or token), per example, in logits."""
    return Metric(lambda logits: logits[..., 0], position, "class_logit", columns=torch.as_tensor(classes)[:, None])


def log_probability(answers: Sequence[int] | Tensor, position: Any = -1) -> Metric:
    """The answer's log-probability, per example, in nats."""
    answers = torch.as_tensor(answers)

    def read(logits: Tensor, example: Tensor) -> Tensor:
        if int(example.max()) >= len(answers):
            raise IndexError(f"{len(answers)} answers were given for at least {int(example.max()) + 1} examples")
        return logits.log_softmax(-1).gather(1, answers.to(logits.device)[example][:, None])[:, 0]

    return Metric(read, position, "log_probability", "nats")


def kl(reference: Tensor, position: Any = -1) -> Metric:
    """KL(reference ‖ answer), per example, in nats; `reference` holds logits `example vocab`, for instance of the clean run."""
    log_reference = reference.detach().double().log_softmax(-1)

    def read(logits: Tensor, example: Tensor) -> Tensor:
        wanted = log_reference.to(logits.device)[example]
        return (wanted.exp() * (wanted - logits.double().log_softmax(-1))).sum(-1)

    return Metric(read, position, "kl", "nats")


def _takes_examples(read: Callable[..., Tensor]) -> bool:
    needed = [
        p
        for p in inspect.signature(read).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) > 1
