"""Curves as pixels, with numpy: what is shown where no widget can run. Words come with Pillow, if it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from activarium.pictures import number
from activarium.widgets.lettering import Words, lettered

WIDTH, HEIGHT, FINE = 640, 260, 2
LEFT, RIGHT, TOP, BELOW, LINE = 64, 12, 24, 34, 17
DENSE = 2 * WIDTH  # more points than this are no line any more
# Okabe and Ito's colours, as the widget has them on a light ground.
COLOURS = np.array([[0, 114, 178], [213, 94, 0], [0, 128, 92], [168, 69, 138], [148, 98, 0], [47, 143, 196], [77, 77, 77]])
DASHES = ((1, 0), (7, 4), (2, 3), (12, 4), (4, 4))  # pixels on, pixels off

Ends = tuple[float, float]


def raster(
    spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray], shown: Sequence[int], *, bars: bool, log: Mapping[str, bool]
) -> np.ndarray:
    """The curves as uint8 pixels `(height, width, 3)`."""
    x = arrays["x"].astype(float)
    lines = [arrays[f"curve {at}"].astype(float) for at in shown]
    bands = [arrays[f"band {at}"].astype(float) if f"band {at}" in arrays else None for at in shown]
    edges = _edges(x, spec["centred"]) if bars else np.stack([x, x])
    bend_x, bend_y = (
        _bend([edges], log["x"]),
        _bend([*lines, *(b for b in bands if b is not None), *([np.zeros(1)] if bars else [])], log["y"]),
    )
    right, low, high = LEFT + WIDTH - 1, TOP + HEIGHT - 1, TOP
    across = [LEFT + (WIDTH - 1) * bend_x(end) for end in edges]
    canvas = _Canvas(LEFT + WIDTH + RIGHT, TOP + HEIGHT + BELOW + LINE * len(shown))
    for y in (low, high):
        canvas.line(np.array([LEFT, right]), np.array([y, y]), np.array([205, 205, 205]), 0.5)
    for at, values, band in zip(shown, lines, bands, strict=True):
        colour, dash = COLOURS[at % len(COLOURS)], DASHES[at % len(DASHES)]
        up = low - (HEIGHT - 1) * bend_y(values)
        if bars:
            canvas.bars(across, up, low - (HEIGHT - 1) * float(bend_y(np.zeros(1))[0]), colour)
            continue
        if band is not None:
            ends = [low - (HEIGHT - 1) * bend_y(end) for end in band]
            canvas.area(across[0], ends[0], ends[1], colour)
        canvas.line(across[0], up, colour, 1.0, dash)
    for row, at in enumerate(shown):
        y = TOP + HEIGHT + BELOW + LINE * row + LINE / 2
        canvas.line(np.array([LEFT, LEFT + 26]), np.array([y, y]), COLOURS[at % len(COLOURS)], 1.2, DASHES[at % len(DASHES)])
    return lettered(canvas.finished(), _words(spec, shown, (bend_x.ends, bend_y.ends)))


class _Bend:
    """Numbers to shares of an axis; logarithmic ones are linear below the smallest size there is."""

    def __init__(self, ends: Ends, knee: float) -> None:
        self.ends, self.knee = ends, knee

    def __call__(self, values: np.ndarray) -> np.ndarray:
        low, high = (float(self._bent(np.array([end]))[0]) for end in self.ends)
        with np.errstate(invalid="ignore"):  # a missing value has no place
            return (self._bent(values) - low) / ((high - low) or 1)

    def _bent(self, values: np.ndarray) -> np.ndarray:
        if not self.knee:
            return values
        size = np.abs(values) / self.knee
        return np.sign(values) * np.where(size <= 1, size, 1 + np.log10(np.maximum(size, 1)))


def _bend(lines: Sequence[np.ndarray], log: bool) -> _Bend:
    values = np.concatenate([np.ravel(line) for line in lines]) if lines else np.zeros(1)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    sizes = np.abs(values[values != 0])
    # More decades would leave no room for the upper ones; on both sides of 0 small numbers are mere crossings.
    knee = max(float(sizes.min()), float(sizes.max()) / (1e4 if low < 0 else 1e8)) if log and sizes.size else 0.0
    return _Bend((low, high if high > low else low + 1), knee)


def _edges(x: np.ndarray, centred: bool) -> np.ndarray:
    """Left and right end of each bar."""
    gaps = np.diff(x)
    half = 0.45 * gaps[gaps > 0].min() if (gaps > 0).any() else 0.5
    if centred or len(x) < 2:
        return np.stack([x - half, x + half])
    return np.stack([x, np.append(x[1:], x[-1] + gaps[-1])])


class _Canvas:
    """White pixels, drawn finer than they are shown."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height * FINE, width * FINE, 3), 255, np.uint8)

    def finished(self) -> np.ndarray:
        height, width = (side // FINE for side in self.pixels.shape[:2])
        return self.pixels.reshape(height, FINE, width, FINE, 3).mean((1, 3)).round().astype(np.uint8)

    def line(self, x: np.ndarray, y: np.ndarray, colour: np.ndarray, radius: float, dash: tuple[int, int] = (1, 0)) -> None:
        good = np.isfinite(x) & np.isfinite(y)
        if len(x) > DENSE:
            return self._envelope(x, np.where(good, y, np.nan), colour)
        on, off = dash
        joined = np.flatnonzero(good[1:] & good[:-1])
        lengths = np.hypot(*(np.diff(v)[joined] for v in (x, y)))
        begun = np.cumsum(lengths) - lengths
        pieces = [np.linspace(0, 1, int(2 * FINE * length) + 2) for length in lengths]
        inked = [share[(start + share * length) % (on + off) < on] for share, start, length in zip(pieces, begun, lengths, strict=True)]
        if inked:
            at, share = np.repeat(joined, [len(some) for some in inked]), np.concatenate(inked)
            self._dots(x[at] + share * (x[at + 1] - x[at]), y[at] + share * (y[at + 1] - y[at]), radius, colour)
        alone = good & ~np.r_[False, good[:-1]] & ~np.r_[good[1:], False]
        self._dots(x[alone], y[alone], 2.5, colour)

    def _envelope(self, x: np.ndarray, y: np.ndarray, colour: np.ndarray) -> None:
        """Of more points than can be joined one by one, from the lowest to the highest in each column of pixels."""
        known, starts = np.unique(np.rint(x * FINE).astype(int), return_index=True)
        columns = np.arange(known[0], known[-1] + 1)
        # A column without a point lies between its neighbours, unless one of those has nothing but missing values.
        low, high = (np.interp(columns, known, extreme.reduceat(y, starts)) * FINE for extreme in (np.fmin, np.fmax))
        # Each column reaches to its neighbour, as a line would.
        down, up = np.fmin(low, np.append(high[1:], np.nan)), np.fmax(high, np.append(low[1:], np.nan))
        self._fill(columns, np.where(np.isnan(low), np.nan, down) - 1, np.where(np.isnan(high), np.nan, up) + 1, colour, 0.9)

    def area(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: np.ndarray) -> None:
        good = np.isfinite(low) & np.isfinite(high)
        columns = np.arange(int(FINE * x.min()), int(FINE * x.max()) + 1)
        # Between neighbours that both have an interval; NaN at either carries over.
        tops, bottoms = (np.interp(columns / FINE, x, np.where(good, end, np.nan)) for end in (high, low))
        self._fill(columns, tops * FINE, bottoms * FINE, colour)

    def bars(self, ends: Sequence[np.ndarray], top: np.ndarray, ground: float, colour: np.ndarray) -> None:
        for left, right, height in zip(*ends, top, strict=True):
            if np.isfinite(height):
                columns = np.arange(int(FINE * left), max(int(FINE * right), int(FINE * left) + 1))
                flat = np.full(len(columns), FINE * height)
                self._fill(columns, flat, np.full(len(columns), FINE * ground), colour)
                self.line(np.array([left, right]), np.array([height, height]), colour, 0.5)

    def _fill(self, columns: np.ndarray, tops: np.ndarray, bottoms: np.ndarray, colour: np.ndarray, cover: float = 0.25) -> None:
        high, wide, _ = self.pixels.shape
        good = np.isfinite(tops) & np.isfinite(bottoms) & (columns >= 0) & (columns < wide)
        down = np.arange(high)[:, None]
        first, last = np.minimum(tops[good], bottoms[good]), np.maximum(tops[good], bottoms[good])
        inside = (down >= np.floor(first)) & (down <= np.floor(last))
        part = self.pixels[:, columns[good]]
        part[inside] = ((1 - cover) * part[inside] + cover * colour).astype(np.uint8)
        self.pixels[:, columns[good]] = part

    def _dots(self, x: np.ndarray, y: np.ndarray, radius: float, colour: np.ndarray) -> None:
        high, wide, _ = self.pixels.shape
        reach = int(radius * FINE)
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                if down**2 + right**2 <= reach**2:
                    columns, lines = (np.rint(v * FINE).astype(int) + by for v, by in ((x, right), (y, down)))
                    self.pixels[lines.clip(0, high - 1), columns.clip(0, wide - 1)] = colour


def _words(spec: Mapping[str, Any], shown: Sequence[int], ends: tuple[Ends, Ends]) -> Iterator[Words]:
    (left, right), (low, high) = ends
    names = spec["names"]
    first, last = (names[0], names[-1]) if names else (number(left), number(right))
    yield 4, 10, f"{spec['title']}{' · ' + spec['unit'] if spec['unit'] else ''}", "lm"
    yield LEFT - 6, TOP + HEIGHT - 1, number(low), "rm"
    yield LEFT - 6, TOP, number(high), "rm"
    for x, words, anchor in ((LEFT, first, "lm"), (LEFT + WIDTH, last, "rm"), (LEFT + WIDTH / 2, spec["x_label"], "mm")):
        yield x, TOP + HEIGHT + 12, words, anchor
    for row, at in enumerate(shown):
        yield LEFT + 34, TOP + HEIGHT + BELOW + LINE * row + LINE / 2, spec["curves"][at], "lm"
