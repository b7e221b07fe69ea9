"""Curves as a small static picture: SVG inside an `<img>`, which shows where neither scripts nor widgets run."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from activarium.pictures import number

WIDTH, HEIGHT = 520, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 34
# Okabe & Ito's colours, told apart by colour-blind readers; beyond eight, dashes tell.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444", "#8c6d31")
DASHES = ("none", "6 3", "2 3")
DRAWN = 1200  # points of one curve; more would not be seen


def curves(x: np.ndarray, lines: Mapping[str, np.ndarray], bands: Mapping[str, np.ndarray], *, title: str, unit: str, x_label: str) -> str:
    """An `<img>` of curves over one axis with their bands; gaps where a value is not finite, nothing where there is no number.

    Args:
        x: Where the values stand; words stand one after the other.
        lines: Name → values of the length of `x`.
        bands: Name → `(2, len(x))` lower and upper ends.
        title: Said to those who cannot see it.
        unit: Of the values.
        x_label: What `x` counts.
    """
    words = None if np.issubdtype(np.asarray(x).dtype, np.number) else [str(v) for v in x]
    at = np.arange(len(x), dtype=float) if words else np.asarray(x, dtype=float)
    values = {name: np.asarray(v, dtype=float) for name, v in lines.items() if np.issubdtype(np.asarray(v).dtype, np.number)}
    ends = {name: np.asarray(band, dtype=float) for name, band in bands.items() if name in values}
    seen = np.concatenate([np.ravel(v) for v in [*values.values(), *ends.values()]] or [np.empty(0)])
    if not np.isfinite(seen).any() or not np.isfinite(at).any():
        return ""
    across, up = _Scale(at, LEFT, WIDTH - RIGHT, flat=not words), _Scale(seen, HEIGHT - BOTTOM, TOP)
    drawn = [_band(across, up, at, ends[n], COLOURS[i % len(COLOURS)]) for i, n in enumerate(values) if n in ends]
    drawn += [_line(across, up, at, v, COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % 3]) for i, v in enumerate(values.values())]
    names = list(values) if len(values) > 1 else []
    rows = -(-len(names) // 3)
    height = HEIGHT + 15 * rows
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="10" fill="#222"><rect width="100%" height="100%" fill="#fff"/>{_axes(across, up, at, words, x_label)}{"".join(drawn)}'
        f"{_legend(names)}</svg>"
    )
    data = base64.b64encode(svg.encode()).decode()
    caption = html.escape(f"{title} · {unit}" if unit else title)
    return f'<figure style="margin:4px 0"><img alt="{caption}" src="data:image/svg+xml;base64,{data}"/><figcaption><small>{caption}</small></figcaption></figure>'


def ticks(low: float, high: float, most: int = 6) -> np.ndarray:
    """Round numbers between two ends: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return np.array([low])
    power = 10.0 ** np.floor(np.log10((high - low) / most))
    step = next(power * m for m in (1, 2, 5, 10, 20) if (high - low) / (power * m) <= most)
    return np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step


class _Scale:
    """From numbers to places in the picture."""

    def __init__(self, values: np.ndarray, start: float, stop: float, flat: bool = False) -> None:
        finite = values[np.isfinite(values)]
        self.low, self.high = float(finite.min()), float(finite.max())
        if not flat and 0 < self.low < 0.6 * self.high:
            self.low = 0.0  # heights are read from zero where that costs little
        if self.high == self.low:
            self.low, self.high = self.low - 0.5 * (abs(self.low) or 1), self.high + 0.5 * (abs(self.high) or 1)
        self.start, self.stop = start, stop

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return self.start + (np.asarray(values) - self.low) / (self.high - self.low) * (self.stop - self.start)


def _line(across: _Scale, up: _Scale, x: np.ndarray, values: np.ndarray, colour: str, dash: str) -> str:
    kept = _drawn(values)
    x, values = x[kept], values[kept]
    known = np.isfinite(values) & np.isfinite(x)
    pairs = np.stack([across(x), up(np.where(known, values, up.low))], 1)
    pieces = np.split(np.arange(len(x)), np.flatnonzero(np.diff(known)) + 1)
    path = "".join("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in pairs[p]) for p in pieces if len(p) and known[p[0]])
    dots = ""
    if len(x) <= 40:  # few values: each one is a measurement to be seen, and a lone one has no line
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2" fill="{colour}"/>' for a, b in pairs[known])
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}"/>{dots}'


def _drawn(values: np.ndarray) -> np.ndarray:
    """Indices that are drawn: all, or of each stretch its smallest and its largest, so that a lone peak stays."""
    if len(values) <= DRAWN:
        return np.arange(len(values))
    pieces = np.array_split(np.arange(len(values)), DRAWN // 2)
    bare = np.nan_to_num(values, posinf=0, neginf=0)
    return np.unique([p[pick] for p in pieces for pick in (bare[p].argmin(), bare[p].argmax())])


def _band(across: _Scale, up: _Scale, x: np.ndarray, ends: np.ndarray, colour: str) -> str:
    known = np.isfinite(ends).all(0) & np.isfinite(x)
    pieces = [p for p in np.split(np.arange(len(x)), np.flatnonzero(np.diff(known)) + 1) if len(p) and known[p[0]]]
    shapes = []
    for piece in pieces:
        there = zip(across(x[piece]), up(ends[0, piece]), strict=True)
        back = zip(across(x[piece])[::-1], up(ends[1, piece])[::-1], strict=True)
        shapes.append("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in [*there, *back]) + "Z")
    return f'<path d="{"".join(shapes)}" fill="{colour}" fill-opacity="0.18"/>'


def _axes(across: _Scale, up: _Scale, at: np.ndarray, words: Sequence[str] | None, x_label: str) -> str:
    floor = HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>']
    for value in ticks(up.low, up.high):
        y = float(up(np.array(value)))
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/><text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{number(value)}</text>'
        )
    if words:
        every = -(-len(words) // 8)
        marks = [(i, words[i] if len(words[i]) <= 12 else words[i][:11] + "…") for i in range(0, len(words), every)]
    else:
        whole = bool((at[np.isfinite(at)] % 1 == 0).all())  # there is no layer 1.5
        marks = [(value, number(value)) for value in ticks(across.low, across.high, 8) if not whole or round(value, 9) % 1 == 0]
    for value, name in marks:
        x = float(across(np.array(value)))
        parts.append(f'<text x="{x:.1f}" y="{floor + 13}" text-anchor="middle">{html.escape(name)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{floor + 27}" text-anchor="middle">{html.escape(x_label)}</text>')
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    parts = []
    for i, name in enumerate(names):
        x, y = LEFT + i % 3 * (WIDTH - LEFT) / 3, HEIGHT + 10 + 15 * (i // 3)
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % 3]
        short = name if len(name) <= 24 else name[:23] + "…"
        parts.append(f'<path d="M{x} {y - 3}h16" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="{x + 20}" y="{y}">{html.escape(short)}</text>')
    return "".join(parts)
