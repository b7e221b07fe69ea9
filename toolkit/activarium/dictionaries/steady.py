"""Codes that come out bit for bit the same however many rows are read at a time, of all features or of some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from activarium.dictionaries.coded import CodedRows
from activarium.dictionaries.codes import Codes
from activarium.dictionaries.dictionary import AT_ONCE, FeatureDictionary
from activarium.dictionaries.rows import RowSource
from activarium.errors import InputError
from activarium.rows import Rows

BLOCK = 1024  # rows that are encoded together: a product's rounding depends on its shape, so the shape stays the same


@dataclass(frozen=True, eq=False)
class SteadyCodes:
    """Codes that are computed while they are asked for, always in the same blocks of rows.

    Attributes:
        source: The rows.
        dictionary: What codes them.
        features: Only these, numbered from 0 in this order; None for all. Where codes do not compete, no others are computed.
    """

    source: RowSource
    dictionary: FeatureDictionary
    features: tuple[int, ...] | None = None

    @property
    def chosen(self) -> np.ndarray:
        return self.source.chosen

    @property
    def width(self) -> int:
        return self.dictionary.width if self.features is None else len(self.features)

    @property
    def index(self) -> Rows | None:
        return self.source.inputs.index

    def pieces(self, rows: int = 4096) -> Iterator[tuple[np.ndarray, Codes]]:
        """Every row once, in order; `rows` are rounded up to whole blocks."""
        return self.pieces_from(0, rows)

    def pieces_from(self, first: int, rows: int = 4096) -> Iterator[tuple[np.ndarray, Codes]]:
        """The same from the first row of a block on, counted among the chosen rows."""
        step = self.block * max(1, -(-rows // self.block))
        for start in range(first, len(self.chosen), step):
            index = self.chosen[start : start + step]
            x = self.source.read(index)[0]
            yield index, Codes.concatenate([self._codes(block) for block in x.split(self.block)])

    @property
    def block(self) -> int:
        """Rows that are encoded together."""
        return max(1, min(BLOCK, AT_ONCE // max(1, self.width)))

    def _codes(self, x: torch.Tensor) -> Codes:
        if self.features is None:
            return self.dictionary.codes(x)
        with torch.no_grad():
            return Codes.of_dense(self.dictionary.encode(x, self.features))


@dataclass(frozen=True, eq=False)
class SomeCodes:
    """Some features of codes that exist.

    Attributes:
        coded: The codes.
        features: Which ones, numbered from 0 in this order.
    """

    coded: CodedRows
    features: tuple[int, ...]

    @property
    def chosen(self) -> np.ndarray:
        return self.coded.chosen

    @property
    def width(self) -> int:
        return len(self.features)

    @property
    def index(self) -> Rows | None:
        return self.coded.index

    def pieces(self, rows: int = 4096) -> Iterator[tuple[np.ndarray, Codes]]:
        """Every row once, in order: numbers of the rows, and their codes."""
        place = torch.full((self.coded.width,), -1, dtype=torch.int32)
        place[list(self.features)] = torch.arange(len(self.features), dtype=torch.int32)
        for index, codes in self.coded.pieces(rows):
            found = place[codes.features.long()]
            kept = found >= 0
            counts = torch.bincount(codes.rows[kept], minlength=len(codes))
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            yield index, Codes(starts, found[kept], codes.values[kept], self.width)


def numbered(features: Sequence[int] | None, width: int) -> tuple[int, ...] | None:
    """Chosen features, ascending and each once; None for all.

    Raises:
        InputError: None is chosen, or one is not there.
    """
    if features is None:
        return None
    found = tuple(sorted({int(f) for f in features}))
    if not found:
        raise InputError("features=() chooses none of the features. Give some numbers, or None for all.")
    if found[0] < 0 or found[-1] >= width:
        raise InputError(f"There is no feature {found[0] if found[0] < 0 else found[-1]}; the dictionary has {width}, numbered from 0.")
    return found
