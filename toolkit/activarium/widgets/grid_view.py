"""What the views of a Grid share: which numbers travel, and what the kernel answers about the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import traitlets

from activarium import pictures
from activarium.errors import InputError
from activarium.results import Grid, Result
from activarium.widgets import payload
from activarium.widgets.base import Widget

EXACT_CELLS = 1 << 18  # up to here every value travels as a float and reads out without a kernel
PREVIEW_SIDE = 1024
PICTURE_SIDE = 512
PREVIEW_BYTES = 4 << 20  # previews of all slices travel together up to this size
REGION_CELLS = 1 << 22  # most cells one question may ask for
MASK_CELLS = 1 << 22


class GridView(Widget):
    """A grid whose last two axes are drawn and whose others are chosen; `Heatmap` and others finish it.

    Attributes:
        clip: Name of the colour range: `robust` (the outermost half percent clipped; offered where that matters), `full` or `tight`.
        frame: Which slice over the leading axes is drawn, counted row by row.
    """

    shows: ClassVar[type[Result]] = Grid
    result: Grid

    clip = traitlets.Unicode().tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)

    def __init__(self, result: Grid, **traits: Any) -> None:
        super().__init__(result, **traits)
        self._slices = _slices(result.values)
        self._ranges = payload.ranges(self._slices)
        self._extent = payload.extent(self._slices)
        self.clip = self._clip
        self._send_payload()
        self.observe(self._renew, ["clip", "frame"])

    @classmethod
    def accepts(cls, result: Result) -> bool:
        """Grids with at least one axis and one value."""
        return isinstance(result, Grid) and result.values.ndim > 0 and result.values.size > 0 and result.values.dtype.kind in "bfiu"

    @property
    def exact(self) -> bool:
        """Do all values travel, so that they read out exactly without a kernel?"""
        return self._slices.size <= EXACT_CELLS

    def value(self, place: Mapping[str, int]) -> float:
        """The value at a place such as `pointed` or one of `pinned`."""
        return float(self.result.values[tuple(place[key] for key in self.spec["keys"])])

    def png(self) -> bytes:
        """The slice on screen, each pixel the extreme of its block."""
        cells = self._slices[self.frame]
        steps = payload.steps_for(cells.shape, PICTURE_SIDE)
        small = payload.pool(cells, steps).astype(float)
        scale = max(1, min(24, 480 // max(small.shape)))
        pixels = pictures.paint(small, self._ranges[self._clip]).repeat(scale, 0).repeat(scale, 1)
        masks = {name: mask.reshape(self._slices.shape)[self.frame, :: steps[0], :: steps[1]] for name, mask in self.result.masks.items()}
        return pictures.png(pictures.marked(pixels, masks))

    @property
    def _clip(self) -> str:
        return self.clip if self.clip in self._ranges else next(iter(self._ranges))

    def answer(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """One exact cell, or a rectangle of cells pooled by `steps`."""
        ask, frame = question.get("ask"), int(question.get("frame", 0))
        if ask == "cell":
            value = self._slices[frame, int(question["y"]), int(question["x"])]
            return {}, [np.float64(value).astype("<f8").tobytes()]
        if ask == "region":
            return self._region(frame, question)
        return super().answer(question)

    def _region(self, frame: int, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        y, x, height, width = (int(question[k]) for k in ("y", "x", "height", "width"))
        if height * width > REGION_CELLS and min(question["steps"]) <= 1:
            raise InputError(f"A region of {height}×{width} cells was asked for; at most {REGION_CELLS} travel at once. Zoom in.")
        cells = self._slices[frame, y : y + height, x : x + width]
        small = payload.floats(payload.pool(cells, (int(question["steps"][0]), int(question["steps"][1]))))
        return {"shape": list(small.shape)}, [np.ascontiguousarray(small).tobytes()]

    def _renew(self, _: Any) -> None:
        """The browser asks for another slice or range: what it holds may be too coarse for that."""
        spec = self.spec
        stale = spec["coded"] != list(self._ranges[self._clip]) or not (spec["whole"] or spec["frame"] == self.frame)
        if not self.exact and stale:
            with self._lock:
                self._send_payload()

    def _send_payload(self) -> None:
        with self.hold_sync():
            spec = words_of(self.result) | {
                "ranges": {name: list(r) for name, r in self._ranges.items()},
                "data": list(self._extent),
                "coded": list(self._ranges[self._clip]),
                "exact": self.exact,
                "peak": self._peak(),
            }
            extra, self.data = self._all_values() if self.exact else self._preview()
            self.spec = spec | extra

    def _peak(self) -> dict[str, int]:
        """Where the value furthest from 0 is; its size is known, so looking for it costs one comparison."""
        low, high = self._extent
        at = int((self._slices == (high if high >= -low else low)).argmax())
        return {key: int(i) for key, i in zip(keys(self.result.axes), np.unravel_index(at, self.result.values.shape), strict=True)}

    def _all_values(self) -> tuple[dict[str, Any], bytes]:
        values = payload.floats(self.result.values)
        table, data = payload.pack({"values": values} | self._masks() | self._more())
        return {
            "arrays": table,
            "steps": [1, 1],
            "whole": True,
            "frame": self.frame,
            "masks": list(self.result.masks)[:8],
            "unshown": [],
        }, data

    def _more(self) -> dict[str, np.ndarray]:
        """Arrays that a view adds to the grid's own."""
        return {}

    def _masks(self) -> dict[str, np.ndarray]:
        """One byte per cell, a bit per mask."""
        bits = [np.asarray(m, bool).astype(np.uint8) << i for i, m in enumerate(list(self.result.masks.values())[:8])]
        return {"masks": np.bitwise_or.reduce(bits)} if bits else {}

    def _preview(self) -> tuple[dict[str, Any], bytes]:
        steps = payload.steps_for(self._slices.shape[1:], PREVIEW_SIDE)
        cells = -(-self._slices.shape[1] // steps[0]) * -(-self._slices.shape[2] // steps[1])
        whole = cells * len(self._slices) <= PREVIEW_BYTES
        chosen = self._slices if whole else self._slices[self.frame : self.frame + 1]
        codes = np.stack([payload.quantise(payload.pool(s, steps), self._ranges[self._clip]) for s in chosen])
        # Masks deflate to almost nothing, but the page has to unfold them: above this they stay in the kernel.
        travel = self._slices.size <= MASK_CELLS
        table, data = payload.pack({"preview": codes} | (self._masks() if travel else {}) | self._more())
        shown, unshown = (list(self.result.masks)[:8], []) if travel else ([], list(self.result.masks))
        words = {"arrays": table, "steps": list(steps), "whole": whole, "frame": self.frame, "masks": shown, "unshown": unshown}
        return words, data


def _slices(values: np.ndarray) -> np.ndarray:
    """The grid as a stack of 2-D slices; a single axis becomes one line. float16 and the like grow, to be computed with."""
    wide = values if values.dtype.name in ("float32", "float64") else payload.floats(values)
    last = wide.shape[-2:] if wide.ndim > 1 else (1, *wide.shape)
    return wide.reshape(-1, *last)


def words_of(grid: Grid) -> dict[str, Any]:
    """What every view of a Grid tells the browser about its axes and values."""
    return {
        "title": grid.title,
        "check": grid.checked,
        "unit": grid.unit,
        "axes": list(grid.axes),
        "keys": keys(grid.axes),
        "shape": list(grid.values.shape),
        "labels": {axis: [str(name) for name in names] for axis, names in grid.labels.items()},
        "dtype": "f4" if payload.floats(grid.values[:0]).dtype == np.float32 else "f8",
        "source": grid.values.dtype.name,
    }


def keys(axes: Sequence[str]) -> list[str]:
    """Axis names that can be told apart: the second `feature` becomes `feature_2`."""
    seen: Counter[str] = Counter()
    return [f"{axis}_{seen[axis]}" if (seen.update([axis]) or seen[axis] > 1) else axis for axis in axes]
