"""Cutting batches into runs of whole examples, whatever row spaces they have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.errors import NotFinite, StoreError
from activarium.recording import Recording
from activarium.rows import Rows
from activarium.store._format import SiteEntry


@dataclass(frozen=True)
class Piece:
    """Successive examples of the batch plan, with their rows in every row space.

    Attributes:
        start: Place of the first example in the order of the plan.
        ends: Row space → number of rows up to each example, from 0; one longer than there are examples.
        tensors: Site → values.
        rows: Row space → row table.
    """

    start: int
    ends: Mapping[str, np.ndarray]
    tensors: Mapping[str, Tensor]
    rows: Mapping[str, Rows]
    spaces: Mapping[str, str]

    def __len__(self) -> int:
        return len(next(iter(self.ends.values()))) - 1

    def cut(self, first: int, last: int, *, own: bool = False) -> Piece:
        """Examples `first` to before `last`; with `own`, a copy that does not keep the whole batch alive."""
        spans = {s: slice(int(e[first]), int(e[last])) for s, e in self.ends.items()}
        ends = {s: e[first : last + 1] - e[first] for s, e in self.ends.items()}
        tensors = {n: t[spans[self.spaces[n]]] for n, t in self.tensors.items()}
        if own:
            tensors = {n: t.clone() for n, t in tensors.items()}
        return Piece(self.start + first, ends, tensors, {s: r.take(spans[s]) for s, r in self.rows.items()}, self.spaces)

    def costs(self, sites: Mapping[str, SiteEntry]) -> np.ndarray:
        """Bytes of each example over all sites."""
        per_row = dict.fromkeys(self.ends, 0)
        for site in sites.values():
            per_row[site.rows] += site.row_bytes
        return sum((np.diff(e) * per_row[s] for s, e in self.ends.items()), np.zeros(len(self), np.int64))

    def outside(self, done: Sequence[tuple[int, int]]) -> Iterator[Piece]:
        """The parts that are not committed yet."""
        at = self.start
        for first, last in [*done, (self.start + len(self), self.start + len(self))]:
            if at < min(first, self.start + len(self)):
                yield self.cut(at - self.start, min(first, self.start + len(self)) - self.start)
            at = max(at, last)


def piece_of(batch: Recording, members: Sequence[int], start: int, sites: Mapping[str, SiteEntry]) -> Piece:
    """A batch as a piece: every site a plain tensor with one line per row of the examples asked for.

    Raises:
        StoreError: The batch has other examples, rows or shapes than it should.
    """
    ends = {space: _ends(rows, members, space) for space, rows in batch.rows.items()}
    tensors = {}
    for name, site in sites.items():
        if site.rows not in ends:
            raise StoreError(
                f"{name} lies on row space {site.rows!r}; the batch has {list(ends)}. The model must return a row table for each."
            )
        values = batch[name].tensor.detach().cpu()
        wanted = (int(ends[site.rows][-1]), *site.shape)
        if tuple(values.shape) != wanted or (site.dtype and str(values.dtype) != f"torch.{site.dtype}"):
            raise StoreError(
                f"{name} came with shape {tuple(values.shape)} and {values.dtype}; wanted {wanted} and {site.dtype or 'any dtype'}. Leave this site out: what depends on the batch cannot be captured."
            )
        tensors[name] = values
    return Piece(start, ends, tensors, batch.rows, {n: s.rows for n, s in sites.items()})


def _ends(rows: Rows, members: Sequence[int], space: str) -> np.ndarray:
    column = np.asarray(rows["example"])
    counts = np.array([(s := rows.span(m)).stop - s.start if m in rows._spans else 0 for m in members], np.int64)
    if not np.array_equal(np.repeat(np.asarray(members, np.int64), counts), column):
        found = list(dict.fromkeys(column.tolist()))
        raise StoreError(
            f"The batch should hold examples {list(members)[:8]} in this order; its rows{' of ' + space if space else ''} are of {found[:8]}."
        )
    return np.concatenate([[0], counts.cumsum()])


def finite(piece: Piece, members: Sequence[int]) -> None:
    """Are all numbers finite?

    Raises:
        NotFinite: NaN or infinity; the message names the site and the example.
    """
    for name, values in piece.tensors.items():
        if not values.is_floating_point() or _all_finite(values):
            continue
        bad = (~torch.isfinite(values if values.dtype.itemsize > 1 else values.float())).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            row = int(bad[0])
            example = members[int(np.searchsorted(piece.ends[piece.spaces[name]], row, side="right")) - 1]
            what = "NaN" if bool(values[row].isnan().any()) else "infinity"
            hint = "float16 ends at 65504: capture with dtype='bfloat16'" if values.dtype == torch.float16 else "look at this example"
            raise NotFinite(
                f"{name} holds {what} in example {example} ({len(bad)} of its batch's rows); wanted numbers. {hint}, or pass allow_nonfinite=True."
            )


# Bits of infinity by type; all that is larger is NaN. Seen as integers, one thread of numpy finds them faster than torch
# does, whose threads the running model needs.
_INFINITY = {torch.bfloat16: (np.uint16, 0x7F80), torch.float16: (np.uint16, 0x7C00), torch.float32: (np.uint32, 0x7F800000)}
_AT_A_TIME = 1 << 16  # numbers that stay in the processor's cache


def _all_finite(values: Tensor) -> bool:
    if values.dtype not in _INFINITY:
        return bool(torch.isfinite(values.double() if values.dtype.itemsize == 1 else values).all())
    kind, infinity = _INFINITY[values.dtype]
    flat = values.contiguous().view(-1).view(torch.uint8).numpy().view(kind)
    size = kind(np.iinfo(kind).max >> 1)
    return all(int((flat[i : i + _AT_A_TIME] & size).max()) < infinity for i in range(0, len(flat), _AT_A_TIME))
