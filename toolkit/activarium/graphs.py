"""Nodes and weighted edges: what stays above a threshold, where each node stands, and a small static picture."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import numpy as np

from activarium import pictures

STATIC_EDGES = 120  # a picture without a slider shows the strongest edges only
WIDTH, ROW, EDGE = 680, 52, 34
FINE = 3


def kept(count: int, edges: np.ndarray, values: np.ndarray, threshold: float) -> np.ndarray:
    """Which edges stay: those of size `threshold` or more whose two nodes still have a way in and a way out.

    A node that nothing enters (an embedding) needs no way in, one that nothing leaves (the logits) no way out.
    """
    source, target = edges[:, 0], edges[:, 1]
    entered, left = np.bincount(target, minlength=count) > 0, np.bincount(source, minlength=count) > 0
    stays = np.abs(values) >= threshold
    while True:
        enters = np.bincount(target[stays], minlength=count) > 0
        leaves = np.bincount(source[stays], minlength=count) > 0
        open_node = (enters | ~entered) & (leaves | ~left)
        fewer = stays & open_node[source] & open_node[target]
        if (fewer == stays).all():
            return stays
        stays = fewer


def threshold_for(count: int, edges: np.ndarray, values: np.ndarray, most: int) -> float:
    """The smallest threshold that keeps at most `most` edges, lowered to the next one if nothing would be left."""
    sizes = np.unique(np.abs(values[np.isfinite(values)]))
    if not sizes.size or kept(count, edges, values, 0.0).sum() <= most:
        return 0.0
    low, high = 0, len(sizes)  # fewer edges with every step up: the answer can be bisected
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(count, edges, values, sizes[middle]).sum() <= most else (middle + 1, high)
    some = low < len(sizes) and kept(count, edges, values, sizes[low]).any()
    return float(sizes[low if some else low - 1])


def rows(count: int, edges: np.ndarray, layer: np.ndarray | None = None) -> np.ndarray:
    """The row of each node, 0 at the bottom: by layer, and within a layer by what feeds what, so that edges point up."""
    layers = np.zeros(count, int) if layer is None else np.asarray(layer).astype(int)
    inside = edges[layers[edges[:, 0]] == layers[edges[:, 1]]]
    depth = _depths(count, inside)
    if depth is None:  # a cycle has no first node: take the order in which the nodes are given
        depth = _depths(count, inside[inside[:, 0] < inside[:, 1]])
    pairs = np.stack([layers, np.zeros(count, int) if depth is None else depth], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def _depths(count: int, edges: np.ndarray) -> np.ndarray | None:
    """Length of the longest path that ends in each node; None if there is a cycle."""
    depth, waiting, inside = np.zeros(count, int), np.ones(count, bool), edges
    for step in range(count):
        free = waiting & ~(np.bincount(inside[:, 1], minlength=count) > 0)
        if not free.any():
            break
        depth[free] = step
        waiting &= ~free
        inside = inside[~free[inside[:, 0]]]
    return None if waiting.any() else depth


def places(row: np.ndarray) -> np.ndarray:
    """Where each node stands, `(node, xy)` in shares of the picture: rows from the bottom up, even spacing within a row."""
    found = np.empty((len(row), 2))
    levels = np.unique(row)
    for at, level in enumerate(levels):
        members = np.flatnonzero(row == level)
        found[members, 0] = (np.arange(len(members)) + 0.5) / len(members)
        found[members, 1] = 1 - (at + 0.5) / len(levels)
    return found


def colours(values: np.ndarray) -> np.ndarray:
    """One colour per edge by its sign: orange above zero, blue below, as in every signed picture here."""
    return np.where(values[:, None] < 0, pictures.DIVERGING[1], pictures.DIVERGING[5]).astype(np.uint8)


def widths(values: np.ndarray) -> np.ndarray:
    """Width of each edge in pixels, by size."""
    size = np.abs(values)
    return 0.8 + 4 * size / (size.max(initial=0) or 1)


def picture(nodes: Sequence[str], edges: np.ndarray, values: np.ndarray, row: np.ndarray, caption: str) -> str:
    """An `<img>` of nodes and edges, drawn as SVG inside it, so that it shows where neither scripts nor widgets run."""
    if not len(edges):
        return f"<p><small>{html.escape(caption)}</small></p>"
    spot = places(row) * np.array([WIDTH - 20, (len(np.unique(row))) * ROW]) + np.array([10, 0])
    lines = [
        f'<path d="M{a[0]:.1f} {a[1]:.1f}C{a[0]:.1f} {a[1] - EDGE / 2:.1f} {b[0]:.1f} {b[1] + EDGE / 2:.1f} {b[0]:.1f} {b[1]:.1f}" '
        f'stroke="rgb({r},{g},{c})" stroke-width="{w:.1f}"/>'
        for i in np.argsort(np.abs(values))
        for a, b, (r, g, c), w in [(spot[edges[i, 0]], spot[edges[i, 1]], colours(values)[i], widths(values)[i])]
    ]
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in spot]
    room = [int(WIDTH / (row == r).sum() / 6) for r in row]
    names = [f'<text x="{x:.1f}" y="{y + 15:.1f}">{html.escape(_end(n, k))}</text>' for n, (x, y), k in zip(nodes, spot, room, strict=True)]
    height = len(np.unique(row)) * ROW
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="#fff"/><g fill="none" stroke-opacity="0.85">{"".join(lines)}</g>'
        f'<g fill="#222">{"".join(dots)}</g><g fill="#222" font-size="10" text-anchor="middle" stroke="#fff" stroke-width="3" '
        f'paint-order="stroke">{"".join(names)}</g></svg>'
    )
    data = base64.b64encode(svg.encode()).decode()
    words = html.escape(caption)
    return f'<figure style="margin:4px 0"><img alt="{words}" src="data:image/svg+xml;base64,{data}"/><figcaption><small>{words}</small></figcaption></figure>'


def raster(nodes: Sequence[str], edges: np.ndarray, values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The same as pixels `(height, width, 3)`, with names where Pillow can write them."""
    height = max(1, len(np.unique(row))) * ROW
    spot = places(row) * np.array([WIDTH - 20, height]) + np.array([10, 0])
    # Drawn three times as large and averaged, so that thin lines stay thin.
    fine = np.full((height * FINE, WIDTH * FINE, 3), 255, np.uint8)
    paint, wide = colours(values), widths(values)
    for i in np.argsort(np.abs(values)):
        start, end = spot[edges[i, 0]], spot[edges[i, 1]]
        share = np.linspace(0, 1, int(FINE * np.abs(end - start).max()) + 2)[:, None]
        _dots(fine, start * (1 - share) + end * share, float(wide[i]) / 2, paint[i])
    _dots(fine, spot, 4, np.array([34, 34, 34]))
    pixels = fine.reshape(height, FINE, WIDTH, FINE, 3).mean((1, 3)).round().astype(np.uint8)
    return _named(pixels, [_end(n, int(WIDTH / (row == r).sum() / 6)) for n, r in zip(nodes, row, strict=True)], spot)


def _dots(fine: np.ndarray, spots: np.ndarray, radius: float, colour: np.ndarray) -> None:
    """Discs of this radius, in pixels of the finished picture."""
    height, width, _ = fine.shape
    reach = int(radius * FINE)
    centre = np.rint(spots * FINE).astype(int)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if down**2 + right**2 <= reach**2:
                x, y = (centre + np.array([right, down])).T
                fine[y.clip(0, height - 1), x.clip(0, width - 1)] = colour


def _named(pixels: np.ndarray, names: Sequence[str], spots: np.ndarray) -> np.ndarray:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return pixels
    picture = Image.fromarray(pixels)
    brush, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    for name, (x, y) in zip(names, spots, strict=True):
        bare = "".join(c if c.isprintable() else "·" for c in name)
        brush.text((x, y + 6), bare, "#222", font=font, anchor="ma", stroke_width=2, stroke_fill="white")
    return np.asarray(picture)


def _end(name: str, letters: int) -> str:
    """The end of a long name: `blocks.3.attn.z.7` and its neighbours begin alike."""
    return name if len(name) <= letters else "…" + name[1 - max(2, letters) :]
