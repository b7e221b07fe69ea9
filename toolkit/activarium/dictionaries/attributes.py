"""What is known of rows: attributes, each with a value for every row, and whether one of them gives another away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from activarium.errors import InputError

Value = str | int | float | bool
Attributes = Mapping[str, Sequence[Any] | np.ndarray]


def plain(attributes: Attributes, rows: int) -> dict[str, list[Value]]:
    """Attribute → one plain value per row.

    Raises:
        InputError: There is no attribute, one has another number of values than there are rows, or a value is no word or number.
    """
    if not attributes:
        raise InputError("No attribute is given; name at least one, such as {'name': ['Anna', 'Ben', …]}, with a value for each row.")
    made = {name: [v.item() if isinstance(v, np.generic) else v for v in values] for name, values in attributes.items()}
    for name, values in made.items():
        if len(values) != rows:
            raise InputError(f"Attribute {name!r} has {len(values)} values for {rows} rows; give one for each.")
        strange = next((v for v in values if not isinstance(v, Value)), None)
        if strange is not None:
            raise InputError(
                f"Attribute {name!r} has a value of type {type(strange).__name__}; a value is a word, a number or True or False."
            )
    return made


def values_of(column: Sequence[Value]) -> tuple[Value, ...]:
    """The values that occur, in order."""
    return tuple(sorted(set(column), key=lambda v: (isinstance(v, str), v)))


def one_hot(column: Sequence[Value], values: Sequence[Value]) -> np.ndarray:
    """`row value` in float64; a value that is not among them gives a row of zeros."""
    return np.array([[v == w for w in values] for v in column], dtype=np.float64).reshape(len(column), len(values))


def dependence(attributes: Mapping[str, Sequence[Value]]) -> dict[str, float]:
    """How much each pair of attributes tells about one another: 0 nothing, 1 all (Cramér's V with its bias taken away).

    Source:
        Bergsma 2013, A bias-correction for Cramér's V and Tschuprow's T.
    """
    return {f"{a} and {b}": _cramer(attributes[a], attributes[b]) for a, b in combinations(attributes, 2)}


def _cramer(one: Sequence[Value], other: Sequence[Value]) -> float:
    table = one_hot(one, values_of(one)).T @ one_hot(other, values_of(other))
    rows, (height, width) = table.sum(), table.shape
    if min(height, width) < 2 or rows < 2:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / rows
    chance = (height - 1) * (width - 1) / (rows - 1)
    size = max(0.0, ((table - expected) ** 2 / expected).sum() / rows - chance)
    smaller = min(height - (height - 1) ** 2 / (rows - 1), width - (width - 1) ** 2 / (rows - 1)) - 1
    return float(np.sqrt(size / smaller)) if smaller > 0 else 0.0
