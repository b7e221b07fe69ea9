"""The counts behind `lazy_neurons`: whole numbers only, added up in any order with the same bits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from activarium.errors import AxisError


def _no_sequences() -> defaultdict[int, np.ndarray]:
    return defaultdict(partial(np.zeros, 2, np.int64))


@dataclass(eq=False)
class NonzeroCounts:
    """How often each neuron of one layer was not exactly zero.

    All state is int64. A counter in the activations' own type would stop at 256 (bfloat16) or at 16 777 216 (float32).
    Two states of disjoint rows add up to the state of all rows, bit for bit, whatever the split or the order.

    Attributes:
        fires: Rows in which each neuron is not zero, `d_mlp`.
        histogram: Rows that have exactly 0, 1, … d_mlp nonzero neurons, `d_mlp + 1`.
        sequences: Example → its nonzero numbers and its rows.
        negative: Numbers below zero; -0.0 is none of them.
        nan: Numbers that are NaN.
        infinite: Numbers that are infinite.
    """

    fires: np.ndarray
    histogram: np.ndarray
    sequences: defaultdict[int, np.ndarray] = field(default_factory=_no_sequences)
    negative: int = 0
    nan: int = 0
    infinite: int = 0

    @classmethod
    def empty(cls, d_mlp: int) -> NonzeroCounts:
        """The state before any row."""
        return cls(np.zeros(d_mlp, np.int64), np.zeros(d_mlp + 1, np.int64))

    def update(self, values: Tensor, examples: np.ndarray) -> NonzeroCounts:
        """Count one batch, `row d_mlp`, with the example number of each row; gives itself back.

        -0.0 equals 0 and is not counted. NaN differs from 0 and would be: it is counted apart, and left to the caller.
        """
        if values.shape[1] != self.d_mlp:
            raise AxisError(f"These counts are of {self.d_mlp} neurons; the batch has {values.shape[1]}. Count each layer on its own.")
        fired = values.detach() != 0
        each = fired.sum(1, dtype=torch.int64).cpu().numpy()
        self.fires += fired.sum(0, dtype=torch.int64).cpu().numpy()
        self.histogram += np.bincount(each, minlength=self.d_mlp + 1)
        names, row = np.unique(np.asarray(examples, dtype=np.int64), return_inverse=True)
        both = np.zeros((len(names), 2), np.int64)
        np.add.at(both, row, np.stack([each, np.ones_like(each)], axis=1))  # np.bincount with weights would count in float64
        for name, pair in zip(names.tolist(), both, strict=True):
            self.sequences[name] += pair
        self.negative += int((values < 0).sum())
        self.nan += int(values.isnan().sum())
        self.infinite += int(values.isinf().sum())
        return self

    def __add__(self, other: NonzeroCounts) -> NonzeroCounts:
        """Both counts together, as a new state."""
        if self.d_mlp != other.d_mlp:
            raise AxisError(f"Counts of {self.d_mlp} and {other.d_mlp} neurons cannot be added. Add counts of one layer of one model.")
        made = NonzeroCounts(self.fires + other.fires, self.histogram + other.histogram)
        for counts in (self, other):
            for example, pair in counts.sequences.items():
                made.sequences[example] += pair
            made.negative += counts.negative
            made.nan += counts.nan
            made.infinite += counts.infinite
        return made

    @property
    def per_sequence(self) -> np.ndarray:
        """Nonzero numbers and rows of each sequence, `(sequence, 2)`, in the order of the example numbers."""
        return np.array([self.sequences[e] for e in sorted(self.sequences)], dtype=np.int64).reshape(-1, 2)

    @property
    def rows(self) -> int:
        """Rows counted."""
        return int(self.histogram.sum())

    @property
    def d_mlp(self) -> int:
        """Neurons of the layer."""
        return len(self.fires)

    @property
    def percent(self) -> float:
        """Nonzero numbers among all, in percent; one division of whole numbers, so it is exactly rounded."""
        return 100 * int(self.fires.sum()) / (self.rows * self.d_mlp) if self.rows else float("nan")

    @property
    def dead(self) -> int:
        """Neurons that never fired."""
        return int((self.fires == 0).sum())

    @property
    def always_on(self) -> int:
        """Neurons that fired in every row."""
        return int((self.fires == self.rows).sum())
