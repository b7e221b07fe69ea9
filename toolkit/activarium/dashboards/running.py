"""Running lists: the first few entries of every feature by some order, while entries come past; no code is kept that cannot win."""

from __future__ import annotations

import numpy as np

LAST = np.uint64(0xFFFFFFFF)  # the order beyond which nothing comes
PENDING = 1 << 18  # entries that wait before they are sorted in: a sort costs more than a comparison


class Running:
    """The `most` entries of each feature that come first, ties by the lower row; of one group of rows at most one, where groups are given.

    What it holds does not depend on how the entries came in pieces, as long as rows come in ascending order.

    Attributes:
        key: Feature and order of each entry, `feature << 32 | order`, ascending.
        row: Row of each entry.
        value: Its code.
    """

    def __init__(self, features: int, most: int, groups: np.ndarray | None = None) -> None:
        self.most, self.groups = most, groups
        self.key, self.row, self.value = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.float32)
        self._limit = np.full(features, LAST + np.uint64(1), np.uint64)  # an entry must come before this to be looked at
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count, self._room = 0, max(PENDING, features * most // 2)

    def add(self, feature: np.ndarray, order: np.ndarray, row: np.ndarray, value: np.ndarray) -> None:
        """Take entries in: what has the smaller order (uint32) comes first."""
        wide = order.astype(np.uint64)
        kept = np.flatnonzero(wide < self._limit[feature])
        if len(kept):
            self._waiting.append((feature[kept].astype(np.uint64) << np.uint64(32) | wide[kept], row[kept], value[kept]))
            self._count += len(kept)
        if self._count > self._room:
            self.settle()

    def settle(self) -> None:
        """Sort in what waits."""
        if not self._waiting:
            return
        parts = [(self.key, self.row, self.value), *self._waiting]
        key, row, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._waiting, self._count = [], 0
        order = np.argsort(key, kind="stable")  # equal ones stay in the order of their rows
        key, row, value = key[order], row[order], value[order]
        if self.groups is not None:
            group = self.groups[row]
            pair = (key >> np.uint64(32)).astype(np.int64) * (int(group.max()) + 1) + group
            first = np.sort(np.unique(pair, return_index=True)[1])
            key, row, value = key[first], row[first], value[first]
        feature = (key >> np.uint64(32)).astype(np.int64)
        starts = np.searchsorted(feature, np.arange(len(self._limit) + 1))
        kept = np.arange(len(key)) - starts[feature] < self.most
        full = np.flatnonzero(np.diff(starts) >= self.most)
        self._limit[full] = key[starts[full] + self.most - 1] & LAST
        self.key, self.row, self.value = key[kept], row[kept], value[kept]

    @property
    def feature(self) -> np.ndarray:
        """Feature of each entry, int64."""
        return (self.key >> np.uint64(32)).astype(np.int64)


def largest_first(size: np.ndarray) -> np.ndarray:
    """An order in which larger sizes (float32, not negative) come first."""
    return np.uint32(0xFFFFFFFF) - np.ascontiguousarray(size, np.float32).view(np.uint32)


def drawn(seed: int, row: np.ndarray, feature: np.ndarray | int = 0) -> np.ndarray:
    """An order that is a draw of its own for each row and feature (splitmix64 of both), so that the first ones are a fair sample."""
    with np.errstate(over="ignore"):
        mixed = row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.asarray(feature).astype(np.uint64) * np.uint64(
            0xD1B54A32D192ED03
        )
        mixed += np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * np.uint64(0x8CB92BA72F3D8DD7) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)
