"""Heatmap: the cells of a grid as colours, with the exact number under the pointer."""

from __future__ import annotations

from typing import ClassVar

from activarium.results import Grid, Result
from activarium.widgets.base import bundle, stylesheet
from activarium.widgets.grid_view import GridView


class Heatmap(GridView):
    """A grid of numbers on named axes; the last two are drawn, the others are chosen.

    Attributes:
        clip: Name of the colour range: `robust` (the outermost half percent clipped; offered where that matters), `full` or `tight`.
        frame: Which slice over the leading axes is drawn, counted row by row.
    """

    shows: ClassVar[type[Result]] = Grid
    _esm = bundle("heatmap")
    _css = stylesheet("heatmap")
