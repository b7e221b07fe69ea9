"""Store format, version 1: what lies where in `NAME.acts/`, the manifest, hashes and safe paths."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, Self

import pydantic
import torch
from pydantic import BaseModel, ConfigDict

from activarium.errors import CorruptStore, OtherModel, StoreError

FORMAT, VERSION = "activarium store", 1
SUFFIX = ".acts"
MANIFEST, JOURNAL, LOCK = "manifest.act.json", "journal.jsonl", "writer.lock"
INCOMING = "incoming"  # where workers leave shards until the store's one writer takes them in
SHARD_BYTES = 64 << 20
LARGEST_TEXT = 1 << 30  # a manifest or journal beyond this is not ours: refused before it is read
# Codes of the safetensors format, which is what lies on the disk.
CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteEntry(_Part):
    """One stored site.

    Attributes:
        axes: Axis names, the first along the rows.
        rows: Row space, "" for models with a single stack.
        shape: Sizes of the axes after the first.
        dtype: Type of the numbers on disk; "" in a draft, until the first batch shows it.
    """

    axes: str
    rows: str
    shape: tuple[int, ...]
    dtype: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes."""
        count = 1
        for size in self.shape:
            count *= size
        return count * torch_dtype(self.dtype).itemsize


class PlanEntry(_Part):
    """The batch plan: a matrix product's rounding changes with batch shape, so the shapes are part of the record.

    Attributes:
        examples: How many examples there are.
        batch_tokens: The setting that the plan was made with.
        sizes: Examples per batch, in the order of the stored rows.
        padded: Padded length of each batch.
        hash: Of members and lengths.
    """

    examples: int
    batch_tokens: int
    sizes: tuple[int, ...]
    padded: tuple[int, ...]
    hash: str


class AttentionEntry(_Part):
    """How scores follow from stored queries and keys: numbers here, learned tensors (`constants/`) by name."""

    numbers: dict[str, Any]
    tensors: tuple[str, ...] = ()


class Manifest(_Part):
    """Everything about a store that never changes.

    Attributes:
        format: What this file is.
        version: Of the layout.
        model: Name, revision, weight hash, certificate, kernel, versions.
        data: Hash, policy and size of the inputs.
        dtype: Type that was asked for; "" keeps what the model computed.
        plan: Which examples ran together.
        sites: What is stored.
        aliases: Other names of the same values.
        attention: Block → how scores follow from `q_rot` and `k_rot`.
    """

    format: str = FORMAT
    version: int = VERSION
    model: dict[str, Any]
    data: dict[str, Any]
    dtype: str = ""
    plan: PlanEntry
    sites: dict[str, SiteEntry]
    aliases: dict[str, str] = {}
    attention: dict[str, AttentionEntry] = {}

    def dump(self) -> bytes:
        """The manifest as the bytes that are stored and hashed."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()

    @classmethod
    def parse(cls, text: bytes, where: Path) -> Self:
        """Read a manifest, the version first so that a later format gets its own message.

        Raises:
            StoreError: It is of another format or of a later version.
            CorruptStore: It cannot be read.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as reason:
            raise CorruptStore(f"{where} is not readable JSON ({reason}). Take an undamaged copy of the store.") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise StoreError(f"{where} has format {found!r}; wanted {FORMAT!r}. This folder is not an activarium store, or is damaged.")
        version = raw.get("version")
        if type(version) is not int or version != VERSION:
            raise StoreError(
                f"{where} has format version {version!r}; this activarium reads version {VERSION}. Update activarium: pip install -U activarium."
            )
        try:
            return cls.model_validate(raw)
        except pydantic.ValidationError as reason:
            where_inside = ".".join(map(str, reason.errors()[0]["loc"]))
            raise CorruptStore(
                f"{where} has a bad entry at {where_inside!r}: {reason.errors()[0]['msg']}. Take an undamaged copy of the store."
            ) from None


def same_capture(wanted: Manifest, found: Manifest, where: Path) -> None:
    """Is the store on disk the one that this capture would write?

    Raises:
        OtherModel: Model, weights, data, plan, sites or dtype differ; the message shows both.
    """
    for thing, want, have in _identity(wanted, found):
        if want != have:
            append = ", or pass append=True to add these data" if thing in ("data hash", "batch plan") else ""
            raise OtherModel(
                f"{where} was captured with {thing} {_short(have)}; this capture has {_short(want)}. Choose another folder, or use the same {thing}{append}."
            )


def _identity(wanted: Manifest, found: Manifest) -> list[tuple[str, Any, Any]]:
    keys = [k for k in ("name", "revision", "weight_hash", "dtype", "kernel", "processor_hash") if k in wanted.model or k in found.model]
    pairs = [(f"model {k}", wanted.model.get(k), found.model.get(k)) for k in keys]
    pairs += [("data hash", wanted.data.get("hash"), found.data.get("hash")), ("batch plan", wanted.plan.hash, found.plan.hash)]
    pairs += [("dtype", wanted.dtype, found.dtype)]
    pairs += [("sites", " ".join(sorted(wanted.sites)), " ".join(sorted(found.sites)))]
    for name, site in wanted.sites.items():
        other = found.sites.get(name, site)
        # A draft does not know a dtype before its first batch has run.
        pairs.append((f"{name} as", site, other if site.dtype else other.model_copy(update={"dtype": ""})))
    return pairs


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "…"


def torch_dtype(name: str) -> torch.dtype:
    """The torch type that a stored name stands for.

    Raises:
        StoreError: The name stands for no type that a store can hold.
    """
    if name not in CODES:
        raise StoreError(f"A store cannot hold dtype {name!r}. Choose one of {', '.join(CODES)}.")
    return getattr(torch, name)


def digest(data: bytes) -> str:
    """blake2b of some bytes, 32 of them, as hex."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def file_digest(path: Path) -> str:
    """blake2b of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def space_folder(space: str) -> str:
    """Folder name of a row space; the only stack of a model is `main`."""
    if space == "main" or (space and not (space.isascii() and all(word.isidentifier() for word in space.split(".")))):
        raise StoreError(f"A row space called {space!r} cannot be stored: wanted plain words joined by dots, and not 'main'.")
    return space or "main"


def inside(folder: Path, name: str) -> Path:
    """The path of a file of the store, which must lie in the store also after links are followed.

    Raises:
        CorruptStore: The name leads out of the folder.
    """
    pure = PurePosixPath(name)
    bad = not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name
    if bad or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise CorruptStore(
            f"{folder} names the file {name!r}, which lies outside of the store. Do not trust this store; take it from its source again."
        )
    return folder / name


def read_text(path: Path) -> bytes:
    """A manifest or journal, its size checked first."""
    size = path.stat().st_size
    if size > LARGEST_TEXT:
        raise CorruptStore(
            f"{path} has {size:,} bytes; a store's text files have at most {LARGEST_TEXT:,}. Take an undamaged copy of the store."
        )
    return path.read_bytes()
