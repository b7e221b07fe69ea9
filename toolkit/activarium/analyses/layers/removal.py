"""What a model loses when one block is taken out: the causal reference for every measure of redundancy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import changed_answers
from activarium.edits import SkipBlock
from activarium.protocols import Runner


@dataclass(frozen=True, eq=False)
class Removal:
    """Sums over the answers of each sequence, `(sequence, block)`, and how many answers there were.

    Attributes:
        kl: KL(full ‖ removed), nats.
        agreement: Answers whose top choice stayed the same.
        answers: Rows (or examples) that answer, `(sequence,)`.
        loss: Rise of the negative log-likelihood of what should be answered, nats; None where that is never known.
        predicted: Answers where it is known, `(sequence,)`.
        full_loss: The full model's own, summed, `(sequence,)`.
    """

    kl: np.ndarray
    agreement: np.ndarray
    answers: np.ndarray
    loss: np.ndarray | None
    predicted: np.ndarray
    full_loss: np.ndarray


def remove_each(model: Runner, inputs: Any, blocks: Sequence[str], progress: bool) -> Removal:
    """Run the inputs with each block replaced by the identity (`SkipBlock`).

    Raises:
        InputError: The answer is no distribution over tokens or classes.
    """
    found = changed_answers(model, inputs, {b: [SkipBlock(b)] for b in blocks}, progress=progress, doing="removing")
    each = list(found.values())
    kl, agreement = (np.stack([a.sums(getattr(a, name).astype(np.float64))[0] for a in each], 1) for name in ("kl", "agrees"))
    rise = np.stack([a.sums(a.loss - a.full_loss, a.known)[0] for a in each], 1)
    full, predicted = each[0].sums(each[0].full_loss, each[0].known)
    answers = each[0].sums(each[0].kl)[1]
    return Removal(kl, agreement, answers, rise if predicted.any() else None, predicted, full)
