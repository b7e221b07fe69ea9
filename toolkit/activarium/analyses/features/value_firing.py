"""How well the firing of features tells values of attributes: counts that add up, and precision, recall and F1 of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from activarium.dictionaries.attributes import Value, one_hot, values_of


@dataclass(frozen=True, eq=False)
class Firing:
    """Counts over rows of one attribute; those of parts of the rows add up to those of the whole.

    Attributes:
        both: `value feature`: rows with the value in which the feature fires.
        fires: `(feature,)`: rows in which it fires.
        rows: `(value,)`: rows with the value.
    """

    both: np.ndarray
    fires: np.ndarray
    rows: np.ndarray

    @staticmethod
    def of(active: np.ndarray, column: Sequence[Value], values: Sequence[Value] | None = None) -> Firing:
        """From which features are active, boolean `row feature`, and the value of each row."""
        having = one_hot(column, values_of(column) if values is None else values)
        return Firing(having.T @ active, active.sum(0).astype(np.float64), having.sum(0))

    def __sub__(self, other: Firing) -> Firing:
        return Firing(self.both - other.both, self.fires - other.fires, self.rows - other.rows)

    @property
    def precision(self) -> np.ndarray:
        """`value feature`: share of its firings that have the value; 0 where it never fires."""
        return _ratio(self.both, np.broadcast_to(self.fires, self.both.shape))

    @property
    def recall(self) -> np.ndarray:
        """`value feature`: share of the value's rows in which it fires; 0 where no row has the value."""
        return _ratio(self.both, np.broadcast_to(self.rows[:, None], self.both.shape))

    @property
    def f1(self) -> np.ndarray:
        """`value feature`: 2 · both / (firings + rows), the harmonic mean of the two; 0 where nothing fires and no row has the value."""
        return _ratio(2 * self.both, self.fires + self.rows[:, None])


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
