"""Report: an ordered, titled set of other Results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from activarium import pictures
from activarium.errors import unknown
from activarium.results._result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Report(Result):
    """An ordered, titled set of other Results: `report["firing rate"]`, or iterate over its names.

    Attributes:
        parts: Name → Result, in reading order.
        words: What was found, in sentences.
    """

    parts: Mapping[str, Result]
    words: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Result:
        if name not in self.parts:
            raise unknown("part of this report", name, self.parts)
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def _repr_html_(self) -> str:
        inside = "".join(part._repr_html_() for part in self.parts.values())
        return pictures.card(self.title, pictures.words(self.words) + inside, [], self.diagnostics)

    def __repr__(self) -> str:
        return "\n".join([f"Report({self.title!r})", *[f"  {w}" for w in self.words], *[f"  {n}: {p!r}" for n, p in self.parts.items()]])
