"""A landscape as pixels, with numpy: ridges one behind another, seen from a fixed side, for where no widget can run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from activarium import pictures
from activarium.results import Grid
from activarium.widgets.lettering import Words, lettered

WIDTH, HEIGHT = 680, 360
LEFT, GROUND = 24, 330  # where the nearest ridge begins
ALONG, ASIDE, BACK, TALL = 500, 120, 110, 190  # pixels: along a ridge, from the first ridge to the last, and up


def raster(grid: Grid, arrays: Mapping[str, np.ndarray], spec: Mapping[str, Any], log: bool) -> np.ndarray:
    """The ridges as uint8 pixels `(height, width, 3)`: orange above 0, blue below, grey where masked."""
    values = arrays["values"].astype(float)
    shares = _shares(values, spec, log)
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    colours = np.where(values[..., None] < 0, pictures.DIVERGING[1], pictures.DIVERGING[5]).astype(np.uint8)
    if "masked" in arrays:
        colours[arrays["masked"] > 0] = 128
    for row in reversed(range(len(values))):
        _ridge(pixels, row / max(1, len(values) - 1), shares[row], colours[row])
    return lettered(pixels, _words(grid, arrays, spec, log))


def _shares(values: np.ndarray, spec: Mapping[str, Any], log: bool) -> np.ndarray:
    top = spec["top"] or 1.0
    sizes = np.minimum(np.abs(values), top)
    if not log or not spec["median"]:
        return sizes / top
    return np.log1p(sizes / spec["median"]) / np.log1p(top / spec["median"])


def _ridge(pixels: np.ndarray, back: float, shares: np.ndarray, colours: np.ndarray) -> None:
    left, ground = int(LEFT + ASIDE * back), int(GROUND - BACK * back)
    places = (np.arange(ALONG) + 0.5) / ALONG * len(shares) - 0.5
    nearest = np.rint(places).astype(int).clip(0, len(shares) - 1)
    heights = np.where(np.isnan(shares[nearest]), np.nan, np.interp(places, np.arange(len(shares)), shares))
    tops = np.rint(ground - TALL * heights)
    if np.isnan(tops).all():
        return
    first = int(np.nanmin(tops))
    part, down = pixels[first : ground + 1, left : left + ALONG], np.arange(first, ground + 1)[:, None]
    # Low ridges are pale, or a thousand of them would hide the few that matter.
    ink, size = colours[nearest].astype(float), np.nan_to_num(heights)[:, None]
    inside = down >= tops  # false where a value is missing
    # Between two pixels a spike rises by hundreds: its edge goes down to where its neighbours begin.
    beside = np.fmax(np.r_[tops[1:], tops[-1]], np.r_[tops[0], tops[:-1]])
    edge = inside & (down <= np.fmax(beside, tops + 0.5))
    faint, bold = _mixed(ink, 0.6 * size), _mixed(ink, 0.3 + 0.7 * np.minimum(1, 4 * size))
    part[:] = np.where(edge[..., None], bold, np.where(inside[..., None], faint, part))


def _mixed(ink: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return (255 * (1 - cover) + ink * cover).round().astype(np.uint8)


def _words(grid: Grid, arrays: Mapping[str, np.ndarray], spec: Mapping[str, Any], log: bool) -> Iterator[Words]:
    unit = f" {spec['unit']}" if spec["unit"] else ""
    yield 6, 10, f"{spec['title']} · {'log ' if log else ''}height up to {pictures.number(spec['top'])}{unit}", "lm"
    yield LEFT + ALONG / 2, GROUND + 16, spec["axes"][1], "mm"
    yield LEFT + ALONG + ASIDE / 2 + 12, GROUND - BACK / 2 + 8, spec["axes"][0], "lm"
    names = [grid.label(axis) for axis in dict.fromkeys(grid.axes)]
    for line, ((row, column), value) in enumerate(zip(arrays["spikes"].astype(int), arrays["spike_values"], strict=True)):
        place = f"{spec['axes'][0]} {names[0][row]} · {spec['axes'][1]} {names[-1][column]}"
        yield WIDTH - 6, 10 + 14 * (line + 1), f"{pictures.number(value)} at {place}", "rm"
