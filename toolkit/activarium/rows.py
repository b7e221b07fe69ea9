"""The row table: what each row of a tensor is. A row is one real token or patch, never a pad."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from activarium.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas

KINDS = ("token", "bos", "special", "cls", "register", "patch", "image", "example")
PHASES = ("prompt", "response")
Column = np.ndarray | Callable[[], np.ndarray]


class Rows:
    """One line per row, in the order of the tensors.

    Columns: `example` (which input), `position` (place in it, from 0, pads not counted), `token` (id, -1 where there is
    none), `text`, `kind` (`token bos special cls register patch image example`), `y` and `x` (patch grid, -1 elsewhere),
    and where they apply `phase` (`prompt` or `response`), `step` (number of the forward that a generated text's row was computed
    in: 0 for the prompt) and `label`. Rows of one example are contiguous.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = dict(columns)
        if "example" not in self._columns:
            raise InputError(f"A row table needs the column 'example'; found {', '.join(self._columns) or 'none'}.")

    def __len__(self) -> int:
        return len(self["example"])

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise unknown("row column", name, self._columns)
        column = self._columns[name]
        if callable(column):  # text is decoded when somebody looks at it
            column = self._columns[name] = column()
        return column

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._columns)

    @cached_property
    def _spans(self) -> dict[int, slice]:
        example = self["example"]
        edges = np.flatnonzero(np.diff(example)) + 1
        starts, stops = np.r_[0, edges] if len(example) else np.empty(0, int), np.r_[edges, len(example)]
        return {int(example[a]): slice(int(a), int(b)) for a, b in zip(starts, stops, strict=False)}

    @property
    def examples(self) -> list[int]:
        """Example numbers in the order of their rows."""
        return list(self._spans)

    def span(self, example: int) -> slice:
        """Where the rows of one example lie."""
        if example not in self._spans:
            raise InputError(
                f"There is no example {example}; there are {len(self._spans)}, from {min(self._spans, default=0)} to {max(self._spans, default=0)}."
            )
        return self._spans[example]

    def take(self, index: slice | Sequence[int] | np.ndarray) -> Rows:
        """A table of the chosen rows."""
        return Rows({name: self[name][index] for name in self._columns})

    def frame(self) -> pandas.DataFrame:
        """All columns as a pandas table."""
        import pandas

        return pandas.DataFrame({name: self[name] for name in self._columns})

    @staticmethod
    def concatenate(tables: Sequence[Rows]) -> Rows:
        """Tables under one another; a column that some lack is left out."""
        shared = [c for c in tables[0].columns if all(c in t for t in tables)]
        return Rows({name: np.concatenate([t[name] for t in tables]) for name in shared})

    def __repr__(self) -> str:
        return f"Rows({len(self)} rows of {len(self._spans)} examples: {', '.join(self._columns)})"

    def _repr_html_(self) -> str:
        return self.frame().head(50)._repr_html_() or ""
