"""What a model loses when one block is taken out: the causal reference for every measure of redundancy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, examples_of
from activarium.edits import SkipBlock
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.protocols import Runner

AT_ONCE = 16  # examples in one forward


@dataclass(frozen=True, eq=False)
class Removal:
    """Sums over the answers of each sequence, `(sequence, block)`, and how many answers there were.

    Attributes:
        kl: KL(full ‖ removed), nats.
        agreement: Answers whose top choice stayed the same.
        answers: Rows (or examples) that answer, `(sequence,)`.
        loss: Rise of the next token's negative log-likelihood, nats; None where the model predicts no next token.
        predicted: Rows with a next token, `(sequence,)`.
        full_loss: The full model's own, summed, `(sequence,)`.
    """

    kl: np.ndarray
    agreement: np.ndarray
    answers: np.ndarray
    loss: np.ndarray | None
    predicted: np.ndarray
    full_loss: np.ndarray


def remove_each(model: Runner, inputs: Any, blocks: Sequence[str], progress: bool) -> Removal:
    """Run the inputs with each block replaced by the identity (`SkipBlock`), some examples at a time.

    Raises:
        InputError: The answer is no distribution over tokens or classes.
    """
    encoded = model.inputs(inputs)
    parts = []
    with progress_bar(progress, "removing", len(encoded)) as advance:
        for start in range(0, len(encoded), AT_ONCE):
            here = range(start, min(start + AT_ONCE, len(encoded)))
            parts.append(_measured(model, encoded.select(here), blocks))
            advance(len(here))
    kl, agreement, loss, answers, predicted, full = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Removal(kl, agreement, answers, loss if predicted.any() else None, predicted, full)


def _measured(model: Runner, batch: Any, blocks: Sequence[str]) -> tuple[np.ndarray, ...]:
    full = _logits(model, batch, None)
    owner = np.unique(examples_of(full), return_inverse=True)[1] if "row" in full.axes else np.arange(len(full))
    count = int(owner.max()) + 1
    wide = full.tensor.double().log_softmax(1)
    rows, following = _next_tokens(model, full)
    plain = _loss(wide, rows, following)
    found = [_compared(wide, removed, rows, following) for removed in _removed(model, batch, blocks)]
    owners = owner, owner, owner[rows]
    kl, same, loss = (np.stack([_per_sequence(f[i], o, count) for f in found], 1) for i, o in enumerate(owners))
    whole = _per_sequence(plain, owner[rows], count)
    return kl, same, loss - whole[:, None], np.bincount(owner, minlength=count), np.bincount(owner[rows], minlength=count), whole


def _removed(model: Runner, batch: Any, blocks: Sequence[str]) -> Iterator[Tensor]:
    for block in blocks:
        yield _logits(model, batch, block).tensor.double().log_softmax(1)


def _logits(model: Runner, batch: Any, block: str | None) -> Activations:
    with torch.no_grad():
        logits = model.run(batch, read="logits", edits=[SkipBlock(block)] if block else ())["logits"]
    if logits.axes not in (("row", "vocab"), ("example", "class")):
        raise InputError(
            f"{model.name} answers with axes {' '.join(logits.axes)!r}; the cost of removing a block needs 'row vocab' or 'example class'. "
            "Leave model= and inputs= out."
        )
    return logits


def _compared(full: Tensor, removed: Tensor, rows: np.ndarray, following: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weight = full.exp()
    kl = torch.where(weight > 0, weight * (full - removed), 0).sum(1).clamp_min(0)
    same = (full.argmax(1) == removed.argmax(1)).double()
    return kl.cpu().numpy(), same.cpu().numpy(), _loss(removed, rows, following)


def _loss(logs: Tensor, rows: np.ndarray, following: Tensor) -> np.ndarray:
    return -logs[torch.as_tensor(rows, device=logs.device), following.to(logs.device)].cpu().numpy()


def _next_tokens(model: Runner, logits: Activations) -> tuple[np.ndarray, Tensor]:
    """Rows that predict a token that really comes next, and that token. A model that sees later rows predicts none."""
    nothing = np.zeros(0, dtype=np.int64), torch.zeros(0, dtype=torch.long)
    if logits.axes != ("row", "vocab") or not model.looks_back(logits.space):
        return nothing
    token, example = column(logits, "token", -1).astype(np.int64), examples_of(logits)
    rows = np.flatnonzero((example[1:] == example[:-1]) & (token[1:] >= 0))
    return rows, torch.as_tensor(token[rows + 1])


def _per_sequence(values: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(owner, values, minlength=count)
