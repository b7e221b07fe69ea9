"""Activations that lie in shards: random rows, spans of rows, chosen rows, each read and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.errors import InputError
from activarium.store._shard import raw_rows


class Stored(Activations):
    """Activations on the disk: random rows come from the shards that hold them, and only those rows."""

    def rows(self, index: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The chosen rows, in the order asked for; only these are read."""
        if self._members:
            return torch.stack([m.rows(index) for m in self._members])
        wanted = np.asarray(index, dtype=np.int64)
        total = len(self)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= total):
            raise InputError(f"{self.site} has rows 0 to {total - 1}; asked for {int(wanted.min())} to {int(wanted.max())}.")
        ends = np.cumsum([p.shape[0] for p in self._parts])
        # In ascending order each shard is visited once, and the disk reads forwards.
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        cuts = np.searchsorted(ascending, ends)
        made = torch.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        if not made.numel():
            return made
        target = raw_rows(made)
        for part, first, last, end in zip(self._parts, [0, *cuts[:-1]], cuts, ends, strict=True):
            if last > first:
                target[order[first:last]] = part.take(ascending[first:last] - (end - part.shape[0]))  # type: ignore[union-attr]
        return made


class Picked:
    """Some rows of a part that lies on the disk: a `Part` itself."""

    def __init__(self, part: Any, index: np.ndarray) -> None:
        self._part, self._index = part, index
        self.shape, self.dtype = (len(index), *part.shape[1:]), part.dtype

    def load(self) -> Tensor:
        """All of them, in memory of their own."""
        return self._copied(self._index)

    def span(self, first: int, last: int) -> Tensor:
        """Successive ones of them; mapped, not copied, where they also follow each other on the disk."""
        index = self._index[first:last]
        if len(index) and index[-1] - index[0] + 1 == len(index):
            return self._part.span(int(index[0]), int(index[-1]) + 1)
        return self._copied(index)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Some of them as raw bytes, one element per row."""
        return self._part.take(self._index[index])

    def _copied(self, index: np.ndarray) -> Tensor:
        made = torch.empty((len(index), *self.shape[1:]), dtype=self.dtype)
        if made.numel():
            raw_rows(made)[:] = self._part.take(index)
        return made


def picked(site: Activations, index: np.ndarray) -> list[Any]:
    """Rows of a site, in ascending order, as parts; shards that hold none of them are left out."""
    made, start = [], 0
    for part in site._parts:
        stop = start + int(part.shape[0])
        first, last = np.searchsorted(index, [start, stop])
        if last > first:
            here = index[first:last] - start
            made.append(part[torch.from_numpy(here)] if isinstance(part, Tensor) else Picked(part, here))
        start = stop
    return made


def span_of(part: Any, first: int, last: int) -> Tensor:
    """Successive rows of a part; without a copy where they are mapped or in memory."""
    return part[first:last] if isinstance(part, Tensor) else part.span(first, last)
