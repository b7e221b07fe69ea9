"""The kinds of answer. Every analysis ends in one of them and every widget starts from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from activarium.results import _files
from activarium.results._graph import Graph
from activarium.results._grid import Grid, Labels
from activarium.results._layout import Layout
from activarium.results._overlay import Overlay
from activarium.results._ranking import Ranking
from activarium.results._report import Report
from activarium.results._result import Result, identical
from activarium.results._series import Series

__all__ = ["KINDS", "Graph", "Grid", "Labels", "Layout", "Overlay", "Ranking", "Report", "Result", "Series", "identical", "load"]

KINDS: Mapping[str, type[Result]] = {k.__name__: k for k in (Grid, Ranking, Series, Layout, Graph, Overlay, Report)}


def load(path: str | Path) -> Result:
    """Read a Result that `save` wrote.

    Raises:
        InputError: The file is not a saved Result, or of a later format.
    """
    return _files.load(Path(path), KINDS)
