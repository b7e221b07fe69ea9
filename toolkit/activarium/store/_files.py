"""The files of one shard: written and synced under names that nobody looks at, until the journal's writer places them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from activarium.errors import StoreError
from activarium.recording import Recording
from activarium.rows import Rows
from activarium.store._constants import Constants
from activarium.store._cut import Cutter
from activarium.store._disk import explained, sync_folder
from activarium.store._format import INCOMING, Manifest, space_folder
from activarium.store._journal import File
from activarium.store._pieces import Piece
from activarium.store._shard import write_shard
from activarium.store._tables import write_rows


@dataclass(frozen=True)
class Shard:
    """One shard on the disk that no journal knows yet.

    Attributes:
        span: Places of its examples in the order of the plan.
        rows: Rows per row space.
        files: Final name, with `{}` for the shard's number → present name, size and hash.
        bytes: Bytes of tensors.
        constants: Learned attention tensors that its examples brought.
    """

    span: tuple[int, int]
    rows: Mapping[str, int]
    files: Mapping[str, tuple[str, File]]
    bytes: int
    constants: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Portion:
    """What a worker made of some batches.

    Attributes:
        manifest: The manifest as its first batch completed it: all workers must agree.
        shards: In the order of the plan.
    """

    manifest: Manifest
    shards: tuple[Shard, ...]


class PortionWriter:
    """Writes shards for a store whose journal another process keeps; they wait in the folder `incoming`.

    Made by `StoreWriter.worker` and sent to where the batches run.
    """

    def __init__(self, folder: Path, cutter: Cutter, start: int, done: Sequence[tuple[int, int]]) -> None:
        self._folder, self._cutter, self._start, self._done = folder, cutter, start, done
        self._shards: list[Shard] = []
        self._name = ""

    def add(self, batch: Recording, members: Sequence[int], at: int) -> None:
        """Take in one batch, as `StoreWriter.add`."""
        for pieces in self._cutter.add(batch, members, at + self._start, self._done):
            self._write(pieces)

    def finish(self) -> Portion:
        """Write the rest; everything is on the disk.

        Raises:
            StoreError: The disk did not take it; nothing of the portion stays.
        """
        if pieces := self._cutter.rest():
            self._write(pieces)
        if self._shards:
            with explained(self._folder, "write"):
                sync_folder(self._folder / INCOMING)
        return Portion(self._cutter.manifest, tuple(self._shards))

    def abort(self) -> None:
        """Take the shards away again."""
        discard(self._folder, [there for shard in self._shards for there, _ in shard.files.values()])

    def _write(self, pieces: Sequence[Piece]) -> None:
        # A name of this attempt alone: one that was thought dead may still be writing.
        self._name = self._name or uuid4().hex
        stem, constants = f"{INCOMING}/{self._name}-{len(self._shards)}", self._cutter.constants
        if not self._folder.is_dir():
            raise StoreError(
                f"{self._folder} is not there for the worker on {socket.gethostname()}. Workers write their shards themselves: "
                "capture into a folder that every machine of the cluster sees under this path."
            )
        with explained(self._folder, "write a shard of"):
            self._shards.append(write_files(self._folder, pieces, self._cutter.manifest, lambda i, _: f"{stem}-{i}.part", constants))
        constants.kept()


def write_files(
    folder: Path, pieces: Sequence[Piece], manifest: Manifest, temporary: Callable[[int, str], str], constants: Constants
) -> Shard:
    """Write the files of one shard, each under the name that `temporary` gives it; after a failure none is left."""
    jobs: dict[str, Callable[[Path], File]] = {}
    for space in pieces[0].rows:
        table = Rows.concatenate([p.rows[space] for p in pieces])
        jobs[f"rows/{space_folder(space)}/{{}}.parquet"] = lambda p, table=table: write_rows(p, table)
    tensors = {name: [p.tensors[name] for p in pieces] for name in manifest.sites}
    jobs["shards/{}.safetensors"] = lambda p: write_shard(p, tensors)
    files = written(folder, jobs, temporary)
    return Shard(
        span=(pieces[0].start, pieces[-1].start + len(pieces[-1])),
        rows={s: sum(int(p.ends[s][-1]) for p in pieces) for s in pieces[0].ends},
        files=files,
        bytes=sum(t.nbytes for parts in tensors.values() for t in parts),
        constants=constants.new(),
    )


def written(folder: Path, jobs: Mapping[str, Any], temporary: Callable[[int, str], str]) -> dict[str, tuple[str, File]]:
    """Run all jobs, each with a path to write to; a full disk gets its room back."""
    files: dict[str, tuple[str, File]] = {}
    try:
        for i, (name, write) in enumerate(jobs.items()):
            there = temporary(i, name)
            (folder / there).parent.mkdir(parents=True, exist_ok=True)
            files[name] = there, write(folder / there)
    except OSError:
        discard(folder, [there for there, _ in files.values()])
        raise
    return files


def discard(folder: Path, names: Iterable[str]) -> None:
    """Remove files that will not be committed: a full disk needs the room."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
