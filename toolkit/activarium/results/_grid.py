"""Grid: numbers on named axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from activarium import pictures
from activarium.errors import AxisError
from activarium.results._result import Result

Labels = Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False, repr=False)
class Grid(Result):
    """Numbers on named axes: layer × position, layer × head, query × key.

    Attributes:
        values: Array with one dimension per axis.
        axes: Axis names, `"layer position"`.
        labels: Names along an axis; an axis without labels is counted from 0.
        masks: Named boolean arrays of the shape of `values`. Drawings know `known_zero` (exactly 0 without a run) and
            `no_row` (no such token or patch: blank); others are hatched under their own name.
        per_example: The same values before averaging, with a leading `example` axis.
    """

    values: np.ndarray
    axes: tuple[str, ...]
    labels: Labels = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_example: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "axes", _words(self.axes))
        object.__setattr__(self, "masks", {name: np.asarray(mask, bool) for name, mask in self.masks.items()})
        super().__post_init__()
        _match_axes(self.values, self.axes, self.labels)
        for name, mask in self.masks.items():
            if mask.shape != self.values.shape:
                raise AxisError(f"Mask {name!r} has shape {mask.shape}; the values have {self.values.shape}. Give one entry per value.")

    def label(self, axis: str) -> list[str]:
        """Names along one axis."""
        if axis not in self.axes:
            raise AxisError(f"This grid has axes {' '.join(self.axes)!r}; there is no axis {axis!r}.")
        return [str(n) for n in self.labels.get(axis, range(self.values.shape[self.axes.index(axis)]))]

    def top(self, count: int = 10) -> list[tuple[tuple[str, ...], float]]:
        """The cells of largest size, with their names, largest first."""
        flat = self.values.ravel()
        size = np.abs(np.where(np.isnan(flat), 0, flat))
        order = np.argsort(-size.astype(np.float64), kind="stable")[:count]  # minus an unsigned number is a large one
        names = [self.label(a) for a in self.axes]
        where = np.array(np.unravel_index(order, self.values.shape)).T
        return [(tuple(n[i] for n, i in zip(names, cell, strict=True)), float(flat[j])) for cell, j in zip(where, order, strict=True)]

    def _columns(self) -> dict[str, Any]:
        index = np.indices(self.values.shape).reshape(self.values.ndim, -1)
        columns: dict[str, Any] = {a: np.asarray(self.label(a), dtype=object)[i] for a, i in zip(self.axes, index, strict=True)}
        return columns | {"value": self.values.ravel()}

    def _picture(self) -> str:
        flat = self.values.reshape(-1, self.values.shape[-1]) if self.values.ndim > 1 else self.values[None]
        masks = {name: mask.reshape(flat.shape) for name, mask in self.masks.items()}
        return pictures.heatmap(flat, self.title, self.unit, masks=masks)

    def _summary(self) -> list[list[str]]:
        return [[*self.axes, self.unit or "value"], *[[*names, pictures.number(v)] for names, v in self.top()]]


def _words(axes: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(axes.split()) if isinstance(axes, str) else tuple(axes)


def _match_axes(values: np.ndarray, axes: tuple[str, ...], labels: Labels) -> None:
    if values.ndim != len(axes):
        raise AxisError(f"Values of shape {values.shape} have {values.ndim} axes; axes {' '.join(axes)!r} name {len(axes)}.")
    for axis, names in labels.items():
        if axis not in axes:
            raise AxisError(f"Labels are given for {axis!r}; the axes are {' '.join(axes)!r}.")
        if len(names) != values.shape[axes.index(axis)]:
            raise AxisError(f"Axis {axis!r} has {values.shape[axes.index(axis)]} places but {len(names)} labels; give one each.")
