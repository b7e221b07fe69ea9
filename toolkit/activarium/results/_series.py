"""Series: curves over one shared x axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from activarium import plots
from activarium.errors import AxisError
from activarium.results._result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Series(Result):
    """Curves over one shared x axis.

    Attributes:
        x: Positions along the axis, axis `step`.
        curves: Name → values of the length of `x`.
        x_label: What x counts, with its unit.
        bands: Name → (2, len(x)) lower and upper ends of an interval.
    """

    x: np.ndarray
    curves: Mapping[str, np.ndarray]
    x_label: str = ""
    bands: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", np.asarray(self.x))
        object.__setattr__(self, "curves", {k: np.asarray(v) for k, v in self.curves.items()})
        super().__post_init__()
        for name, curve in self.curves.items():
            if len(curve) != len(self.x):
                raise AxisError(f"Curve {name!r} has {len(curve)} values for {len(self.x)} places on x; give one each.")

    def _columns(self) -> dict[str, Any]:
        return {self.x_label or "x": self.x, **self.curves}

    def _picture(self) -> str:
        return plots.curves(self.x, self.curves, self.bands, title=self.title, unit=self.unit, x_label=self.x_label)
