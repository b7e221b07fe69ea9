"""How often features fire and how many fire at once, as histograms that several dictionaries share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from activarium.results import Series

BARS = 64
STEP = 0.5  # of log10 density


def codes_histogram(counts: Mapping[str, np.ndarray]) -> Series:
    """Share of rows by how many codes they have.

    Args:
        counts: Name → how many rows have 0, 1, 2, … codes.
    """
    most = max(len(found) for found in counts.values())
    width = -(-most // BARS)
    edges = np.arange(0, most, width)
    curves = {name: np.add.reduceat(np.pad(found, (0, most - len(found))), edges) / found.sum() for name, found in counts.items()}
    label = "codes of a row" if width == 1 else f"codes of a row, from this many to {width - 1} more"
    return Series(edges, curves, label, title="How many codes rows have", unit="share of rows")


def density_histogram(fires: Mapping[str, tuple[np.ndarray, int]]) -> Series:
    """Share of features by how often they fire; those that never do stand in a bar of their own.

    Args:
        fires: Name → rows in which each feature fires, and how many rows there are.
    """
    lowest = min(np.floor(np.log10(1 / rows) / STEP) * STEP for _, rows in fires.values())
    edges = np.arange(lowest, 0, STEP) if lowest < 0 else np.array([-STEP])
    curves = {}
    for name, (found, rows) in fires.items():
        alive = found[found > 0]
        # A density of exactly 0.1 belongs to the bar that begins there, whatever its logarithm is rounded to.
        bar = np.clip(np.floor((np.log10(alive / rows) - edges[0]) / STEP + 1e-9).astype(int), 0, len(edges) - 1)
        curves[name] = np.r_[(found == 0).sum(), np.bincount(bar, minlength=len(edges))] / len(found)
    words = np.array(["never", *(f"{edge:g}" for edge in edges)], dtype=object)
    label = f"log10 of the share of rows a feature fires in (lower end of a bar of {STEP})"
    rows = {name: count for name, (_, count) in fires.items()}
    return Series(words, curves, label, title="How often features fire", unit="share of features", diagnostics={"rows": rows})
