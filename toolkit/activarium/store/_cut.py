"""From batches to shards: what is refused, and where one shard ends and the next begins."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from activarium.errors import StoreError
from activarium.recording import Recording
from activarium.store._constants import Constants, describe
from activarium.store._format import SHARD_BYTES, Manifest
from activarium.store._pieces import Piece, finite, piece_of


class Cutter:
    """Takes batches, gives the pieces of one shard after the other.

    Attributes:
        manifest: What the store says about itself; the dtypes of a draft are filled in by the first batch.
        constants: Learned attention tensors that were seen so far.
        draft: Is the manifest still one?
        waiting: Bytes that wait for their shard to fill.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        draft: bool = True,
        shard_bytes: int = SHARD_BYTES,
        ends: Collection[int] = (),
        allow_nonfinite: bool = False,
        constants: Constants | None = None,
    ) -> None:
        """Shards hold at most `shard_bytes`, or one example, and end at the places `ends` of the plan in any case."""
        self.manifest, self.draft, self.constants = manifest, draft, constants or Constants()
        self.waiting = 0
        self._limit, self._ends, self._finite = shard_bytes, frozenset(ends), not allow_nonfinite
        self._pending: list[Piece] = []
        self._columns: dict[str, list[str]] = {}

    def complete(self, batch: Recording) -> None:
        """Fill in what only a run can tell: dtypes and how the attention works."""
        if not self.draft:
            return
        draft = self.manifest
        dtypes = {n: s.dtype or str(batch[n].dtype).removeprefix("torch.") for n, s in draft.sites.items()}
        sites = {n: s.model_copy(update={"dtype": dtypes[n]}) for n, s in draft.sites.items()}
        for site in sites.values():
            _ = site.row_bytes  # a dtype that cannot be stored is refused here
        attention = describe(getattr(batch, "attention", {}), sites, draft.aliases)
        self.manifest, self.draft = draft.model_copy(update={"sites": sites, "attention": attention}), False

    def add(self, batch: Recording, members: Sequence[int], at: int, done: Sequence[tuple[int, int]]) -> Iterator[list[Piece]]:
        """Take in the examples `members`, at place `at` of the plan; those in `done` are skipped.

        Raises:
            StoreError: The batch does not fit the plan.
            NotFinite: A value is NaN or infinite.
        """
        self.complete(batch)
        piece = piece_of(batch, members, at, self.manifest.sites)
        self._same_columns(piece)
        if self._finite:
            finite(piece, members)
        self.constants.see(getattr(batch, "attention", {}), self.manifest.attention)
        for rest in piece.outside(done):
            yield from self._take(rest)

    def rest(self) -> list[Piece]:
        """What waits, and no longer does."""
        pieces, self._pending, self.waiting = self._pending, [], 0
        return pieces

    def _same_columns(self, piece: Piece) -> None:
        for space, rows in piece.rows.items():
            first = self._columns.setdefault(space, rows.columns)
            if rows.columns != first:
                raise StoreError(
                    f"A batch's row table has columns {rows.columns}; the first one had {first}. Give all examples the same columns."
                )

    def _take(self, piece: Piece) -> Iterator[list[Piece]]:
        if self._pending and self._pending[-1].start + len(self._pending[-1]) != piece.start:
            yield self.rest()
        # How far one may go before the shard is full: the cut depends only on the examples since the last cut.
        costs = np.concatenate([[0], piece.costs(self.manifest.sites).cumsum()])
        first = 0
        while first < len(piece):
            room = self._limit - self.waiting
            last = int(np.searchsorted(costs, costs[first] + room, side="right")) - 1
            if last <= first and self._pending:
                yield self.rest()
                continue
            last = min(max(last, first + 1), len(piece))
            full = last < len(piece) or piece.start + last in self._ends
            # What waits for the next batch is copied: the batch's own memory is used again.
            self._pending.append(piece.cut(first, last, own=not full))
            self.waiting += int(costs[last] - costs[first])
            if full:
                yield self.rest()
            first = last
