"""Patterns and scores that are not kept but computed, per example, from kept queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from activarium.activations import Activations
from activarium.attention import DERIVED, attention_part
from activarium.recording import Lazy, Recording, is_pattern
from activarium.rows import Rows
from activarium.store._stored import Stored, span_of


class Captured(Recording):
    """A Recording of a capture: lists what is kept; patterns and scores answer when asked for.

    Attributes:
        attention: Block → how its scores follow from its queries and keys.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Activations]],
        rows: Mapping[str, Rows],
        provenance: Mapping[str, Any],
        aliases: Mapping[str, str],
        attention: Mapping[str, Any],
        spaces: Mapping[str, str],
    ) -> None:
        super().__init__({}, rows, provenance, aliases)
        self.attention, self._kept = dict(attention), tuple(makers)
        self._spaces = dict(spaces)
        derived = {f"{b}.{what}": _maker(self, b, what) for b in self.attention for what in DERIVED}
        self._sites = Lazy({**derived, **makers})

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        tables = ", ".join(f"{len(r)} rows{' of ' + s if s else ''}" for s, r in self.rows.items())
        kept = [self[name] for name in self._kept[:40]]  # derived sites stay unmade
        more = [f"  … {len(self) - 40} more"] if len(self) > 40 else []
        return "\n".join([f"Recording({len(self)} sites, {tables})", *(f"  {a.site}  {' '.join(a.axes)}  {a.shape}" for a in kept), *more])

    def __getitem__(self, name: str) -> Activations:
        found = super().__getitem__(name)
        if is_pattern(name) and all(isinstance(m, Stored) for m in found._members):
            return Stored.stack(found._members, found.labels["layer"], name)
        return found

    def select(self, where: Mapping[str, Any]) -> Captured:
        """The rows with these values, as a Recording of their own; only the shards that hold them are read.

        Row spaces that lack one of the columns are left out. Patterns and scores stay where whole examples are chosen.

        Args:
            where: Row column → a value, a collection of values, or a function from the column to true and false:
                `{"kind": "token", "label": {1, 3}, "position": lambda p: p > 4}`. All must hold.

        Raises:
            UnknownName: No row table has such a column.
            InputError: No row fits; the message shows what the column holds.
        """
        from activarium.store._select import select

        return select(self, where)

    def iter_batches(
        self, site: str | Sequence[str], batch: int = 4096, *, shuffle_blocks: int = 0, seed: int = 0, rows: bool = False
    ) -> Iterator[Any]:
        """All rows once, `batch` at a time: what a training loop reads.

        Args:
            site: A site or pattern, whose batches are tensors; or several sites of one row space, whose batches are tuples.
            batch: Rows per batch; the last one may have fewer.
            shuffle_blocks: 0 keeps the stored order. Otherwise blocks of about 1 MiB of successive rows are read in random order,
                and each batch is a random choice from so many blocks: more of them mix better. The rows of one batch keep their
                stored order; ask for smaller batches rather than cut them.
            seed: The same seed gives the same order; give every epoch its own.
            rows: Also give each row's place in the row table: `(values, rows)`.

        Raises:
            InputError: The sites have no rows, or not the same ones.
        """
        from activarium.store._epochs import epoch

        return epoch(self, site, batch, shuffle_blocks, seed, rows)

    def export(self, kind: str, path: str | Path) -> Path:
        """Write everything for other tools.

        Args:
            kind: `"zarr"` (an array per site and per row column) or `"datasets"` (a Hugging Face `DatasetDict`, one table per row space).
                Both keep bfloat16 as uint16 and float8 as uint8 of the same bits, and name the type beside them; torch reads
                them back with `torch.from_numpy(values.astype("uint16")).view(torch.bfloat16)`.
            path: A folder that does not exist yet.

        Raises:
            MissingExtra: The package that writes this kind is not installed.
            StoreError: The folder exists.
        """
        from activarium.store._export import export

        return export(self, kind, path)

    def _space(self, name: str) -> str:
        return self._spaces[self._aliases.get(name, name)]


def _maker(recording: Captured, block: str, what: str) -> Callable[[], Activations]:
    return lambda: _attention(recording, block, what)


def _attention(recording: Captured, block: str, what: str) -> Activations:
    q, k, spec = recording[f"{block}.q_rot"], recording[f"{block}.k_rot"], recording.attention[block]
    queries, keys = (recording.rows[recording._space(f"{block}.{n}")] for n in ("q_rot", "k_rot"))
    parts = []
    for example in queries.examples:
        a, b = queries.span(example), keys.span(example)
        sizes = (q.shape[1], a.stop - a.start, b.stop - b.start)
        parts.append(attention_part(what, partial(between, q, a), partial(between, k, b), sizes, spec, q.dtype, 0))
    return Activations(parts, "head query key", site=f"{block}.{what}", index=queries, provenance=recording.provenance)


def between(site: Activations, span: slice) -> Tensor:
    """Successive rows of a site, without a copy where one part holds them."""
    start = 0
    for part in site._parts:
        stop = start + int(part.shape[0])
        if start <= span.start and span.stop <= stop:
            return span_of(part, span.start - start, span.stop - start)
        start = stop
    return site.rows(range(span.start, span.stop))
