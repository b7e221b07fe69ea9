"""Patterns and scores that are not kept but computed, per example, from kept queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from activarium.activations import Activations, Lazy, Recording
from activarium.attention import DERIVED, attention_part
from activarium.rows import Rows


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
            values = part if isinstance(part, Tensor) else part.load()
            return values[span.start - start : span.stop - start]
        start = stop
    return site.rows(range(span.start, span.stop))
