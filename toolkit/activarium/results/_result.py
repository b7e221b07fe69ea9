"""What every kind of answer carries beside its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from activarium import pictures
from activarium.errors import AxisError
from activarium.results import _files

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result:
    """What every kind of answer carries beside its numbers.

    Attributes:
        title: One line a reader can understand without the code.
        unit: Unit of the values (model units, logits, nats, share, percent, tokens).
        noise: Largest difference that a repetition may show (same unit), or None if repetitions are bit-equal.
        check: A Result that compares this one with the exact answer, if it is an approximation.
        diagnostics: Counts and settings a reader may ask for: rows used, rows excluded, dtype.
        provenance: Where it came from: analysis, arguments, input id, model, versions. Filled by the registry.
    """

    title: str = ""
    unit: str = ""
    noise: float | None = None
    check: Result | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze arrays and mappings: a Result is a document, not a workspace."""
        for item in fields(self):
            object.__setattr__(self, item.name, _frozen(getattr(self, item.name)))

    def with_(self, **changes: Any) -> Self:
        """The same answer with some fields replaced."""
        return replace(self, **changes)

    def save(self, path: str | Path) -> Path:
        """Write numbers and words into one safetensors file; `load` brings the same Result back."""
        return _files.save(self, Path(path))

    @property
    def checked(self) -> str:
        """How near an approximation came to the exact answer, in one line; empty where there is no `check`."""
        return _check_words(self.check) if self.check is not None else ""

    def to_frame(self) -> pandas.DataFrame:
        """The numbers as a table, one line per value."""
        import pandas

        return pandas.DataFrame(self._columns())

    def _columns(self) -> dict[str, Any]:
        raise AxisError(f"{type(self).__name__} has no single table; ask its parts.")

    def _picture(self) -> str:
        return ""

    def _repr_html_(self) -> str:
        picture = self._picture() + pictures.line(self.checked)
        return pictures.card(self.title or type(self).__name__, picture, self._summary(), self.diagnostics)

    def _summary(self) -> list[list[str]]:
        """At most a dozen lines of text that stand for the picture."""
        columns = self._columns()
        head = list(columns)
        return [head, *[[pictures.number(columns[c][i]) for c in head] for i in range(min(12, len(columns[head[0]])))]]

    def __repr__(self) -> str:
        shape = "×".join(str(n) for n in getattr(self, "values", np.empty(0)).shape)
        return f"{type(self).__name__}({self.title!r}{', ' + shape if shape else ''}{', ' + self.unit if self.unit else ''})"


def identical(a: Any, b: Any) -> bool:
    """Do two Results hold the same numbers, bit for bit, and the same words? Provenance does not count."""
    if isinstance(a, Result) and type(a) is type(b):
        return all(identical(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name != "provenance")
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and (a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _check_words(check: Result) -> str:
    known = {"pearson": "Pearson", "pearson_without_zeros": "without known zeros", "slope": "slope", "interval": "interval"}
    found = [f"{words} {_few_digits(check.diagnostics[name])}" for name, words in known.items() if name in check.diagnostics]
    return " · ".join([check.title or "Against the exact answer", *found])


def _few_digits(value: Any) -> str:
    if np.ndim(value):
        return " to ".join(_few_digits(v) for v in value)
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)


def _frozen(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # A copy, unless nobody can write to it any more: a caller's array must not change the document later.
        kept = value.astype(object) if value.dtype.kind in "US" else value.copy() if value.flags.writeable else value
        kept.flags.writeable = False
        return kept
    if isinstance(value, Mapping):
        return MappingProxyType({k: _frozen(v) for k, v in value.items()})
    return tuple(value) if isinstance(value, list) else value
