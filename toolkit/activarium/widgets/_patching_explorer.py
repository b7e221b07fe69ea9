"""PatchingExplorer: approximate effects as a map; a click runs the exact patch and puts its number beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import traitlets

from activarium import pictures
from activarium.errors import InputError
from activarium.results import Grid, Ranking, Result
from activarium.widgets.base import bundle, stylesheet
from activarium.widgets.grid_view import GridView

if TYPE_CHECKING:
    from activarium.protocols import Rerun

CHECK_POINTS = 4000  # a scatter of more is one blot
LARGEST = 10


class PatchingExplorer(GridView):
    """Approximate effects beside exact ones: click a cell and its exact patch runs.

    Attributes:
        clip: Name of the colour range, as in `Heatmap`.
        frame: Which slice over the leading axes is drawn, counted row by row.
        points: What is known exactly: `cell`, `approximate`, `exact`, and `how` (`run`, or `known zero` for what needed none).
        largest: How many of the largest cells the button runs.
        runs: Is there a `rerun` to answer a click?

    Example:
        >>> grid = act.testing.example_results()["Grid"]
        >>> explorer = act.widgets.PatchingExplorer(grid, rerun=lambda cell: 2.0 * cell["position"])
        >>> explorer.measure({"layer": 0, "position": 3})
        6.0
        >>> [point["approximate"] for point in explorer.points]
        [-1.0]
    """

    shows: ClassVar[type[Result]] = Grid
    needs: ClassVar[str] = "rerun"
    _esm = bundle("patching_explorer")
    _css = stylesheet("patching_explorer")

    points = traitlets.List(traitlets.Dict()).tag(sync=True)
    largest = traitlets.Int(LARGEST, min=1).tag(sync=True)
    runs = traitlets.Bool().tag(sync=True)

    def __init__(self, result: Grid, rerun: Rerun | None = None, **traits: Any) -> None:
        if rerun is not None and not callable(rerun):
            raise InputError(
                f"rerun is called with a cell and returns its exact value; got {type(rerun).__name__}, which cannot be called."
            )
        self.rerun = rerun
        super().__init__(result, runs=rerun is not None, **traits)

    def measure(self, cell: Mapping[str, int]) -> float:
        """The exact value of a cell, as a click asks for it: run at most once, exactly 0 where that is known.

        Raises:
            InputError: The cell is outside the grid or stands for no row, there is no `rerun`, or it returns no number.
        """
        with self._lock:
            place = self._place(cell)
            known = next((point for point in self.points if point["cell"] == place), None)
            if known is None:
                known = self._point(place)
                self.points = [*self.points, known]
        return float(known["exact"])

    def answer(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The exact value of a cell, or the largest cells nobody has asked for; else what every grid answers."""
        if question.get("ask") == "rerun":
            try:
                return {"exact": self.measure(question["cell"])}, []
            # Whatever a model can raise becomes words in the widget, which lives on.
            except Exception as error:
                return {"error": f"{type(error).__name__}: {error}"}, []
        if question.get("ask") == "largest":
            return {"cells": self._next_largest()}, []
        return super().answer(question)

    def _place(self, cell: Mapping[str, int]) -> dict[str, int]:
        sizes = dict(zip(self.spec["keys"], self.result.values.shape, strict=True))
        if set(cell) != set(sizes):
            raise InputError(f"A cell of this grid names {' '.join(sizes)}; got {' '.join(cell) or 'nothing'}.")
        outside = [key for key in sizes if not 0 <= int(cell[key]) < sizes[key]]
        if outside:
            raise InputError(f"{outside[0]} {cell[outside[0]]} is outside the grid, which has {sizes[outside[0]]} of them.")
        return {key: int(cell[key]) for key in sizes}

    def _point(self, place: dict[str, int]) -> dict[str, Any]:
        at = tuple(place.values())
        masks = self.result.masks
        if pictures.NO_ROW in masks and masks[pictures.NO_ROW][at]:
            raise InputError("This cell stands for no token or patch of any example: there is nothing to patch.")
        approximate = float(self.result.values[at])
        point = {"cell": place, "approximate": approximate if np.isfinite(approximate) else None}
        if pictures.KNOWN_ZERO in masks and masks[pictures.KNOWN_ZERO][at]:
            return point | {"exact": 0.0, "how": "known zero"}
        if self.rerun is None:
            raise InputError("Nobody said how to run a cell exactly: PatchingExplorer(grid, rerun=…) takes a function from cell to value.")
        exact = float(self.rerun(dict(place)))
        if not np.isfinite(exact):
            raise InputError(f"The exact patch of this cell gave {exact}, which is no effect. Look at the metric on this pair.")
        return point | {"exact": exact, "how": "run"}

    def _next_largest(self) -> list[dict[str, int]]:
        """The largest cells that a run can still say something about."""
        open_cells = np.isfinite(self.result.values)
        for name in (pictures.KNOWN_ZERO, pictures.NO_ROW):
            open_cells &= ~self.result.masks.get(name, np.False_)
        for point in self.points:
            open_cells[tuple(point["cell"].values())] = False
        sizes = np.where(open_cells, np.abs(self.result.values.astype(float)), -1)
        order = np.argsort(-sizes, axis=None, kind="stable")[: min(self.largest, int(open_cells.sum()))]
        places = np.array(np.unravel_index(order, sizes.shape)).T
        return [dict(zip(self.spec["keys"], place.tolist(), strict=True)) for place in places]

    def _more(self) -> dict[str, np.ndarray]:
        """Pairs of approximate and exact values that the grid's own check brings along."""
        check = self.result.check
        if not isinstance(check, Ranking) or not {"approximate", "exact"} <= set(check.columns):
            return {}
        pairs = np.stack([check.columns[name].astype(float) for name in ("approximate", "exact")], axis=1)
        return {"check": pairs[np.isfinite(pairs).all(1)][:CHECK_POINTS]}
