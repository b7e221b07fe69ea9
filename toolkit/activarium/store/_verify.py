"""Reading every byte of a store again: is it still what was written?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from activarium.errors import CorruptStore
from activarium.store._folder import leftovers, read_folder
from activarium.store._format import file_digest, inside
from activarium.store._journal import Commit
from activarium.store._shard import check_size


@dataclass(frozen=True)
class Verified:
    """All bytes are what was written.

    Attributes:
        files: How many files were read.
        bytes: How many bytes.
        seconds: How long it took.
        leftovers: Files of a killed capture that belong to no shard; the next one removes them.
    """

    files: int
    bytes: int
    seconds: float
    leftovers: tuple[str, ...]

    def __str__(self) -> str:
        rest = f"; {len(self.leftovers)} uncommitted files beside them" if self.leftovers else ""
        return f"{self.files} files, {self.bytes:,} bytes as they were written ({self.seconds:.1f} s){rest}"


def verify_folder(folder: Path) -> Verified:
    """Read every committed file and compare its hash.

    Raises:
        CorruptStore: A file is missing or changed; the message names all of them.
    """
    started = time.perf_counter()
    _, journal = read_folder(folder)
    problems = [p for commit in journal.commits for p in _damaged(folder, commit)]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  … {len(problems) - 20} more" if len(problems) > 20 else "")
        raise CorruptStore(
            f"{folder} has {len(problems)} damaged file(s):\n  {shown}\nCopy these files again; the other shards are as they were written."
        )
    files = [f for c in journal.commits for f in c.files.values()]
    return Verified(len(files) + 2, sum(f.bytes for f in files), time.perf_counter() - started, tuple(leftovers(folder, journal)))


def _damaged(folder: Path, commit: Commit) -> Iterator[str]:
    for name, file in commit.files.items():
        try:
            path = inside(folder, name)
            check_size(path, file.bytes)
            found = file_digest(path)
        except (CorruptStore, OSError) as reason:
            yield f"shard {commit.shard}: {name}: {reason}"
            continue
        if found != file.blake2b:
            yield f"shard {commit.shard}: {name}: blake2b is {found[:16]}…, the journal committed {file.blake2b[:16]}…"
