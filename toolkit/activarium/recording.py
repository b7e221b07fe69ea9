"""What a run, a capture or a store holds: `Recording`, site → Activations, with a row table per row space."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from activarium.activations import Activations
from activarium.errors import InputError, UnknownSite, unknown
from activarium.rows import Rows

if TYPE_CHECKING:
    import pandas

    from activarium.attention import AttentionSpec

T = TypeVar("T")


class Lazy(Mapping[str, T], Generic[T]):
    """Name → value, each made when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], T]]) -> None:
        self._makers, self._made = dict(makers), {}
        self._made: dict[str, T]

    def __getitem__(self, name: str) -> T:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class Recording(Mapping[str, Activations]):
    """What a run, a capture or a store holds: site → Activations, one row table per row space, and where it came from.

    `rec["blocks.3.mlp.post"]` is one site; `rec["blocks.*.mlp.post"]` is a lazy stack with a leading `layer` axis.

    Attributes:
        rows: Row space → row table (`""` for models with a single stack).
        provenance: Model, certificate, data, dtype, batch plan, versions.
        metric: After `run(..., metrics=…)`: metric name → tensor with axis `example`.
        gradient: After `backward()`: a Recording of gradients at the sites that were read.
        attention: `blocks.3.attn` → how its pattern follows from queries and keys, where those were read.
    """

    def __init__(
        self,
        sites: Mapping[str, Activations],
        rows: Mapping[str, Rows],
        provenance: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._sites, self.rows = sites, rows
        self.provenance = provenance if provenance is not None else {}
        self._aliases = dict(aliases or {})
        self.metric: dict[str, Tensor] = {}
        self.gradient: Recording | None = None
        self.attention: dict[str, AttentionSpec] = {}
        self._backward: Callable[[str, Sequence[str]], Recording] | None = None

    def __getitem__(self, name: str) -> Activations:
        if is_pattern(name):
            names = matching(name, [*self._sites, *self._aliases])
            if not names:
                raise unknown("site", name, self._sites, UnknownSite)
            return Activations.stack([self[n] for n in names], names, name)
        name = self._aliases.get(name, name)
        if name not in self._sites:
            raise unknown("site in this recording", name, [*self._sites, *self._aliases], UnknownSite)
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._sites or name in self._aliases)

    def table(self, space: str | None = None) -> pandas.DataFrame:
        """The row table of one row space, by default the one with most rows."""
        if space is None:
            space = max(self.rows, key=lambda s: len(self.rows[s]))
        if space not in self.rows:
            raise unknown("row space", space, self.rows)
        return self.rows[space].frame()

    @property
    def logits(self) -> Activations:
        """What the head answers: `row vocab` or `example class`."""
        return self["logits"]

    def backward(self, metric: str | None = None, *, closed: Sequence[str] = ()) -> Recording:
        """Gradients of one metric, summed over examples, at every site that was read; also kept as `.gradient`.

        Args:
            metric: Its name; the first one if not given.
            closed: Sites that were read and that this backward does not pass; their own gradient is given as zero.

        Raises:
            InputError: The run had no metric, was not made with `grad=True`, or a closed site was not read.
        """
        if self._backward is None:
            raise InputError("This recording has nothing to differentiate. Run with metrics=… and grad=True, then call backward().")
        if metric is None:
            metric = next(iter(self.metric))
        if metric not in self.metric:
            raise unknown("metric", metric, self.metric)
        self.gradient = self._backward(metric, closed)
        return self.gradient

    def __repr__(self) -> str:
        tables = ", ".join(f"{len(r)} rows{' of ' + s if s else ''}" for s, r in self.rows.items())
        lines = [f"  {n}  {' '.join(a.axes)}  {a.shape}" for n, a in islice(self._sites.items(), 40)]
        more = [f"  … {len(self) - 40} more"] if len(self) > 40 else []
        blocks = self.provenance.get("eager_blocks")
        eager = [f"  eager attention, because its pattern is edited: {', '.join(blocks)}"] if blocks else []
        return "\n".join([f"Recording({len(self)} sites, {tables})", *lines, *more, *eager])


def is_pattern(name: str) -> bool:
    """Does this name select several sites?"""
    return not name.startswith("module:") and any(c in name for c in "*{")


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Names that a pattern selects: `*` for one part of a name, `{0,3}` for alternatives, `{2..5}` for a range; layers in order."""
    chunks = re.split(r"(\*|\{[^}]*\})", pattern)
    built = "".join(_expression(c) for c in chunks)
    found = [n for n in dict.fromkeys(names) if re.fullmatch(built, n)]
    return sorted(found, key=lambda n: [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in n.split(".")])


def _expression(chunk: str) -> str:
    if chunk == "*":
        return r"[^.]+"
    if not chunk.startswith("{"):
        return re.escape(chunk)
    span = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", chunk)
    choices = [str(i) for i in range(int(span[1]), int(span[2]) + 1)] if span else [c.strip() for c in chunk[1:-1].split(",")]
    return "(?:" + "|".join(map(re.escape, choices)) + ")"
