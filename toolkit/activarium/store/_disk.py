"""What the disk says: renames that last, refusals in words."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from activarium.errors import ActivariumError, StoreError


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(path: Path, doing: str, shards: int = 0) -> Iterator[None]:
    """Say in words what the system refuses."""
    try:
        yield
    except ActivariumError:
        raise
    except OSError as reason:
        kept = f" {shards} committed shard(s) stay readable." if shards else ""
        if reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
            raise StoreError(
                f"No space to {doing} {path} ({reason.strerror}; {free:,} bytes free).{kept} Free some and run the same capture again."
            ) from reason
        if reason.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"{path} may not be written ({reason.strerror}). Open it with act.open to read it, or capture into another folder."
            ) from reason
        raise StoreError(f"Could not {doing} {path}: {reason}.{kept} Run the same capture again to go on.") from reason
