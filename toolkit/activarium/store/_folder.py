"""A store's folder as a whole: what it holds, the lock against a second writer, what a killed one left behind."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from activarium.errors import CorruptStore, StoreError
from activarium.store._format import INCOMING, JOURNAL, LOCK, MANIFEST, SUFFIX, Manifest, digest, inside, read_text, space_folder
from activarium.store._journal import Journal


def named(path: str | Path) -> Path:
    """The path of a store, whose name must say so.

    Raises:
        StoreError: The name ends otherwise.
    """
    if "://" in str(path):
        raise StoreError(
            f"{str(path)!r} is an address; a store is written into a folder. Write it here, copy it there, and act.open reads it."
        )
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise StoreError(
            f"{str(path)!r} is no name for a store: wanted one that ends in {SUFFIX!r}. Try {str(path.with_suffix(SUFFIX))!r}."
        )
    return path


def read_folder(folder: Path) -> tuple[Manifest, Journal]:
    """Manifest and journal of a store, checked against each other.

    Raises:
        StoreError: There is no store here, or it is of a later version.
        CorruptStore: Manifest or journal are not what was written, or name files outside of the folder.
    """
    if not folder.is_dir():
        near = sorted(p.name for p in folder.parent.glob(f"*{SUFFIX}")) if folder.parent.is_dir() else []
        raise StoreError(
            f"There is no store {folder}. Stores beside it: {', '.join(near) or 'none'}. Make one with act.capture(…, to={str(folder)!r})."
        )
    if not (folder / MANIFEST).exists():
        raise StoreError(
            f"{folder} has no {MANIFEST}: it is not a store, or nothing was captured into it yet. Run act.capture(…, to={str(folder)!r})."
        )
    text = read_text(inside(folder, MANIFEST))
    manifest, journal = Manifest.parse(text, folder / MANIFEST), Journal(inside(folder, JOURNAL))
    hashes = {s.manifest for s in journal.sessions} - {digest(text)}
    if hashes:
        raise CorruptStore(
            f"{folder / MANIFEST} was changed: its blake2b is {digest(text)[:16]}…, the journal says {hashes.pop()[:16]}…. Put the original back."
        )
    if not journal.sessions and (folder / "shards" / "00001.safetensors").exists():
        raise CorruptStore(
            f"{folder / JOURNAL} is missing or empty, although there are shards. Copy the journal again: without it no shard counts."
        )
    for commit in journal.commits:
        for name in commit.files:
            inside(folder, name)
    return manifest, journal


def plausible(folder: Path, manifest: Manifest, journal: Journal) -> None:
    """Do the shards have room for the rows that are claimed? Asked before anybody makes room for them.

    Raises:
        CorruptStore: A shard is smaller than its rows.
    """
    row_bytes: dict[str, int] = {}
    for site in manifest.sites.values():
        row_bytes[site.rows] = row_bytes.get(site.rows, 0) + site.row_bytes
    for commit in journal.commits:
        file = commit.files.get(f"shards/{commit.shard:05d}.safetensors")
        rows = {space: commit.rows.get(space, -1) for space in row_bytes}
        claimed = sum(rows[s] * row_bytes[s] for s in rows)
        if file is None or min(rows.values(), default=0) < 0 or claimed > file.bytes:
            have = f"{file.bytes:,} bytes" if file else "no file"
            raise CorruptStore(
                f"{folder} claims {rows} rows in shard {commit.shard}, which take {claimed:,} bytes; the shard has {have}. Do not trust this store."
            )


def row_tables(folder: Path, journal: Journal, space: str) -> list[tuple[Path, int, int]]:
    """The row tables of one row space: path, bytes, rows."""
    names = [(f"rows/{space_folder(space)}/{c.shard:05d}.parquet", c) for c in journal.commits if space in c.rows]
    return [(inside(folder, name), c.files[name].bytes, c.rows[space]) for name, c in names]


class Lock:
    """Keeps a second writer out; the system lets go of it however the first one ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        try:
            self._handle = self._take()
        except BlockingIOError:
            holder = self._path.read_text() or "another process"
            raise StoreError(f"{folder} is being written by {holder}. Wait for it to end, or capture into another folder.") from None

    def _take(self) -> int:
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(handle)
            except BaseException:
                os.close(handle)
                raise
            # A writer that ended just now removed the file we hold: then take the new one.
            if self._path.exists() and os.path.samestat(os.fstat(handle), self._path.stat()):
                break
            os.close(handle)
        with contextlib.suppress(OSError):  # the name of the holder helps, but a full disk need not have room for it
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return handle

    def release(self) -> None:
        """Let the next writer in."""
        if self._handle >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as reason:
            raise BlockingIOError(str(reason)) from None
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def leftovers(folder: Path, journal: Journal) -> list[str]:
    """Files of shards that were never committed, as a killed writer leaves them."""
    known = {name for c in journal.commits for name in c.files}
    ours = [p for kind in ("shards/*", "rows/*/*", "constants/*", f"{INCOMING}/*", "*.part") for p in folder.glob(kind) if p.is_file()]
    names = (p.relative_to(folder).as_posix() for p in ours)
    return sorted(n for n in names if n not in known)
