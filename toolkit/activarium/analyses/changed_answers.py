"""What an intervention does to a model's answers: KL, loss, agreement and confidence, answer by answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, examples_of
from activarium.edits import Edit
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.protocols import Runner

AT_ONCE = 16  # examples in one forward

# Edits, or what makes them for a batch of inputs: some are chosen from what the model does on just these.
Change = Sequence[Edit] | Callable[[Any], Sequence[Edit]]


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a changed model beside those of the full one; every field has the axis `answer`.

    An answer is a row of a language model or an example of a classifier. What should be answered is known where a next token
    really comes (in a model that sees no later rows) or where the inputs have a `label` that is the number of a class.

    Attributes:
        example: Its example.
        position: Its place in the example; 0 for a classifier.
        kl: KL(full ‖ changed), nats.
        agrees: The top answer stayed the same.
        known: It is known what should be answered; elsewhere the next five mean nothing (NaN, False).
        loss: −log p of that in the changed model, nats.
        full_loss: The same in the full model.
        correct: The changed model's top answer is that.
        confidence: Probability of the changed model's top answer, known or not.
        full_correct: The full model's top answer is that.
    """

    example: np.ndarray
    position: np.ndarray
    kl: np.ndarray
    agrees: np.ndarray
    known: np.ndarray
    loss: np.ndarray
    full_loss: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    full_correct: np.ndarray

    def __len__(self) -> int:
        return len(self.example)

    def sums(self, values: np.ndarray, where: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Sum and count of `values` per example, over the answers of `where` (a boolean per answer): what `bootstrap_interval` takes."""
        chosen = np.ones(len(self), bool) if where is None else where
        owner = np.unique(self.example, return_inverse=True)[1]
        examples = int(owner.max()) + 1
        return np.bincount(owner[chosen], values[chosen], minlength=examples), np.bincount(owner[chosen], minlength=examples)

    def mean(self, name: str, where: np.ndarray | None = None) -> float:
        """Mean of a field over its answers (over those that are known, for what needs it); NaN where there are none."""
        chosen = np.ones(len(self), bool) if where is None else where
        if name in ("loss", "full_loss", "correct", "full_correct"):
            chosen = chosen & self.known
        return float(getattr(self, name)[chosen].mean()) if chosen.any() else float("nan")


def changed_answers(
    model: Runner, inputs: Any, changes: Mapping[str, Change], *, progress: bool = False, doing: str = "changing"
) -> dict[str, Answers]:
    """Run the inputs as they are and once with each change, some examples at a time.

    Args:
        model: The model; left as it was.
        inputs: What it runs on.
        changes: Name → edits, or a function from the inputs of a batch to edits (`where.examples` are example numbers).
        progress: Show a bar.
        doing: What the bar says.

    Raises:
        InputError: The answer is no distribution over tokens or classes.
    """
    encoded = model.inputs(inputs)
    found: dict[str, list[Answers]] = {name: [] for name in changes}
    with progress_bar(progress, doing, len(encoded)) as advance:
        for start in range(0, len(encoded), AT_ONCE):
            here = encoded.select(range(start, min(start + AT_ONCE, len(encoded))))
            full = logits_of(model, here)
            logs, known = full.tensor.double().log_softmax(1), right_answers(model, full)
            for name, change in changes.items():
                edits = change(here) if callable(change) else change
                found[name].append(compared(full, logits_of(model, here, edits), known, full_logs=logs))
            advance(len(here))
    return {name: joined(parts) for name, parts in found.items()}


def logits_of(model: Runner, inputs: Any, edits: Sequence[Edit] = ()) -> Activations:
    """The logits of one forward without gradients, `row vocab` or `example class`.

    Raises:
        InputError: The model answers with something else.
    """
    with torch.no_grad():
        logits = model.run(inputs, read="logits", edits=edits)["logits"]
    if logits.axes not in (("row", "vocab"), ("example", "class")):
        raise InputError(
            f"{model.name} answers with axes {' '.join(logits.axes)!r}; what a change costs is measured on answers 'row vocab' or "
            "'example class'. Leave model= and inputs= out, or load it with a language or class head."
        )
    return logits


def compared(full: Activations, changed: Activations, right: Tensor, *, full_logs: Tensor | None = None) -> Answers:
    """Two sets of logits over the same rows.

    Args:
        full: Of the model as it is.
        changed: Of the changed one.
        right: What should be answered, `(answer,)`, -1 where that is not known: see `right_answers`.
        full_logs: Log-probabilities of `full` in float64, if they were computed before.
    """
    before = full.tensor.double().log_softmax(1) if full_logs is None else full_logs
    after = changed.tensor.double().log_softmax(1)
    weight = before.exp()
    kl = torch.where(weight > 0, weight * (before - after), 0).sum(1).clamp_min(0)
    known, target = right >= 0, right.clamp_min(0).to(before.device)
    top, full_top = after.argmax(1), before.argmax(1)
    loss, full_loss = (-logs.gather(1, target[:, None])[:, 0].cpu().masked_fill(~known, torch.nan) for logs in (after, before))
    tensors = {
        "kl": kl,
        "agrees": top == full_top,
        "known": known,
        "loss": loss,
        "full_loss": full_loss,
        "correct": (top == target).cpu() & known,
        "confidence": after.exp().gather(1, top[:, None])[:, 0],
        "full_correct": (full_top == target).cpu() & known,
    }
    position = column(full, "position", 0) if "row" in full.axes else np.zeros(len(full), np.int64)
    example = examples_of(full) if full.index is not None else np.arange(len(full))
    return Answers(example, position, **{name: t.cpu().numpy() for name, t in tensors.items()})


def right_answers(model: Runner, logits: Activations) -> Tensor:
    """The token that really comes next, or the label of the inputs where it is the number of a class; -1 where neither is known."""
    right = torch.full((len(logits),), -1, dtype=torch.long)
    if "class" in logits.axes:
        label = column(logits, "label", "")
        return torch.as_tensor(label.astype(np.int64)) if label.dtype.kind in "iu" else right
    if model.looks_back(logits.space):
        token, example = column(logits, "token", -1).astype(np.int64), examples_of(logits)
        rows = np.flatnonzero(example[1:] == example[:-1])
        right[rows] = torch.as_tensor(token[rows + 1])
    return right


def joined(parts: Sequence[Answers]) -> Answers:
    """Answers of several batches under one another."""
    return Answers(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Answers)})
