"""Shards: safetensors files, written piece by piece while they are hashed, read as memory-mapped slices."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from activarium.errors import CorruptStore
from activarium.store._format import CODES, torch_dtype
from activarium.store._journal import File

LARGEST_HEADER = 100 << 20  # the limit of the safetensors library itself
MAPPED = 32  # shards that stay mapped between random reads; the pages are the system's to take back


def write_shard(path: Path, tensors: Mapping[str, Sequence[Tensor]]) -> File:
    """Write each tensor, given in pieces along its first axis, to `path`, and sync it.

    The library would need every tensor whole and a second pass for the hash; the format itself is a JSON header and bytes.
    """
    header, offset = {}, 0
    order = sorted(tensors, key=lambda n: (-tensors[n][0].dtype.itemsize, n))  # large types first keeps all aligned
    for name in order:
        pieces = tensors[name]
        size = sum(p.numel() for p in pieces) * pieces[0].dtype.itemsize
        shape = [sum(p.shape[0] for p in pieces), *pieces[0].shape[1:]]
        header[name] = {
            "dtype": CODES[str(pieces[0].dtype).removeprefix("torch.")],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-(len(head) + 8) % 64)  # data begin on a cache line
    return write_synced(path, [len(head).to_bytes(8, "little"), head], (_bytes(p) for n in order for p in tensors[n]))


def write_synced(path: Path, *streams: Iterable[bytes | memoryview]) -> File:
    """Write all pieces to a new file, sync it, and tell its size and hash; nothing is left behind on failure."""
    hashed, size = hashlib.blake2b(digest_size=32), 0
    try:
        with path.open("wb") as file:
            for piece in (p for stream in streams for p in stream):
                file.write(piece)
                hashed.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return File(bytes=size, blake2b=hashed.hexdigest())


def _bytes(piece: Tensor) -> memoryview:
    return piece.contiguous().reshape(-1).view(torch.uint8).numpy().data


class Slice:
    """One site's rows in one shard: a `Part` whose tensor is mapped from the file, not read, when it is loaded."""

    def __init__(self, path: Path, size: int, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.path, self.size, self.name, self.shape, self.dtype = path, size, name, tuple(shape), dtype

    def load(self) -> Tensor:
        """The whole slice; its pages come from the disk when they are touched and go with the tensor."""
        return self._fits(read_tensor(self.path, self.size, self.name))

    def take(self, index: np.ndarray) -> np.ndarray:
        """Only these rows, as raw bytes, one element per row; the file stays mapped for the next random read."""
        return raw_rows(self._kept())[index]

    def span(self, first: int, last: int) -> Tensor:
        """Successive rows, mapped; the file stays mapped for the next ones."""
        return self._kept()[first:last]

    def _kept(self) -> Tensor:
        state = self.path.stat() if self.path.exists() else None
        stamp = (state.st_mtime_ns, state.st_ino) if state else None
        return self._fits(_mapped(self.path, self.size, self.name, stamp))

    def _fits(self, values: Tensor) -> Tensor:
        if tuple(values.shape) != self.shape or values.dtype != self.dtype:
            found = f"shape {tuple(values.shape)} and {values.dtype}"
            raise CorruptStore(
                f"{self.path} holds {self.name} with {found}; manifest and journal say {self.shape} and {self.dtype}. Run store.verify()."
            )
        return values


def raw_rows(values: Tensor) -> np.ndarray:
    """Rows as opaque elements: numpy moves them on one thread, where torch would wake all of them for a few kilobytes."""
    return values.view(values.shape[0], -1).view(torch.uint8).numpy().view(f"V{values[0].nbytes}")[:, 0]


def read_tensor(path: Path, size: int, name: str) -> Tensor:
    """One tensor of a shard, mapped; sizes are checked before anything is.

    Raises:
        CorruptStore: The file is missing, of another size, or has a header that does not fit it.
    """
    check_size(path, size)
    try:
        with path.open("rb") as file:
            head = int.from_bytes(file.read(8), "little")
        if head > min(size - 8, LARGEST_HEADER):
            raise CorruptStore(f"{path} announces a header of {head:,} bytes in a file of {size:,}. Take an undamaged copy of this file.")
        with safe_open(str(path), framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118 - not a mapping
                raise CorruptStore(f"{path} does not hold {name!r}; the manifest says so. Take an undamaged copy of this file.")
            return file.get_tensor(name)
    except SafetensorError as reason:
        raise CorruptStore(f"{path} is not a readable safetensors file ({reason}). Take an undamaged copy of this file.") from None


_mapped = lru_cache(maxsize=MAPPED)(lambda path, size, name, stamp: read_tensor(path, size, name))


def check_size(path: Path, size: int) -> None:
    """Is the file there, with as many bytes as were committed?

    Raises:
        CorruptStore: It is missing or of another size.
    """
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise CorruptStore(
            f"{path} is missing; the journal committed it with {size:,} bytes. Copy the store again, with all of its files."
        ) from None
    if found != size:
        raise CorruptStore(f"{path} has {found:,} bytes; the journal committed {size:,}. Copy this file again.")


def empty(shape: Sequence[int], dtype: str) -> Tensor:
    """No rows at all: what a store holds before its first shard."""
    return torch.empty((0, *shape), dtype=torch_dtype(dtype))
