"""Pieces of a tensor that come into memory when they are asked for, whole or tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ALL = slice(None)


class Part(Protocol):
    """A piece of a tensor that can be brought into memory: a shard slice, or something computed on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def load(self) -> Tensor: ...


class Computed:
    """A part that is calculated when asked for, such as an attention pattern from its queries and keys.

    Attributes:
        shape: Size along each axis.
        dtype: Type of the numbers.
        load: Calculates all of it.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        compute: Callable[[], Tensor],
        tile: Callable[[slice, slice], Tensor] | None = None,
    ) -> None:
        self.shape, self.dtype, self.load, self._tile = tuple(shape), dtype, compute, tile

    def tile(self, heads: slice, queries: slice) -> Tensor:
        """Some heads and queries of a part `… head query key`, without the others where it knows how."""
        return self._tile(heads, queries) if self._tile else self.load()[..., heads, queries, :]


@dataclass(frozen=True)
class Tile:
    """Some heads and successive queries of one example's pattern or scores, with all of their keys.

    Attributes:
        example: Number of the example.
        heads: Which heads.
        queries: Which positions of the example ask.
        values: `head query key` (a stack has `layer` before them).
    """

    example: int
    heads: slice
    queries: slice
    values: Tensor


def load(part: Tensor | Part) -> Tensor:
    """A part in memory."""
    return part if isinstance(part, Tensor) else part.load()


def device(part: Tensor | Part) -> torch.device:
    """Where a part's values will be."""
    return part.device if isinstance(part, Tensor) else torch.device("cpu")


def tile(part: Tensor | Part, heads: slice, queries: slice) -> Tensor:
    """Some heads and queries of a part `… head query key`."""
    return part.tile(heads, queries) if isinstance(part, Computed) else load(part)[..., heads, queries, :]


def cut(part: Tensor | Part, heads: slice, queries: slice) -> Part:
    """A part of only some heads and queries; nothing is calculated before it is asked for."""
    *before, head, query, key = part.shape
    sizes = (len(range(*heads.indices(head))), len(range(*queries.indices(query))), key)
    return Computed((*before, *sizes), part.dtype, lambda: tile(part, heads, queries))


def stacked(parts: Sequence[Tensor | Part]) -> Part:
    """Parts of one shape as one with a leading axis."""
    return Computed(
        (len(parts), *parts[0].shape),
        parts[0].dtype,
        lambda: torch.stack([load(p) for p in parts]),
        lambda heads, queries: torch.stack([tile(p, heads, queries) for p in parts]),
    )


def blocks(size: int, step: int) -> list[slice]:
    """`0 … size` in successive slices of `step`."""
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]
