"""Writing a store: shards cut at example boundaries; a shard exists once its journal line is on the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from activarium.activations import Recording
from activarium.errors import StoreError
from activarium.rows import Rows
from activarium.store._constants import Constants, constants_file, describe, load_constants
from activarium.store._disk import explained, sync_folder
from activarium.store._folder import Lock, leftovers, named, read_folder
from activarium.store._format import JOURNAL, MANIFEST, SHARD_BYTES, Manifest, digest, same_capture, space_folder
from activarium.store._journal import Commit, File, Session, joined, line_of
from activarium.store._pieces import Piece, finite, piece_of
from activarium.store._shard import write_shard, write_synced
from activarium.store._tables import write_rows

if TYPE_CHECKING:
    from activarium.store._read import Store


class StoreWriter:
    """Writes batches into a store, or goes on where an earlier writer ended.

    Attributes:
        path: The folder.
        manifest: What the store says about itself; the dtypes of a draft are filled in by the first batch.
        done: Places of the batch plan's order that are committed, as spans.
        written: Bytes of tensors committed by this writer.
    """

    def __init__(
        self,
        path: str | Path,
        draft: Manifest,
        *,
        shard_bytes: int = SHARD_BYTES,
        resume: bool = True,
        allow_nonfinite: bool = False,
        versions: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a folder for writing; nothing but the lock is written before the first batch.

        Raises:
            StoreError: Somebody else writes it, it may not be written, or it exists and `resume` is off.
            OtherModel: It holds a capture of another model, other data or another batch plan.
        """
        self.path, self.manifest, self.shard_bytes = named(path), draft, shard_bytes
        self._finite, self._versions = not allow_nonfinite, dict(versions or {})
        self._begun, self._pending_bytes, self.written = False, 0, 0
        self._pending: list[Piece] = []
        self._columns: dict[str, list[str]] = {}
        with explained(self.path, "open"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path)
        try:
            self._continue(resume)
        except BaseException:
            self._lock.release()
            raise

    def _continue(self, resume: bool) -> None:
        self._exists = (self.path / MANIFEST).exists()
        self.done: list[tuple[int, int]] = []
        self._constants, self._shard, self._session, self._whole = Constants(), 0, 1, 0
        if not self._exists:
            strange = sorted(p.name for p in self.path.iterdir() if p.name not in ("writer.lock", f"{MANIFEST}.part"))
            if strange:
                raise StoreError(f"{self.path} is no store but holds {', '.join(strange[:4])}. Choose another folder, or empty this one.")
            return
        if not resume:
            raise StoreError(f"{self.path} exists already. Choose another name, remove it, or pass resume=True to go on with it.")
        found, journal = read_folder(self.path)
        same_capture(self.manifest, found, self.path)
        self.manifest, self.done = found, journal.done
        self._constants = Constants(load_constants(self.path, journal))
        self._shard = max((c.shard for c in journal.commits), default=-1) + 1
        self._session, self._whole = len(journal.sessions) + 1, journal.whole
        self._left = leftovers(self.path, journal)

    def add(self, batch: Recording, members: Sequence[int], at: int) -> None:
        """Take in a batch: the examples `members`, which stand from place `at` on in the order of the plan.

        Raises:
            StoreError: The batch does not fit the plan, or the disk does not take it.
            NotFinite: A value is NaN or infinite.
        """
        if not self._begun:
            self._begin(batch)
        piece = piece_of(batch, members, at, self.manifest.sites)
        self._same_columns(piece)
        if self._finite:
            finite(piece, members)
        self._constants.see(getattr(batch, "attention", {}), self.manifest.attention)
        for rest in piece.outside(self.done):
            self._take(rest)

    def _begin(self, batch: Recording) -> None:
        with explained(self.path, "begin"):
            if self._exists:
                for name in self._left:
                    (self.path / name).unlink()
            else:
                self.manifest = _completed(self.manifest, batch)
                self._place(MANIFEST, lambda p: write_synced(p, [self.manifest.dump()]))
                sync_folder(self.path)
            self._append(Session(session=self._session, manifest=self._manifest_hash(), versions=self._versions, started=_now()))
        self._begun = True

    def _manifest_hash(self) -> str:
        return digest((self.path / MANIFEST).read_bytes())

    def _same_columns(self, piece: Piece) -> None:
        for space, rows in piece.rows.items():
            first = self._columns.setdefault(space, rows.columns)
            if rows.columns != first:
                raise StoreError(
                    f"A batch's row table has columns {rows.columns}; the first one had {first}. Give all examples the same columns."
                )

    def _take(self, piece: Piece) -> None:
        if self._pending and self._pending[-1].start + len(self._pending[-1]) != piece.start:
            self.commit()
        # How far one may go before the shard is full: the cut depends only on the examples since the last cut.
        costs = np.concatenate([[0], piece.costs(self.manifest.sites).cumsum()])
        first = 0
        while first < len(piece):
            room = self.shard_bytes - self._pending_bytes
            last = int(np.searchsorted(costs, costs[first] + room, side="right")) - 1
            if last <= first and self._pending:
                self.commit()
                continue
            last = min(max(last, first + 1), len(piece))
            ends_here = last == len(piece)
            # What waits for the next batch is copied: the batch's own memory is used again.
            self._pending.append(piece.cut(first, last, own=ends_here))
            self._pending_bytes += int(costs[last] - costs[first])
            if not ends_here:
                self.commit()
            first = last

    def commit(self) -> None:
        """Write what is pending as one shard.

        Raises:
            StoreError: The disk did not take it; what was committed before stays as it is.
        """
        if not self._pending:
            return
        pieces, number, files = self._pending, self._shard, {}
        jobs = self._jobs(pieces)
        constants, names = self._constants.fresh()
        if constants:
            jobs[constants_file(number)] = lambda p: write_shard(p, {n: [t] for n, t in constants.items()})
        spaces = {s: sum(int(p.ends[s][-1]) for p in pieces) for s in pieces[0].ends}
        span = (pieces[0].start, pieces[-1].start + len(pieces[-1]))
        with explained(self.path, f"write shard {number} of", number):
            try:
                for name, write in jobs.items():
                    files[name] = self._place(name, write)
                for folder in {(self.path / n).parent for n in jobs}:
                    sync_folder(folder)
            except OSError:
                for name in files:  # a full disk needs the room
                    (self.path / name).unlink(missing_ok=True)
                raise
            self._append(Commit(shard=number, session=self._session, span=span, rows=spaces, files=files, constants=names))
        self._constants.kept()
        self.done = joined([*self.done, span])
        self._shard, self._pending = number + 1, []
        self.written, self._pending_bytes = self.written + self._pending_bytes, 0

    def _jobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        jobs: dict[str, Any] = {}
        for space in pieces[0].rows:
            table = Rows.concatenate([p.rows[space] for p in pieces])
            jobs[f"rows/{space_folder(space)}/{self._shard:05d}.parquet"] = lambda p, table=table: write_rows(p, table)
        tensors = {name: [p.tensors[name] for p in pieces] for name in self.manifest.sites}
        jobs[f"shards/{self._shard:05d}.safetensors"] = lambda p: write_shard(p, tensors)
        return jobs

    def _place(self, name: str, write: Any) -> File:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = write(path.with_name(path.name + ".part"))
        path.with_name(path.name + ".part").replace(path)
        return file

    def _append(self, entry: Session | Commit) -> None:
        line = line_of(entry)
        path = self.path / JOURNAL
        new = not path.exists()
        with path.open("ab", buffering=0) as file:
            file.truncate(self._whole)  # a torn line of a killed writer goes now
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(self._whole)
                raise
        if new:
            sync_folder(self.path)
        self._whole += len(line)

    def finish(self) -> Store:
        """Commit the rest, let go of the lock and open the store for reading."""
        from activarium.store._read import open_store

        try:
            self.commit()
        finally:
            self.abort()
        return open_store(self.path)

    def abort(self) -> None:
        """Let go of the lock; what is not committed is not in the store."""
        self._pending, self._pending_bytes = [], 0
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()


def _completed(draft: Manifest, batch: Recording) -> Manifest:
    """The draft with what only a run can tell: dtypes and how the attention works."""
    dtypes = {n: s.dtype or str(batch[n].dtype).removeprefix("torch.") for n, s in draft.sites.items()}
    sites = {n: s.model_copy(update={"dtype": dtypes[n]}) for n, s in draft.sites.items()}
    for site in sites.values():
        _ = site.row_bytes  # a dtype that cannot be stored is refused here
    attention = describe(getattr(batch, "attention", {}), sites, draft.aliases)
    return draft.model_copy(update={"sites": sites, "attention": attention})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
