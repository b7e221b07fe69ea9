"""Layout: things placed on a plane, or nested in one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium.results._result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Layout(Result):
    """Things placed on a plane, or nested in one another (a treemap).

    Attributes:
        names: What is placed.
        points: (n, 2) coordinates.
        sizes: One size each.
        parents: For a treemap: index of the enclosing thing, -1 for the root.
    """

    names: tuple[str, ...]
    points: np.ndarray
    sizes: np.ndarray | None = None
    parents: np.ndarray | None = None

    def _columns(self) -> dict[str, Any]:
        return {"name": list(self.names), "x": self.points[:, 0], "y": self.points[:, 1]}
