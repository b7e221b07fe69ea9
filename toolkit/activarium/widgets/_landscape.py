"""Landscape: the sizes of a grid's cells as mountains, so that a massive activation cannot be overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import traitlets

from activarium import pictures
from activarium.results import Grid, Result
from activarium.widgets import landscape_pictures, payload
from activarium.widgets.base import Widget, bundle, stylesheet
from activarium.widgets.grid_view import keys, words_of

MOST_ROWS, MOST_COLUMNS = 128, 256  # more ridges could neither be told apart nor turned smoothly
SPIKES = 5


class Landscape(Widget):
    """The sizes of a grid's cells as mountains to turn, the highest spikes named.

    A Grid is shown as a `Heatmap` unless this is asked for: `act.show(grid, as_="Landscape")`, or by the Grid itself with
    `diagnostics={"view": "Landscape"}`. Large grids are cut into blocks; each stands for its value furthest from 0, at its own place.

    Attributes:
        height: `linear`, or `log`: logarithmic above about the median size.
        yaw: Degrees by which the scene is turned; at 0 the first row is in front.
        pitch: Degrees by which it is seen from above: 90 looks straight down.
    """

    shows: ClassVar[type[Result]] = Grid
    needs: ClassVar[str] = "asking"
    result: Grid
    _esm = bundle("landscape")
    _css = stylesheet("landscape")

    height = traitlets.Enum(("linear", "log"), "linear").tag(sync=True)
    yaw = traitlets.Float(-24.0).tag(sync=True)
    pitch = traitlets.Float(28.0, min=5.0, max=90.0).tag(sync=True)

    def __init__(self, result: Grid, **traits: Any) -> None:
        super().__init__(result, **traits)
        values = payload.floats(result.values)
        if pictures.NO_ROW in result.masks:
            values = np.where(result.masks[pictures.NO_ROW], np.array(np.nan, values.dtype), values)
        rows, columns = values.shape
        steps = (-(-rows // MOST_ROWS), -(-columns // MOST_COLUMNS))
        heights, offsets = blocks(values, steps)
        places = largest(values, SPIKES)
        self._arrays = {"values": heights, "offsets": offsets.astype(np.float32)}
        masks = {name: mask for name, mask in result.masks.items() if name != pictures.NO_ROW and mask.any()}
        if masks:
            self._arrays["masked"] = _at(np.any([*masks.values()], axis=0), offsets, steps).astype(np.uint8)
        self._arrays |= {"spikes": places.astype(np.float64), "spike_values": values[places[:, 0], places[:, 1]]}
        table, self.data = payload.pack(self._arrays)
        sizes = np.abs(values[np.isfinite(values) & (values != 0)])
        self.spec = words_of(result) | {
            "steps": list(steps),
            "top": float(sizes.max(initial=0)),
            "median": float(np.median(sizes)) if sizes.size else 0.0,
            "masks": list(masks),
            "arrays": table,
        }

    @classmethod
    def accepts(cls, result: Result) -> bool:
        """Grids of two axes with at least one finite value."""
        return isinstance(result, Grid) and result.values.ndim == 2 and result.values.dtype.kind in "bfiu" and _some(result.values)

    def value(self, place: Mapping[str, int]) -> float:
        """The value at a place such as `pointed` or one of `pinned`."""
        return float(self.result.values[tuple(place[key] for key in keys(self.result.axes))])

    def answer(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The exact value of one cell, which its block may not show."""
        if question.get("ask") == "cell":
            value = self.result.values[int(question["y"]), int(question["x"])]
            return {}, [np.float64(value).astype("<f8").tobytes()]
        return super().answer(question)

    def png(self) -> bytes:
        """The landscape from its usual side, with the names of its spikes where Pillow can write."""
        return pictures.png(landscape_pictures.raster(self.result, self._arrays, self.spec, log=self.height == "log"))


def blocks(values: np.ndarray, steps: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each block its value furthest from 0, and where in the block it stands, counted row by row; NaN where all are."""
    rows, columns = (-(-size // step) for size, step in zip(values.shape, steps, strict=True))
    whole = np.full((rows * steps[0], columns * steps[1]), np.nan, values.dtype)
    whole[: values.shape[0], : values.shape[1]] = values
    cells = whole.reshape(rows, steps[0], columns, steps[1]).swapaxes(1, 2).reshape(rows, columns, -1)
    offsets = np.where(np.isnan(cells), -1, np.abs(cells)).argmax(-1)
    return np.ascontiguousarray(np.take_along_axis(cells, offsets[..., None], -1)[..., 0]), offsets


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Row and column of the values furthest from 0, largest first; of equal ones the earlier."""
    sizes = np.where(np.isnan(values), 0, np.abs(values)).ravel()
    if sizes.size > count:
        found = np.flatnonzero(sizes >= np.partition(sizes, -count)[-count])
    else:
        found = np.arange(sizes.size)
    found = found[sizes[found] > 0]
    order = found[np.argsort(-sizes[found], kind="stable")[:count]]
    return np.stack(np.unravel_index(order, values.shape), axis=1)


def _at(mask: np.ndarray, offsets: np.ndarray, steps: tuple[int, int]) -> np.ndarray:
    """Is the cell that stands for its block masked?"""
    down, across = np.indices(offsets.shape)
    rows, columns = down * steps[0] + offsets // steps[1], across * steps[1] + offsets % steps[1]
    return mask[rows.clip(max=mask.shape[0] - 1), columns.clip(max=mask.shape[1] - 1)]


def _some(values: np.ndarray) -> bool:
    return values.size > 0 and bool(np.isfinite(values).any())
