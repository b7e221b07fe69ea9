"""Reading a store: a Recording whose sites are memory-mapped shard slices."""

from __future__ import annotations

import html
import itertools
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from activarium.activations import Activations
from activarium.errors import InputError
from activarium.store._constants import load_constants
from activarium.store._derived import Captured
from activarium.store._folder import named, plausible, read_folder, row_tables
from activarium.store._format import MANIFEST, AttentionEntry, Manifest, digest, inside, torch_dtype
from activarium.store._journal import Journal
from activarium.store._remote import RemoteSlice, is_url, located
from activarium.store._shard import Slice, check_size, empty
from activarium.store._stored import Stored
from activarium.store._tables import lazy_rows
from activarium.store._verify import Verified, verify_folder

if TYPE_CHECKING:
    import pandas


class Store(Captured):
    """A capture on the disk, read lazily; to an analysis it is any other Recording.

    Attributes:
        path: The folder.
        manifest: Model, data, batch plan and sites, as they were captured.
    """

    def __init__(self, path: Path, *, check: bool = True) -> None:
        self.path = path
        self.manifest, self._journal = read_folder(path)
        if check:
            for name, file in ((n, f) for c in self._journal.commits for n, f in c.files.items()):
                check_size(path / name, file.bytes)
        sites, journal = self.manifest.sites, self._journal
        plausible(path, self.manifest, journal)
        found = {s.rows for s in sites.values()} | {s for c in journal.commits for s in c.rows}
        rows = {space: lazy_rows(row_tables(path, journal, space)) for space in sorted(found)}
        constants = load_constants(path, journal)
        attention = {b: _spec(b, e, constants) for b, e in self.manifest.attention.items() if journal.commits}
        makers = {name: partial(self._make, name) for name in sites}
        super().__init__(
            makers, rows, _provenance(path, self.manifest, journal), self.manifest.aliases, attention, {n: s.rows for n, s in sites.items()}
        )

    def _make(self, name: str) -> Activations:
        entry = self.manifest.sites[name]
        dtype = torch_dtype(entry.dtype)
        part = Slice if isinstance(self.path, Path) else RemoteSlice
        slices: list[Any] = []
        for commit in self._journal.commits:
            file = f"shards/{commit.shard:05d}.safetensors"
            shape = (commit.rows[entry.rows], *entry.shape)
            slices.append(part(inside(self.path, file), commit.files[file].bytes, name, shape, dtype))
        kind = Stored if slices else Activations
        return kind(
            slices or empty(entry.shape, entry.dtype), entry.axes, site=name, index=self.rows[entry.rows], provenance=self.provenance
        )

    @property
    def examples(self) -> int:
        """How many examples are committed."""
        return sum(last - first for first, last in self._journal.done)

    @property
    def complete(self) -> bool:
        """Did the capture come to its end?"""
        return self.examples == self.planned

    @property
    def planned(self) -> int:
        """How many examples it will hold, appended ones included."""
        return self._journal.planned(self.manifest)

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(f.bytes for c in self._journal.commits for f in c.files.values())

    def verify(self) -> Verified:
        """Are all bytes what was written? Reads every file once.

        Raises:
            CorruptStore: Some are not; the message names every damaged file with its shard.
        """
        return verify_folder(self.path)

    def info(self) -> pandas.DataFrame:
        """What is stored, one line per site, aliases included."""
        import pandas

        lines = []
        for name in [*self.manifest.sites, *self.manifest.aliases]:
            kept = self._aliases.get(name, name)
            entry = self.manifest.sites[kept]
            shape = (sum(c.rows[entry.rows] for c in self._journal.commits), *entry.shape)
            size = shape[0] * entry.row_bytes
            lines.append(
                (
                    name,
                    entry.axes,
                    entry.rows,
                    "×".join(map(str, shape)),
                    entry.dtype,
                    size if kept == name else 0,
                    kept if kept != name else "",
                )
            )
        return pandas.DataFrame(lines, columns=["site", "axes", "rows", "shape", "dtype", "bytes", "stored as"])

    def _state(self) -> str:
        model = self.manifest.model.get("name", "unknown model")
        rows = ", ".join(f"{sum(c.rows[s] for c in self._journal.commits):,} rows{' of ' + s if s else ''}" for s in self.rows)
        ends = "" if self.complete else f"; incomplete: {self.examples:,} of {self.planned:,} examples, run the same capture to go on"
        return f"{self.path.name}: {model}, {len(self)} sites, {rows}, {self.nbytes / 2**20:,.1f} MiB in {len(self._journal.commits)} shards{ends}"

    def __repr__(self) -> str:
        lines = [f"  {n}  {e.axes}  {e.dtype}" for n, e in itertools.islice(self.manifest.sites.items(), 40)]
        more = [f"  … {len(self) - 40} more"] if len(self) > 40 else []
        return "\n".join([f"Store({self._state()})", *lines, *more])

    def _repr_html_(self) -> str:
        table = self.info().head(60).to_html(index=False, escape=True, border=0)
        more = f"<p>… {len(self) - 60} more</p>" if len(self) > 60 else ""
        return f"<div><p><b>{html.escape(self._state())}</b></p>{table}{more}</div>"


def open_store(path: str | Path, *, check: bool = True, **options: Any) -> Store:
    """What was captured into this folder, ready to be read as any Recording.

    Only manifest and journal are read, and the size of every file looked at; tensors are mapped when they are asked for.

    Args:
        path: A folder whose name ends in `.acts`, or its address on any file system that fsspec knows (`s3://…`, `https://…`): then
            only the bytes of the rows that are asked for travel.
        check: Look at every file's presence and size.
        **options: For that file system, as `anon=True`.

    Raises:
        StoreError: There is no store, or it is of a later format.
        CorruptStore: Manifest, journal or a file's size are not what was written.
        MissingExtra: The package that speaks an address's protocol is not installed.
    """
    if is_url(path):
        return Store(located(str(path), options), check=check)
    if options:
        raise InputError(f"{', '.join(options)}: options are for addresses such as s3://…; {path} is a folder. Leave them out.")
    return Store(named(path), check=check)


def _spec(block: str, entry: AttentionEntry, constants: dict[str, Tensor]) -> Any:
    from activarium.attention import AttentionSpec

    return AttentionSpec.from_json(entry.numbers, {kind: constants[f"{block}.{kind}"] for kind in entry.tensors})


def _provenance(path: Path, manifest: Manifest, journal: Journal) -> dict[str, Any]:
    text = (path / MANIFEST).read_bytes()
    kinds = sorted({s.dtype for s in manifest.sites.values()})
    made = {
        "id": digest(text),
        "model": manifest.model,
        "data": manifest.data,
        "plan": manifest.plan.model_dump(mode="json"),
        "dtype": kinds,
    }
    if not journal.appended:
        return made
    appended = [a.model_dump(mode="json") for a in journal.appended]
    return made | {"id": digest(text + json.dumps(appended, sort_keys=True).encode()), "appended": appended}
