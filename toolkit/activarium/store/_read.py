"""Reading a store: a Recording whose sites are memory-mapped shard slices."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations, is_pattern
from activarium.errors import InputError
from activarium.store._constants import load_constants
from activarium.store._derived import Captured
from activarium.store._folder import named, read_folder, row_tables
from activarium.store._format import MANIFEST, AttentionEntry, Manifest, digest, inside, torch_dtype
from activarium.store._shard import Slice, check_size, empty, raw_rows
from activarium.store._tables import lazy_rows
from activarium.store._verify import Verified, verify_folder

if TYPE_CHECKING:
    import pandas


class Stored(Activations):
    """Activations on the disk: random rows come from the shards that hold them, and only those rows."""

    def rows(self, index: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The chosen rows, in the order asked for; only these are read."""
        if self._members:
            return torch.stack([m.rows(index) for m in self._members])
        wanted = np.asarray(index, dtype=np.int64)
        total = len(self)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= total):
            raise InputError(f"{self.site} has rows 0 to {total - 1}; asked for {int(wanted.min())} to {int(wanted.max())}.")
        ends = np.cumsum([p.shape[0] for p in self._parts])
        # In ascending order each shard is visited once, and the disk reads forwards.
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        cuts = np.searchsorted(ascending, ends)
        made = torch.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        if not made.numel():
            return made
        target = raw_rows(made)
        for part, first, last, end in zip(self._parts, [0, *cuts[:-1]], cuts, ends, strict=True):
            if last > first:
                target[order[first:last]] = part.take(ascending[first:last] - (end - part.shape[0]))  # type: ignore[union-attr]
        return made


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
        found = {s.rows for s in sites.values()} | {s for c in journal.commits for s in c.rows}
        rows = {space: lazy_rows(row_tables(path, journal, space)) for space in sorted(found)}
        constants = load_constants(path, journal)
        attention = {b: _spec(b, e, constants) for b, e in self.manifest.attention.items() if journal.commits}
        makers = {name: partial(self._make, name) for name in sites}
        super().__init__(
            makers, rows, _provenance(path, self.manifest), self.manifest.aliases, attention, {n: s.rows for n, s in sites.items()}
        )

    def _make(self, name: str) -> Activations:
        entry = self.manifest.sites[name]
        dtype = torch_dtype(entry.dtype)
        slices: list[Any] = []
        for commit in self._journal.commits:
            file = f"shards/{commit.shard:05d}.safetensors"
            shape = (commit.rows[entry.rows], *entry.shape)
            slices.append(Slice(inside(self.path, file), commit.files[file].bytes, name, shape, dtype))
        kind = Stored if slices else Activations
        return kind(
            slices or empty(entry.shape, entry.dtype), entry.axes, site=name, index=self.rows[entry.rows], provenance=self.provenance
        )

    def __getitem__(self, name: str) -> Activations:
        found = super().__getitem__(name)
        if is_pattern(name) and all(isinstance(m, Stored) for m in found._members):
            return Stored.stack(found._members, found.labels["layer"], name)
        return found

    @property
    def examples(self) -> int:
        """How many examples are committed."""
        return sum(last - first for first, last in self._journal.done)

    @property
    def complete(self) -> bool:
        """Did the capture come to its end?"""
        return self.examples == self.manifest.plan.examples

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
        ends = (
            ""
            if self.complete
            else f"; incomplete: {self.examples:,} of {self.manifest.plan.examples:,} examples, run the same capture to go on"
        )
        return f"{self.path.name}: {model}, {len(self)} sites, {rows}, {self.nbytes / 2**20:,.1f} MiB in {len(self._journal.commits)} shards{ends}"

    def __repr__(self) -> str:
        lines = [f"  {n}  {e.axes}  {e.dtype}" for n, e in itertools.islice(self.manifest.sites.items(), 40)]
        more = [f"  … {len(self) - 40} more"] if len(self) > 40 else []
        return "\n".join([f"Store({self._state()})", *lines, *more])

    def _repr_html_(self) -> str:
        table = self.info().head(60).to_html(index=False, escape=True, border=0)
        more = f"<p>… {len(self) - 60} more</p>" if len(self) > 60 else ""
        return f"<div><p><b>{html.escape(self._state())}</b></p>{table}{more}</div>"


def open_store(path: str | Path, *, check: bool = True) -> Store:
    """What was captured into this folder, ready to be read as any Recording.

    Only manifest and journal are read, and the size of every file looked at; tensors are mapped when they are asked for.

    Args:
        path: A folder whose name ends in `.acts`.
        check: Look at every file's presence and size.

    Raises:
        StoreError: There is no store, or it is of a later format.
        CorruptStore: Manifest, journal or a file's size are not what was written.
    """
    return Store(named(path), check=check)


def _spec(block: str, entry: AttentionEntry, constants: dict[str, Tensor]) -> Any:
    from activarium.attention import AttentionSpec

    return AttentionSpec.from_json(entry.numbers, {kind: constants[f"{block}.{kind}"] for kind in entry.tensors})


def _provenance(path: Path, manifest: Manifest) -> dict[str, Any]:
    text = (path / MANIFEST).read_bytes()
    kinds = sorted({s.dtype for s in manifest.sites.values()})
    return {
        "id": digest(text),
        "model": manifest.model,
        "data": manifest.data,
        "plan": manifest.plan.model_dump(mode="json"),
        "dtype": kinds,
    }
