"""Writing a store: shards cut at example boundaries; a shard exists once its journal line is on the disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from activarium.errors import StoreError
from activarium.recording import Recording
from activarium.store._append import Place, place_of
from activarium.store._constants import Constants, constants_file, load_constants
from activarium.store._cut import Cutter
from activarium.store._disk import explained, sync_folder
from activarium.store._files import Portion, PortionWriter, Shard, discard, write_files, written
from activarium.store._folder import Lock, leftovers, named, read_folder
from activarium.store._format import INCOMING, JOURNAL, MANIFEST, SHARD_BYTES, Manifest, digest
from activarium.store._journal import Commit, File, Session, joined, line_of
from activarium.store._pieces import Piece
from activarium.store._shard import write_shard, write_synced

if TYPE_CHECKING:
    from activarium.store._read import Store


class StoreWriter:
    """Writes batches into a store, or goes on where an earlier writer ended.

    Attributes:
        path: The folder.
        first: Example number of the first example; above 0 where the data are appended.
        shard_bytes: Most bytes of tensors per shard.
        written: Bytes of tensors committed by this writer.
    """

    def __init__(
        self,
        path: str | Path,
        draft: Manifest,
        *,
        shard_bytes: int = SHARD_BYTES,
        resume: bool = True,
        append: bool = False,
        ends: Collection[int] = (),
        allow_nonfinite: bool = False,
        versions: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a folder for writing; nothing but the lock is written before the first batch.

        Args:
            path: A folder whose name ends in `.acts`.
            draft: What the store will say about itself, but for what only a batch can tell.
            shard_bytes: Most bytes of tensors per shard; a single example may have more.
            resume: Go on with a folder that exists.
            append: Add these data to a store of other data, unless it holds them already.
            ends: Places of the plan at which a shard ends in any case.
            allow_nonfinite: Keep NaN and infinity.
            versions: For the journal.

        Raises:
            StoreError: Somebody else writes it, it may not be written, or it exists and `resume` is off.
            OtherModel: It holds a capture of another model, other data or another batch plan.
        """
        self.path, self.shard_bytes, self.written = named(path), shard_bytes, 0
        self._versions, self._begun = dict(versions or {}), False
        with explained(self.path, "open"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path)
        try:
            constants = self._continue(draft, resume, append)
        except BaseException:
            self._lock.release()
            raise
        self._options: dict[str, Any] = {"shard_bytes": shard_bytes, "allow_nonfinite": allow_nonfinite}
        absolute = {self._data.start + end for end in ends}
        self._cutter = Cutter(self.manifest, draft=not self._exists, ends=absolute, constants=constants, **self._options)

    def _continue(self, draft: Manifest, resume: bool, append: bool) -> Constants:
        self._exists = (self.path / MANIFEST).exists()
        self._committed: list[tuple[int, int]] = []
        self._left: list[str] = []
        self._shard, self._session, self._whole = 0, 1, 0
        self.manifest, self._data = draft, Place(0, draft.plan.examples, 0)
        if not self._exists:
            ours = ("writer.lock", f"{MANIFEST}.part", INCOMING)
            strange = sorted(p.name for p in self.path.iterdir() if p.name not in ours)
            if strange:
                raise StoreError(f"{self.path} is no store but holds {', '.join(strange[:4])}. Choose another folder, or empty this one.")
            return Constants()
        if not resume:
            raise StoreError(f"{self.path} exists already. Choose another name, remove it, or pass resume=True to go on with it.")
        self.manifest, journal = read_folder(self.path)
        self._data = place_of(draft, self.manifest, journal, self.path, append=append)
        self._committed = journal.done
        self._shard = max((c.shard for c in journal.commits), default=-1) + 1
        self._session, self._whole = len(journal.sessions) + 1, journal.whole
        self._left = leftovers(self.path, journal)
        return Constants(load_constants(self.path, journal))

    @property
    def first(self) -> int:
        return self._data.number

    @property
    def done(self) -> list[tuple[int, int]]:
        """Committed places of these data's batch plan, as spans."""
        start, stop = self._data.start, self._data.start + self._data.examples
        clipped = ((max(a, start) - start, min(b, stop) - start) for a, b in self._committed)
        return [(a, b) for a, b in clipped if a < b]

    def add(self, batch: Recording, members: Sequence[int], at: int) -> None:
        """Take in a batch: the examples `members`, which stand from place `at` on in the order of the plan.

        Raises:
            StoreError: The batch does not fit the plan, or the disk does not take it.
            NotFinite: A value is NaN or infinite.
        """
        if not self._begun:
            self._cutter.complete(batch)
            self._begin()
        for pieces in self._cutter.add(batch, members, at + self._data.start, self._committed):
            self._write(pieces)

    def worker(self) -> PortionWriter:
        """A writer of shards for another process; what it made comes back through `take_in`."""
        cutter = Cutter(self._cutter.manifest, draft=self._cutter.draft, **self._options)
        return PortionWriter(self.path.absolute(), cutter, self._data.start, self._committed)

    def take_in(self, portion: Portion) -> None:
        """Take in shards that a worker wrote into `incoming`.

        Raises:
            StoreError: The worker saw other dtypes or attention than the store has.
        """
        if self._cutter.draft:
            self._cutter.manifest, self._cutter.draft = portion.manifest, False
        if portion.manifest != self._cutter.manifest:
            raise StoreError(
                f"A worker's first batch completes the manifest of {self.path} otherwise than the first one did: "
                f"{portion.manifest.sites} with {portion.manifest.attention}. All workers need the same model and the same versions."
            )
        if not self._begun:
            self._begin()
        for shard in portion.shards:
            self._cutter.constants.take(shard.constants)
            self._commit(shard)

    def _begin(self) -> None:
        self.manifest = self._cutter.manifest
        with explained(self.path, "begin"):
            discard(self.path, self._left)
            if not self._exists:
                self._place({MANIFEST: (f"{MANIFEST}.part", write_synced(self.path / f"{MANIFEST}.part", [self.manifest.dump()]))})
            manifest = digest((self.path / MANIFEST).read_bytes())
            entry = Session(session=self._session, manifest=manifest, versions=self._versions, started=_now())
            self._append(entry.model_copy(update={"appended": self._data.entry}))
        self._begun = True

    def commit(self) -> None:
        """Write what is pending as one shard.

        Raises:
            StoreError: The disk did not take it; what was committed before stays as it is.
        """
        if pieces := self._cutter.rest():
            self._write(pieces)

    def _write(self, pieces: Sequence[Piece]) -> None:
        with explained(self.path, f"write shard {self._shard} of", self._shard):
            self._commit(write_files(self.path, pieces, self.manifest, self._temporary, self._cutter.constants))

    def _temporary(self, _: int, name: str) -> str:
        return name.format(f"{self._shard:05d}") + ".part"

    def _commit(self, shard: Shard) -> None:
        """Move the files of a shard to their places and write its line."""
        number, files = self._shard, dict(shard.files)
        constants, names = self._cutter.constants.fresh()
        with explained(self.path, f"write shard {number} of", number):
            try:
                if constants:
                    side = {constants_file(number): lambda p: write_shard(p, {n: [t] for n, t in constants.items()})}
                    files |= written(self.path, side, self._temporary)
            except OSError:
                discard(self.path, [there for there, _ in files.values()])
                raise
            placed = self._place(files)
            entry = {"shard": number, "session": self._session, "span": shard.span, "rows": dict(shard.rows)}
            self._append(Commit(**entry, files=placed, constants=names))
        self._cutter.constants.kept()
        self._committed = joined([*self._committed, shard.span])
        self._shard, self.written = number + 1, self.written + shard.bytes

    def _place(self, files: Mapping[str, tuple[str, File]]) -> dict[str, File]:
        final = {name.format(f"{self._shard:05d}"): found for name, found in files.items()}
        try:
            for name, (there, _) in final.items():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / there).replace(self.path / name)
            for folder in {(self.path / n).parent for n in final}:
                sync_folder(folder)
        except OSError:
            discard(self.path, [*final, *(there for there, _ in final.values())])
            raise
        return {name: file for name, (_, file) in final.items()}

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
        self._cutter.rest()
        shutil.rmtree(self.path / INCOMING, ignore_errors=True)  # what workers wrote and nobody took in
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
