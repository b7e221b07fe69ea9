"""A folder of pages, `NAME.features`: written beside its place and moved there whole; read file by file, each checked before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from activarium.errors import CorruptStore, StoreError

FORMAT, VERSION = "activarium features", 1
SUFFIX, MANIFEST = ".features", "manifest.json"
LARGEST_MANIFEST = 64 << 20
GROUP = 256  # features in a file


def named(path: str | Path) -> Path:
    """The path of a folder of pages, whose name must say so.

    Raises:
        StoreError: The name ends otherwise.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise StoreError(f"{str(path)!r} is no name for pages: wanted one that ends in {SUFFIX!r}. Try {str(path) + SUFFIX!r}.")
    return path


class Draft:
    """A folder that is being written; it has no manifest and another name, so nothing opens it before it is whole."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        if path.exists() and not overwrite:
            raise StoreError(f"{path} exists already. Choose another name, or pass overwrite=True to write it anew.")
        self.path, self._there = path, path.with_name(path.name + ".part")
        self._files: dict[str, dict[str, Any]] = {}
        shutil.rmtree(self._there, ignore_errors=True)  # what a killed build left
        self._there.mkdir(parents=True)

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays as one safetensors file."""
        from safetensors.numpy import save

        self._write(name, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))

    def words(self, name: str, words: Any) -> None:
        """Write words as JSON; half of a surrogate pair stays what it is."""
        self._write(name, json.dumps(words, ensure_ascii=True, separators=(",", ":")).encode())

    def finish(self, about: Mapping[str, Any]) -> Path:
        """Write the manifest and move the folder to its place."""
        body = {"format": FORMAT, "version": VERSION, **about, "files": self._files}
        self._write(MANIFEST, _dump(body | {"seal": digest(_dump(body))}))
        _sync(self._there)
        old = self.path.with_name(self.path.name + ".old")
        if self.path.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.path.replace(old)
        self._there.replace(self.path)
        shutil.rmtree(old, ignore_errors=True)
        _sync(self.path.parent)
        return self.path

    def drop(self) -> None:
        """Take away what was written."""
        shutil.rmtree(self._there, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        place = self._there / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if name != MANIFEST:
            self._files[name] = {"bytes": len(data), "blake2b": digest(data)}


class Folder:
    """A finished folder.

    Attributes:
        path: Where it is.
        about: What its manifest says.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, _manifest(path)
        self._files: dict[str, dict[str, Any]] = self.about["files"]
        self._sound: set[str] = set()
        for name in self._files:
            self._sized(name)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def arrays(self, name: str) -> Any:
        """An open safetensors file, mapped; its bytes are compared with the manifest the first time.

        Raises:
            CorruptStore: It is missing, changed, or not readable.
        """
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self._checked(name), framework="numpy")
        except SafetensorError as reason:
            raise CorruptStore(f"{self.path / name} is not a readable safetensors file ({reason}). Build the pages again.") from None

    def words(self, name: str) -> Any:
        """What a JSON file says."""
        return json.loads(self._checked(name).read_bytes())

    def _sized(self, name: str) -> Path:
        place = self.path / name
        wanted = self._files[name]["bytes"]
        if not place.is_file():
            raise CorruptStore(
                f"{place} is missing; the manifest lists it with {wanted:,} bytes. Copy the folder again, with all of its files."
            )
        found = place.stat().st_size
        if found != wanted:
            raise CorruptStore(
                f"{place} has {found:,} bytes; the manifest lists {wanted:,}. Copy this file again, or build the pages again."
            )
        return place

    def _checked(self, name: str) -> Path:
        if name not in self._files:
            raise CorruptStore(f"{self.path} has no file {name!r} in its manifest. Build the pages again.")
        place = self._sized(name)
        if name not in self._sound:
            with place.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
            if found != self._files[name]["blake2b"]:
                raise CorruptStore(
                    f"{place} was changed: its blake2b is {found[:16]}…, the manifest lists {self._files[name]['blake2b'][:16]}…. "
                    "Copy this file again, or build the pages again."
                )
            self._sound.add(name)
        return place


def _manifest(folder: Path) -> dict[str, Any]:
    place = folder / MANIFEST
    if not place.is_file():
        beside = sorted(p.name for p in folder.parent.glob(f"*{SUFFIX}")) if folder.parent.is_dir() else []
        raise StoreError(
            f"There are no pages in {folder}: it has no {MANIFEST}. Pages beside it: {', '.join(beside) or 'none'}. "
            "Make some with act.dashboards.build(…, to=…)."
        )
    if place.stat().st_size > LARGEST_MANIFEST:
        raise CorruptStore(
            f"{place} has {place.stat().st_size:,} bytes; a manifest has at most {LARGEST_MANIFEST:,}. Build the pages again."
        )
    try:
        body = json.loads(place.read_bytes())
    except (ValueError, RecursionError) as reason:
        raise CorruptStore(f"{place} is not readable JSON ({reason}). Copy it again, or build the pages again.") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        found = body.get("format") if isinstance(body, dict) else type(body).__name__
        raise StoreError(f"{place} has format {found!r}; wanted {FORMAT!r}. This folder holds something else.")
    if body.get("version") != VERSION:
        raise StoreError(
            f"{place} has version {body.get('version')!r}; this activarium reads version {VERSION}. Update activarium, or build the pages again."
        )
    seal = body.pop("seal", None)
    if seal != digest(_dump(body)):
        raise CorruptStore(f"{place} was changed after it was written: its seal does not fit. Copy it again, or build the pages again.")
    for name in body["files"]:
        _inside(folder, name)
    return body


def _inside(folder: Path, name: str) -> None:
    pure = PurePosixPath(name)
    bad = not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name
    if bad or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise CorruptStore(f"{folder} names the file {name!r}, which lies outside of it. Do not trust these pages; build them again.")


def digest(data: bytes) -> str:
    """blake2b of some bytes, 32 of them, as hex."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _dump(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _sync(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
