"""The first pass over sparse codes: counts, sums, the largest, and a fair sample of every feature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from activarium.dashboards.octaves import Octaves
from activarium.dashboards.running import Running, drawn, largest_first
from activarium.dashboards.together import SampledRows
from activarium.dictionaries.coded import CodedRows
from activarium.dictionaries.codes import Codes
from activarium.errors import InputError, NotFinite
from activarium.progress import progress_bar

SAMPLE = 256  # codes of each feature that are drawn, of which the contexts of the bands are taken


@dataclass(frozen=True, eq=False)
class Flat:
    """The codes of one piece, one entry each, row by row."""

    row: np.ndarray
    feature: np.ndarray
    value: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Codes without their sign, float32."""
        return np.abs(self.value)


def flat(index: np.ndarray, codes: Codes) -> Flat:
    """Row, feature and code (float32) of every code of a piece.

    Raises:
        NotFinite: NaN or infinity among them; the message names row and feature.
    """
    row = index[codes.rows.numpy()]
    feature = codes.features.numpy().astype(np.int64)
    value = codes.values.to(torch.float32).numpy()
    strange = np.flatnonzero(~np.isfinite(value))
    if len(strange):
        at = strange[0]
        raise NotFinite(
            f"The code of feature {feature[at]} in row {row[at]:,} is {value[at]}: no largest and no histogram can be taken. "
            "Look at that row, or encode in float32."
        )
    return Flat(row, feature, value)


class Scan:
    """What one pass knows of every feature.

    Attributes:
        rows: Rows that were looked at.
        fires: Rows in which each feature is active, int64.
        total: Sum of its codes, float64, added in the order of the rows.
        square: Sum of their squares.
        least: Smallest code that is not zero, its sign kept; 0 for a feature that never fires.
        most: Largest one.
        sizes: How the sizes are spread.
        top: The largest codes by size, at most one of each example.
        sample: Codes drawn evenly.
        together: Rows drawn evenly, with all of their codes.
    """

    def __init__(self, features: int, top: int, groups: np.ndarray, rows: int, seed: int, together: int) -> None:
        self.rows, self._seed = 0, seed
        self.fires = np.zeros(features, np.int64)
        self.total, self.square = np.zeros(features), np.zeros(features)
        self.least, self.most = np.full(features, np.inf, np.float32), np.full(features, -np.inf, np.float32)
        self.sizes = Octaves(features)
        self.top, self.sample = Running(features, top, groups), Running(features, SAMPLE)
        self.together = SampledRows(features, rows, together, seed)

    def add(self, index: np.ndarray, codes: Codes) -> None:
        """Take in one piece: numbers of its rows, ascending, and their codes."""
        found = flat(index, codes)
        feature, size = found.feature, found.size
        self.rows += len(index)
        self.fires += np.bincount(feature, minlength=len(self.fires))
        # One after the other in the order of the rows, so that the sums do not depend on the pieces.
        np.add.at(self.total, feature, found.value.astype(np.float64))
        np.add.at(self.square, feature, np.square(found.value, dtype=np.float64))
        np.minimum.at(self.least, feature, found.value)
        np.maximum.at(self.most, feature, found.value)
        self.sizes.add(feature, size)
        self.top.add(feature, largest_first(size), found.row, found.value)
        self.sample.add(feature, drawn(self._seed, found.row, feature), found.row, found.value)
        self.together.add(index, codes)

    def finish(self) -> Scan:
        """Settle what waits."""
        self.top.settle()
        self.sample.settle()
        dead = self.fires == 0
        self.least[dead], self.most[dead] = 0, 0
        return self

    @property
    def size_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest size of each feature's codes, float64; the smallest is not above the true one where signs are mixed."""
        most = np.maximum(np.abs(self.least), np.abs(self.most)).astype(np.float64)
        least = np.where(self.least > 0, self.least, np.where(self.most < 0, -self.most, 0)).astype(np.float64)
        return least, most


def scan(coded: CodedRows, *, top: int, groups: np.ndarray, seed: int, together: int, rows: int, progress: bool) -> Scan:
    """The first pass.

    Raises:
        InputError: There are no rows.
        NotFinite: A code is NaN or infinite.
    """
    if not len(coded.chosen):
        raise InputError("There are no rows to make pages of. Capture some, or leave fewer kinds out.")
    made = Scan(coded.width, top, groups, len(coded.chosen), seed, together)
    with progress_bar(progress, "Looking for the largest codes,", len(coded.chosen), "rows") as advance:
        for index, codes in coded.pieces(rows):
            made.add(index, codes)
            advance(len(index))
    return made.finish()
