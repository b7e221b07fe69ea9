"""Which rows stand for a feature: its largest codes, and a few from each band of the others; and what is shown around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from activarium.dashboards.octaves import band_of
from activarium.dashboards.scan import Scan
from activarium.rows import Rows

BANDS = 10
TOP = BANDS  # stands in the place of a band for the largest codes, which come first


@dataclass(frozen=True, eq=False)
class Contexts:
    """Rows that stand for features, by feature, the largest first, then the bands from above.

    Attributes:
        feature: Whose.
        band: 0 to 9, or 10 for the largest codes.
        row: Number of the row in the recording.
        value: Its code.
        first: Row that the context begins with.
        length: Rows that it has.
        place: Where its values begin among those of all contexts, and where the last one's end.
    """

    feature: np.ndarray
    band: np.ndarray
    row: np.ndarray
    value: np.ndarray
    first: np.ndarray
    length: np.ndarray
    place: np.ndarray


@dataclass(frozen=True, eq=False)
class Examples:
    """Where the examples of a recording lie, row by row.

    Attributes:
        number: Example of each row.
        starts: Rows that an example begins with, and the number of rows.
        pictured: Which of them are images.
    """

    number: np.ndarray
    starts: np.ndarray
    pictured: np.ndarray

    @staticmethod
    def of(index: Rows | None, rows: int) -> Examples:
        """From a row table; without one, all rows are one example."""
        number = np.zeros(rows, np.int64) if index is None else np.asarray(index["example"]).astype(np.int64)
        starts = np.r_[np.flatnonzero(np.r_[True, number[1:] != number[:-1]]) if rows else np.empty(0, int), rows].astype(np.int64)
        patch = np.zeros(rows, bool) if index is None or "kind" not in index else np.asarray(index["kind"]).astype(str) == "patch"
        pictured = np.logical_or.reduceat(patch, starts[:-1]) if rows else np.zeros(0, bool)
        return Examples(number, starts, pictured)

    def around(self, row: np.ndarray, buffer: int) -> tuple[np.ndarray, np.ndarray]:
        """First row and number of rows of what is shown around each row: some neighbours of a token, the whole of an image."""
        at = np.searchsorted(self.starts, row, side="right") - 1
        start, stop = self.starts[at], self.starts[at + 1]
        first = np.where(self.pictured[at], start, np.maximum(start, row - buffer))
        last = np.where(self.pictured[at], stop, np.minimum(stop, row + buffer + 1))
        return first, last - first


def choose(found: Scan, edges: np.ndarray, examples: Examples, per_band: int, buffer: int) -> Contexts:
    """Take the contexts of every feature.

    Args:
        found: The first pass.
        edges: Where the bands lie, `feature band + 1`.
        examples: Where the examples lie.
        per_band: Contexts of each band, at most one of an example.
        buffer: Tokens on each side.
    """
    sample = found.sample
    feature, band = sample.feature, band_of(np.abs(sample.value), sample.feature, edges)
    line = feature * BANDS + band
    order = np.argsort(line, kind="stable")  # within a band they stay as they were drawn
    pair = np.stack([line[order], examples.number[sample.row[order]]])
    order = order[np.sort(np.unique(pair, axis=1, return_index=True)[1])]
    starts = np.searchsorted(line[order], np.arange(len(edges) * BANDS))
    order = order[np.arange(len(order)) - starts[line[order]] < per_band]
    top = found.top
    all_features = np.r_[top.feature, feature[order]]
    all_bands = np.r_[np.full(len(top.row), TOP), band[order]].astype(np.int8)
    row, value = np.r_[top.row, sample.row[order]], np.r_[top.value, sample.value[order]]
    shown = np.lexsort((row, -np.abs(value), -all_bands, all_features))
    row = row[shown]
    first, length = examples.around(row, buffer)
    return Contexts(all_features[shown], all_bands[shown], row, value[shown], first, length, np.r_[0, length.cumsum()])
