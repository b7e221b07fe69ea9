"""One number per feature for every column, by which pages are sorted and filtered."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from activarium.dashboards.scan import Scan


class _Built(Protocol):
    @property
    def features(self) -> tuple[int, ...]: ...

    @property
    def width(self) -> int: ...


def of(found: Scan, given: _Built) -> dict[str, np.ndarray]:
    """Columns over all features of the dictionary; NaN for those that no pages are built of, and where nothing fires."""
    rows, fires = max(1, found.rows), found.fires
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = found.total / fires
        spread = np.sqrt(np.maximum(found.square / fires - np.square(mean), 0))
    made: dict[str, Any] = {"fires": fires, "density": fires / rows, "max": found.most, "min": found.least}
    made |= {"mean": mean, "deviation": spread, "sum": found.total}
    place = np.asarray(given.features)
    columns = {}
    for name, values in made.items():
        columns[name] = np.full(given.width, np.nan)
        columns[name][place] = values
    return columns
