"""Best features of known values, chosen on one half of the rows and judged on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium.analyses.features.value_firing import Firing
from activarium.analyses.layers.intervals import Intervals
from activarium.dictionaries.attributes import Value, values_of
from activarium.maths import bootstrap_interval

PRECISE, COVERED = 0.9, 0.9


@dataclass(frozen=True, eq=False)
class Found:
    """Best features of one attribute's values: chosen on one half of the rows, judged on the other.

    Attributes:
        names: `attribute=value`.
        best: Feature of the highest F1 in the half that chooses, for each value.
        held: Counts of all features in the other half.
        sums: Above and below of the F1 of the best ones, `row value` of the half that judges.
        ends: Interval of it, `(2, value)`.
        unions: For each value how many precise features cover it, and its share of held-out rows in which one of them fires.
    """

    names: tuple[str, ...]
    best: np.ndarray
    held: Firing
    sums: tuple[np.ndarray, np.ndarray]
    ends: np.ndarray
    unions: list[tuple[int, float]]

    @property
    def at(self) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(self.best)), self.best

    @property
    def f1(self) -> np.ndarray:
        return self.held.f1[self.at]

    @staticmethod
    def of(attribute: str, active: np.ndarray, column: Sequence[Value], half: np.ndarray, draw: Mapping[str, Any]) -> Found:
        values = values_of(column)
        mine, rest = ([v for v, h in zip(column, half, strict=True) if h == side] for side in (True, False))
        chosen, held = Firing.of(active[half], mine, values), Firing.of(active[~half], rest, values)
        best = chosen.f1.argmax(1)
        having = np.array([[v == w for w in values] for v in rest])
        fires = active[~half][:, best]
        above, below = 2.0 * (fires & having), 1.0 * fires + having
        _, ends = Intervals(**draw)(above, below)
        unions = [
            _union(active[half], active[~half], np.array([v == w for v in mine]), having[:, i], chosen.precision[i])
            for i, w in enumerate(values)
        ]
        return Found(tuple(f"{attribute}={v}" for v in values), best, held, (above, below), ends, unions)


def _union(active: np.ndarray, held: np.ndarray, having: np.ndarray, held_having: np.ndarray, precision: np.ndarray) -> tuple[int, float]:
    """How many precise features it takes, and the share of held-out rows with the value in which any of them fires."""
    open_, taken = precision >= PRECISE, []
    left = having.copy()
    while left.sum() > (1 - COVERED) * having.sum():
        gain = np.where(open_, active[left].sum(0), 0)
        best = int(gain.argmax()) if len(gain) else 0
        if not len(gain) or gain[best] == 0:
            break
        taken.append(best)
        left &= ~active[:, best]
    rows = held[held_having]
    return len(taken), float(rows[:, taken].any(1).mean()) if taken and len(rows) else 0.0


def mean_f1(found: Sequence[Found], draw: Mapping[str, Any]) -> tuple[float, float, float]:
    """Mean over all values of the held-out F1 of their best features, and its interval."""
    above, below = (np.concatenate([f.sums[i] for f in found], 1) for i in (0, 1))
    mean, some = float(np.concatenate([f.f1 for f in found]).mean()), below.sum(0) > 0
    if len(above) < 2 or not some.any():
        return mean, float("nan"), float("nan")
    _, _, drawn = bootstrap_interval(above[:, some], below[:, some], **draw)
    tail = (1 - draw["confidence"]) / 2
    # A value that is not among the rows drawn and whose feature is silent there has no F1 in that draw, and is left out of it.
    low, high = np.quantile(np.nanmean(drawn, 1) * some.mean(), [tail, 1 - tail])
    return mean, float(low), float(high)
