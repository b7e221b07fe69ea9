"""Overlay: signed values over the tokens of a text or the patches of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium import pictures
from activarium.errors import AxisError, InputError
from activarium.results._grid import Grid
from activarium.results._result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Overlay(Result):
    """Signed values laid over the tokens of one text or the patches of one image, at their own resolution.

    Attributes:
        values: `(map, position)` over tokens, or `(map, y, x)` over an image grid. One map per name.
        names: What each map shows.
        tokens: The tokens, for text.
        image: The picture underneath, uint8 `(height, width, 3)`, for images.
        mask: Ground truth if known, boolean `(height, width)`.
    """

    values: np.ndarray
    names: tuple[str, ...]
    tokens: tuple[str, ...] | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "names", tuple(self.names))
        super().__post_init__()
        if (self.tokens is None) == (self.image is None):
            raise InputError("An Overlay lies over tokens or over an image: give exactly one of them.")
        wanted = 2 if self.tokens is not None else 3
        if self.values.ndim != wanted or len(self.values) != len(self.names):
            raise AxisError(f"Overlay values have shape {self.values.shape}; wanted {wanted} axes, the first with {len(self.names)} maps.")
        if self.tokens is not None and self.values.shape[1] != len(self.tokens):
            raise AxisError(f"Overlay has {self.values.shape[1]} values for {len(self.tokens)} tokens; give one each.")

    def _columns(self) -> dict[str, Any]:
        axes = ("map", "position") if self.tokens else ("map", "height", "width")
        grid = Grid(self.values, axes=axes, labels={"map": self.names})
        columns = grid._columns()
        if self.tokens is not None:
            columns["token"] = np.asarray(self.tokens, dtype=object)[np.indices(self.values.shape)[1].ravel()]
        return columns

    def _picture(self) -> str:
        if self.tokens is not None:
            return "".join(pictures.tokens(self.tokens, v, n) for n, v in zip(self.names, self.values, strict=True))
        return "".join(pictures.heatmap(v, n, self.unit) for n, v in zip(self.names, self.values, strict=True))
