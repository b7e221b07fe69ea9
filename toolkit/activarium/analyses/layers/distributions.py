"""Each layer's answer at each row as numbers: probabilities, ranks, entropy and distance to the final answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError
from activarium.protocols import Runner

KEPT = 256 << 20  # bytes of logits that are kept; beyond, a layer is read again when it is asked for


class Readout:
    """The logits of every layer, `row vocab`, in order, as often as asked for."""

    def __init__(self, model: Runner, layers: Sequence[Tensor]) -> None:
        self.model, self.layers = model, layers
        self.final = _logits(model, layers[-1])
        self._kept: dict[int, Tensor] = {len(layers) - 1: self.final}

    def __iter__(self) -> Iterator[Tensor]:
        small = self.final.nbytes * len(self.layers) <= KEPT
        for i, layer in enumerate(self.layers):
            logits = self._kept[i] if i in self._kept else _logits(self.model, layer)
            if small:
                self._kept[i] = logits
            yield logits


@dataclass(frozen=True, eq=False)
class Lens:
    """What the layers answer.

    Attributes:
        final: The last layer's logits, `row vocab`.
        answer_row: The row that holds the model's one answer (an image's cls), or None where each row has its own.
        entropy: Nats, `(layer, row)`.
        kl: KL(final ‖ layer), nats, `(layer, row)`.
        answers: Ids of the most probable answers, `(layer, row, top)`.
        shares: Their probabilities.
        logits: All of it again, layer by layer.
    """

    final: Tensor
    answer_row: int | None
    entropy: np.ndarray
    kl: np.ndarray
    answers: np.ndarray
    shares: np.ndarray
    logits: Readout

    def follow(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability and rank of one id per row through the layers, `(layer, row)`; NaN where the id is -1."""
        known = torch.as_tensor(wanted >= 0)
        ids = torch.as_tensor(np.maximum(wanted, 0), dtype=torch.long)[:, None]
        probability, rank = [], []
        for logits in self.logits:
            chosen = logits.gather(1, ids.to(logits.device))
            probability.append(torch.where(known, logits.softmax(1).gather(1, ids.to(logits.device))[:, 0].cpu().double(), torch.nan))
            rank.append(torch.where(known, (logits > chosen).sum(1).cpu().double() + 1, torch.nan))
        return torch.stack(probability).numpy(), torch.stack(rank).numpy()

    def evidence(self, answer: int) -> np.ndarray:
        """Logit of one class minus the mean over classes, `(layer, row)`."""
        return np.stack([(e[:, answer] - e.mean(1)).cpu().double().numpy() for e in self.logits])


def read_layers(model: Runner, layers: Sequence[Tensor], top: int, answer_row: int | None) -> Lens:
    """Put every layer through the model's readout.

    Args:
        model: Only its `readout` runs.
        layers: The residual stream at each layer, `row d_model`.
        top: How many answers to keep.
        answer_row: The row all rows are compared with, or None for each with itself.
    """
    readout = Readout(model, layers)
    final = readout.final
    compared = final.log_softmax(1) if answer_row is None else final.log_softmax(1)[[answer_row]]
    entropy, kl, answers, shares = [], [], [], []
    for logits in readout:
        logarithm = logits.log_softmax(1)
        entropy.append(torch.special.entr(logarithm.exp()).sum(1))
        # Rounding can leave a distance of -1e-8 between equal distributions; it is none.
        weight = compared.exp()
        kl.append(torch.where(weight > 0, weight * (compared - logarithm), 0).sum(1).clamp_min(0))
        best = logarithm.exp().topk(min(top, logarithm.shape[1]), dim=1)
        answers.append(best.indices)
        shares.append(best.values)
    whole = [torch.stack(x).cpu().numpy() for x in (entropy, kl, answers, shares)]
    return Lens(final, answer_row, *whole, logits=readout)


def settled(rank: np.ndarray) -> int | None:
    """The first layer from which on the rank stays 1, or None if it is not 1 at the end."""
    wrong = np.flatnonzero(rank != 1)
    first = int(wrong[-1]) + 1 if len(wrong) else 0
    return first if first < len(rank) else None


def _logits(model: Runner, layer: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model.readout(layer)
    if logits.ndim != 2 or len(logits) != len(layer):
        raise InputError(
            f"The readout of {model.name} gave shape {tuple(logits.shape)} for {len(layer)} rows; the lens needs one answer per row. "
            "Heads that pool several rows have no logit lens."
        )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
