"""A feature browser as pixels, with numpy: the top of its list and one opened feature, for where no widget can run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from activarium import pictures
from activarium.widgets.feature_columns import Columns
from activarium.widgets.lettering import Words, lettered

WIDTH, LINE, TOP = 760, 18, 46
LINES, SHOWN = 18, 4  # features and columns that a still picture has room for
LEFT, RIGHT, COLUMN = 64, 470, 96
BARS = 90  # height of the histogram
_BAR, _OPEN = (205, 220, 238), (250, 228, 190)


def raster(title: str, columns: Columns, rows: np.ndarray, opened: int | None, page: Mapping[str, Any], sort: str) -> np.ndarray:
    """The list from its top, bars behind the sorted column, as uint8 pixels `(height, width, 3)`."""
    names = _names(columns, sort)
    pixels = np.full((TOP + LINE * (LINES + 1), WIDTH if page else RIGHT - 10, 3), 255, np.uint8)
    words: list[Words] = [
        (6, 12, title[:70] or "Features", "lm"),
        (6, 28, f"{len(rows)} of {len(columns.features)} features, by {sort or 'the order of the ranking'}", "lm"),
    ]
    words += [(LEFT - 10, TOP, "feature", "rm"), *[(LEFT + COLUMN * (at + 1) - 8, TOP, name[:14], "rm") for at, name in enumerate(names)]]
    for line, row in enumerate(rows[:LINES]):
        y = TOP + LINE * (line + 1)
        if columns.features[row] == opened:
            pixels[y - 8 : y + 9, : RIGHT - 16] = _OPEN
        for at, name in enumerate(names):
            if name in columns.numbers:
                _bar(pixels, y, at, columns.numbers[name], row)
        words += _line(columns, names, row, y)
    if page:
        words += _opened(pixels, opened, page)
    return lettered(pixels, words)


def _names(columns: Columns, sort: str) -> list[str]:
    known = [*columns.words, *columns.numbers]
    return sorted(known, key=lambda name: name != sort)[:SHOWN]


def _bar(pixels: np.ndarray, y: int, at: int, values: np.ndarray, row: int) -> None:
    most = float(np.nanmax(np.abs(values[np.isfinite(values)]), initial=0.0))
    share = abs(float(values[row])) / most if most and np.isfinite(values[row]) else 0.0
    end = LEFT + COLUMN * (at + 1) - 4
    pixels[y - 7 : y + 8, end - int(share * (COLUMN - 8)) : end] = _BAR


def _line(columns: Columns, names: list[str], row: int, y: int) -> Iterator[Words]:
    yield LEFT - 10, y, str(columns.features[row]), "rm"
    for at, name in enumerate(names):
        value = columns.words[name][row][:14] if name in columns.words else pictures.number(columns.numbers[name][row])
        yield LEFT + COLUMN * (at + 1) - 8, y, value, "rm"


def _opened(pixels: np.ndarray, opened: int | None, page: Mapping[str, Any]) -> Iterator[Words]:
    """The histogram of a feature, and what it promotes and suppresses."""
    yield RIGHT, 12, f"feature {opened}", "lm"
    y = TOP
    if "histogram" in page:
        counts = np.asarray(page["histogram"]["counts"], float)
        width = max(2, (WIDTH - RIGHT - 10) // max(1, len(counts)))
        heights = np.rint(BARS * np.log1p(counts) / (np.log1p(counts.max(initial=0)) or 1)).astype(int)
        for at, height in enumerate(heights):
            pixels[y + BARS - height : y + BARS, RIGHT + at * width : RIGHT + (at + 1) * width - 1] = (90, 150, 205)
        edges = page["histogram"]["edges"]
        yield RIGHT, y + BARS + 9, f"{pictures.number(edges[0])} to {pictures.number(edges[-1])}, log counts", "lm"
        y += BARS + 2 * LINE
    for at, name in enumerate(("promoted", "suppressed")):
        yield RIGHT + 145 * at, y, name, "lm"
        for line, (token, logit) in enumerate(list(page.get(name, ()))[:9]):
            yield RIGHT + 145 * at, y + LINE * (line + 1), f"{float(logit):+.3g} {str(token)[:14]}", "lm"
