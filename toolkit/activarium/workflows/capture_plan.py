"""What a capture will do, before it does it: sites, batches, rows, bytes, and whether they fit."""

from __future__ import annotations

import html
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from activarium.errors import CapacityError, InputError, MissingSite, unknown
from activarium.store import Manifest, PlanEntry, SiteEntry, torch_dtype
from activarium.workflows.batch_plan import Batch, batch_plan, plan_hash

RESERVE = 64 << 20  # bytes left free on the disk, for row tables and for everybody else
COMPUTED = {"pattern", "scores"}


@dataclass(frozen=True)
class CapturePlan:
    """A capture that has not run yet; it prints itself as a table.

    Attributes:
        entries: Site → axes, row space, shape and the dtype it will probably have.
        aliases: Other names that the same values will answer to.
        reads: What the model is asked for: the kept sites, and by which names their attention is described.
        derived: Sites asked for that are computed on reading, from queries and keys that are kept.
        batches: Which examples run together, longest first, so that a batch that is too large fails at once.
        rows: Row space → number of rows.
        dtype: Type that was asked for, "" for what the model computes.
        batch_tokens: Padded rows per batch.
        to: The folder, or None for memory.
        room: Bytes that are free there.
        memory: Bytes of memory that are free.
        costs: Bytes of each batch.
        done: Bytes that the folder holds already.
        hash: Of the batch plan.
    """

    entries: Mapping[str, SiteEntry]
    aliases: Mapping[str, str]
    reads: tuple[str, ...]
    derived: tuple[str, ...]
    batches: tuple[Batch, ...]
    rows: Mapping[str, int]
    dtype: str
    batch_tokens: int
    to: Path | None
    room: int
    memory: int
    costs: tuple[int, ...]
    done: int
    hash: str

    @property
    def sites(self) -> tuple[str, ...]:
        """What is kept."""
        return tuple(self.entries)

    @property
    def bytes(self) -> Mapping[str, int]:
        """Predicted bytes of each site."""
        return {name: self.rows[e.rows] * e.row_bytes for name, e in self.entries.items()}

    @property
    def total(self) -> int:
        """Predicted bytes of all sites."""
        return sum(self.bytes.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest batch."""
        return max(self.costs)

    @property
    def examples(self) -> int:
        """How many examples."""
        return sum(len(b.members) for b in self.batches)

    @property
    def fits(self) -> bool:
        """Is there room?"""
        return not self._lack()

    def check(self) -> None:
        """Is there room?

        Raises:
            CapacityError: The predicted bytes do not fit in memory or on the disk.
        """
        lack = self._lack()
        if lack:
            raise CapacityError(lack)

    def _lack(self) -> str:
        if self.to is None and self.total + 2 * self.largest > self.memory:
            return (
                f"This capture takes {_size(self.total)} of memory (and {_size(2 * self.largest)} while it runs); {_size(self.memory)} are free. "
                "Capture to a folder: to='name.acts', choose fewer sites, or dtype='bfloat16'."
            )
        # One batch is being made while one waits and one is written.
        if self.to is not None and 3 * self.largest > self.memory:
            return f"Three batches of {_size(self.largest)} are in memory at a time; {_size(self.memory)} are free. Lower batch_tokens, now {self.batch_tokens}."
        if self.to is not None and self.total - self.done + RESERVE > self.room:
            return f"This capture writes {_size(self.total - self.done)} to {self.to}; {_size(self.room)} are free there. Choose fewer sites, dtype='bfloat16', or another disk."
        return ""

    def entry(self) -> PlanEntry:
        """The batch plan as a manifest records it."""
        sizes = tuple(len(b.members) for b in self.batches)
        return PlanEntry(
            examples=self.examples,
            batch_tokens=self.batch_tokens,
            sizes=sizes,
            padded=tuple(b.padded for b in self.batches),
            hash=self.hash,
        )

    def draft(self, model: dict[str, Any], data: dict[str, Any]) -> Manifest:
        """The manifest, but for what only the first batch can tell."""
        sites = {n: e.model_copy(update={"dtype": self.dtype}) for n, e in self.entries.items()}
        return Manifest(model=model, data=data, dtype=self.dtype, plan=self.entry(), sites=sites, aliases=dict(self.aliases))

    def summary(self) -> str:
        """One line."""
        rows = ", ".join(f"{n:,} rows{' of ' + s if s else ''}" for s, n in self.rows.items())
        where = f"to {self.to}" if self.to else "to memory"
        return (
            f"{len(self.entries)} sites, {self.examples:,} examples in {len(self.batches):,} batches, {rows}: {_size(self.total)} {where}"
        )

    def note(self) -> str:
        """What is kept in place of what was asked for."""
        return (
            f"{', '.join(self.derived)}: queries and keys are kept, patterns and scores are computed from them when asked for."
            if self.derived
            else ""
        )

    def _lines(self) -> list[tuple[str, str, str, str]]:
        shapes = {n: "×".join(map(str, (self.rows[e.rows], *e.shape))) for n, e in self.entries.items()}
        return [("site", "axes", "shape", "bytes"), *[(n, e.axes, shapes[n], f"{self.bytes[n]:,}") for n, e in self.entries.items()]]

    def __repr__(self) -> str:
        lines = self._lines()
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([f"CapturePlan: {self.summary()}", *table, *filter(None, [self.note(), self._lack()])])

    def _repr_html_(self) -> str:
        head, *body = self._lines()
        cells = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in body)
        titles = "".join(f"<th>{c}</th>" for c in head)
        words = "".join(f"<p>{html.escape(w)}</p>" for w in (self.note(), self._lack()) if w)
        return f"<p><b>{html.escape(self.summary())}</b></p><table><tr>{titles}</tr>{cells}</table>{words}"


def make_plan(
    model: Any, inputs: Any, wanted: str | Sequence[str], to: Path | None, dtype: str, batch_tokens: int, *, append: bool = False
) -> CapturePlan:
    """Everything that can be known before the first batch.

    Raises:
        InputError: There is nothing to capture, or a site cannot be kept.
    """
    if not len(inputs):
        raise InputError("There are no examples to capture: the data are empty. Pass at least one text or image.")
    names, derived = _kept(model, wanted)
    entries = {n: _entry(model, n, dtype) for n in dict.fromkeys(_stored_as(model, n) for n in names)}
    aliases = {n: model.sites[n].same_as for n in model.sites if model.sites[n].same_as in entries}
    lengths = np.asarray(inputs.lengths)
    batches = batch_plan(lengths, batch_tokens)
    counts = {space: _rows_of(inputs, space) for space in {e.rows for e in entries.values()}}
    per_example = sum((counts[e.rows] * e.row_bytes for e in entries.values()), np.zeros(len(inputs), np.int64))
    room, done = _room(to, append)
    return CapturePlan(
        entries=entries,
        aliases=aliases,
        reads=tuple(dict.fromkeys([*entries, *(n for n in names if n.endswith(("q_rot", "k_rot")))])),
        derived=tuple(derived),
        batches=batches,
        rows={s: int(c.sum()) for s, c in sorted(counts.items())},
        dtype=dtype,
        batch_tokens=batch_tokens,
        to=to,
        room=room,
        memory=free_memory(),
        costs=tuple(int(per_example[list(b.members)].sum()) for b in batches),
        done=done,
        hash=plan_hash(batches, lengths, batch_tokens),
    )


def _kept(model: Any, wanted: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Names whose values are kept, and those that are computed from them."""
    names, derived = [], []
    for name in model.sites.select(wanted):
        block, _, last = name.rpartition(".")
        if name.startswith("module:"):
            raise InputError(
                f"{name!r} has no declared axes, so it cannot be kept. Read it with model.run(…, read={name!r}), or choose a site of model.sites."
            )
        if last in COMPUTED:
            derived.append(name)
        names += [f"{block}.q_rot", f"{block}.k_rot"] if last in COMPUTED else [name]
    for name in names:
        if name not in model.sites:
            reason = getattr(model.sites, "missing", {}).get(name)
            raise MissingSite(f"{name} cannot be kept: {reason}.") if reason else unknown("site in this model", name, model.sites)
    if not names:
        raise InputError(f"{wanted!r} selects no site. Choose from model.sites.")
    return names, derived


def _stored_as(model: Any, name: str) -> str:
    while model.sites[name].same_as:
        name = model.sites[name].same_as
    return name


def _entry(model: Any, name: str, dtype: str) -> SiteEntry:
    site = model.sites[name]
    entry = SiteEntry(axes=site.axes, rows=site.rows, shape=site.shape, dtype=dtype or str(model.dtype).removeprefix("torch."))
    torch_dtype(entry.dtype)
    return entry


def _rows_of(inputs: Any, space: str) -> np.ndarray:
    if space == "example":
        return np.ones(len(inputs), np.int64)
    return np.asarray(inputs.rows_of(space) if space else inputs.lengths)


def _room(to: Path | None, append: bool) -> tuple[int, int]:
    if to is None:
        return free_memory(), 0
    there = next(p for p in (to, *to.absolute().parents) if p.exists())
    held = sum(p.stat().st_size for p in to.glob("shards/*.safetensors")) if to.is_dir() and not append else 0
    return shutil.disk_usage(there).free, held


def free_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    try:
        with Path("/proc/meminfo").open() as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        import psutil

        return int(psutil.virtual_memory().available)


def _size(count: int) -> str:
    size, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if abs(size) < 1024 or unit == units[-1]:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return ""
