"""Ranking: things in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from activarium.errors import AxisError
from activarium.results._result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Ranking(Result):
    """Things in order, first the one that matters most.

    Attributes:
        names: What is ranked.
        values: The number they are ranked by.
        columns: Further columns of the same length.
    """

    names: tuple[str, ...]
    values: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(n) for n in self.names))
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "columns", {k: np.asarray(v) for k, v in self.columns.items()})
        super().__post_init__()
        for name, column in {"values": self.values, **self.columns}.items():
            if len(column) != len(self.names):
                raise AxisError(f"Ranking has {len(self.names)} names but {len(column)} entries in {name!r}; give one each.")

    def _columns(self) -> dict[str, Any]:
        return {"name": list(self.names), self.unit or "value": self.values, **self.columns}
