"""Stores that lie elsewhere: any address that fsspec knows, read by byte ranges."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from activarium.errors import CorruptStore, InputError, MissingExtra, StoreError
from activarium.store._format import CODES, MANIFEST, SUFFIX, torch_dtype
from activarium.store._shard import LARGEST_HEADER, Slice, check_size

GAP = 64 << 10  # bytes between two rows that are cheaper to fetch along than to ask again for


class RemotePath:
    """As much of `pathlib.Path` as reading a store takes, on a file system of fsspec."""

    def __init__(self, system: Any, path: str, url: str, sizes: dict[str, int]) -> None:
        self._system, self._path, self._url, self._sizes = system, path, url, sizes
        self.name = posixpath.basename(path)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self._system, f"{self._path}/{name}", f"{self._url}/{name}", self._sizes)

    def __str__(self) -> str:
        return self._url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and (self._url, self._system) == (other._url, other._system)

    def __hash__(self) -> int:
        return hash(self._url)

    def resolve(self) -> RemotePath:
        """There are no links to follow."""
        return self

    def is_relative_to(self, folder: RemotePath) -> bool:
        return self._path.startswith(folder._path)

    def is_dir(self) -> bool:
        """Not every system has folders: what counts is the manifest."""
        return True

    def is_file(self) -> bool:
        return True

    def exists(self) -> bool:
        return self._path in self._sizes or bool(self._system.exists(self._path))

    def stat(self) -> SimpleNamespace:
        size = self._sizes.get(self._path)
        return SimpleNamespace(st_size=self._system.info(self._path)["size"] if size is None else size)

    def read_bytes(self) -> bytes:
        return self._system.cat_file(self._path)

    def open(self, mode: str = "rb") -> Any:
        return self._system.open(self._path, mode)

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes `[first, last)` of each span, asked for together.

        Raises:
            CorruptStore: There are fewer.
        """
        found = self._system.cat_ranges([self._path] * len(spans), [a for a, _ in spans], [b for _, b in spans], on_error="raise")
        if any(len(data) != last - first for data, (first, last) in zip(found, spans, strict=True)):
            raise CorruptStore(f"{self} gave fewer bytes than were asked for. Copy this file again.")
        return found

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        for path in self._system.glob(f"{self._path}/{pattern}"):
            yield RemotePath(self._system, path, f"{self._url}{path.removeprefix(self._path)}", self._sizes)

    def relative_to(self, folder: RemotePath) -> Any:
        return SimpleNamespace(as_posix=lambda: self._path.removeprefix(folder._path).lstrip("/"))


def is_url(path: str | Path) -> bool:
    """Is this an address, and not a path?"""
    return "://" in str(path)


def located(url: str, options: dict[str, Any]) -> Path:
    """The folder at an address; to the reading code it is a path like any other.

    Raises:
        StoreError: The name is none of a store, or there is none.
        MissingExtra: The package that speaks this protocol is not installed.
    """
    from fsspec.core import url_to_fs

    if not url.rstrip("/").endswith(SUFFIX):
        raise StoreError(f"{url!r} is no name for a store: wanted one that ends in {SUFFIX!r}.")
    try:
        system, path = url_to_fs(url, **options)
    except ImportError as reason:
        raise MissingExtra(f"Addresses like {url} need a package that is not installed: {reason}.") from reason
    except ValueError as reason:
        raise InputError(
            f"{url!r} cannot be opened: {reason}. Use a path, or an address that fsspec knows, such as s3:// or memory://."
        ) from reason
    path = path.rstrip("/")
    if "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol):
        return Path(path)
    if not system.exists(f"{path}/{MANIFEST}"):
        raise StoreError(f"There is no store at {url}: no {MANIFEST} answers there. Check the address, and that you may read it.")
    try:  # one listing in place of a question per file
        sizes = {name: int(info["size"]) for name, info in system.find(path, detail=True).items() if info.get("size") is not None}
    except (OSError, NotImplementedError):
        sizes = {}
    return cast(Path, RemotePath(system, path, url.rstrip("/"), sizes))


class RemoteSlice(Slice):
    """One site's rows in one shard that lies elsewhere: only the bytes of the rows asked for travel."""

    path: Any

    def load(self) -> Tensor:
        """All of them."""
        return self.span(0, self.shape[0])

    def span(self, first: int, last: int) -> Tensor:
        """Successive rows."""
        raw = self._fetch(np.arange(first, last))
        return torch.from_numpy(raw.reshape(-1)).view(self.dtype).reshape(last - first, *self.shape[1:])

    def take(self, index: np.ndarray) -> np.ndarray:
        """Some rows as raw bytes, one element per row."""
        wanted, place = np.unique(index, return_inverse=True)
        return self._fetch(wanted)[place].view(f"V{self._row}")[:, 0]

    @property
    def _row(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def _fetch(self, rows: np.ndarray) -> np.ndarray:
        start, row = self._start(), self._row
        made, at = np.empty((len(rows), row), np.uint8), 0
        runs = np.split(rows, np.flatnonzero(np.diff(rows) * row > GAP) + 1) if len(rows) else []
        spans = [(start + int(run[0]) * row, start + (int(run[-1]) + 1) * row) for run in runs]
        for run, data in zip(runs, self.path.ranges(spans) if runs else [], strict=True):
            made[at : at + len(run)] = np.frombuffer(data, np.uint8).reshape(-1, row)[run - run[0]]
            at += len(run)
        return made

    def _start(self) -> int:
        """Where the tensor begins in the file; its header must say what manifest and journal say."""
        begin, header = _header(self.path, self.size)
        entry = header.get(self.name)
        code = CODES[str(self.dtype).removeprefix("torch.")]
        first, last = entry.get("data_offsets", (0, -1)) if isinstance(entry, dict) else (0, -1)
        wanted = (code, list(self.shape), self.shape[0] * self._row)
        if not isinstance(entry, dict) or (entry.get("dtype"), entry.get("shape"), last - first) != wanted or begin + last > self.size:
            raise CorruptStore(
                f"{self.path} does not hold {self.name} as {self.shape} of {self.dtype}; manifest and journal say so. Run store.verify()."
            )
        return begin + int(first)


@lru_cache(maxsize=4096)
def _header(path: RemotePath, size: int) -> tuple[int, dict[str, Any]]:
    check_size(cast(Path, path), size)
    head = int.from_bytes(path.ranges([(0, 8)])[0], "little")
    if head > min(size - 8, LARGEST_HEADER):
        raise CorruptStore(f"{path} announces a header of {head:,} bytes in a file of {size:,}. Take an undamaged copy of this file.")
    try:
        header = json.loads(path.ranges([(8, 8 + head)])[0])
    except (ValueError, RecursionError) as reason:
        raise CorruptStore(f"{path} is not a readable safetensors file ({reason}). Take an undamaged copy of this file.") from None
    return 8 + head, header if isinstance(header, dict) else {}


def remote_tensor(path: RemotePath, size: int, name: str) -> Tensor:
    """One whole tensor of a shard that lies elsewhere."""
    _, header = _header(path, size)
    names = {code: dtype for dtype, code in CODES.items()}
    try:
        shape, dtype = header[name]["shape"], torch_dtype(names[header[name]["dtype"]])
    except (KeyError, TypeError):
        raise CorruptStore(f"{path} does not hold {name!r}; the manifest says so. Take an undamaged copy of this file.") from None
    return RemoteSlice(cast(Path, path), size, name, shape, dtype).load()
