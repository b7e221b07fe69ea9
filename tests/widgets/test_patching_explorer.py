"""PatchingExplorer: what a click asks of Python, and what it answers when things go wrong."""

import numpy as np
import pytest

from activarium.errors import InputError
from activarium.protocols import Rerun
from activarium.results import Grid, Ranking
from activarium.widgets import Heatmap, PatchingExplorer, payload, show, widget_for

VALUES = np.array([[0.5, -3.0, 2.0, 0.0], [1.0, 0.25, np.nan, 9.0]])
MASKS = {
    "known_zero": np.array([[False] * 3 + [True], [False] * 4]),
    "no_row": np.array([[False] * 4, [False] * 3 + [True]]),
}
GRID = Grid(VALUES, axes="layer position", masks=MASKS, title="Patching", unit="logits")


class Patch:
    """Plays the exact patch: twice the approximation, and remembers every call."""

    def __init__(self, answer=None):
        self.cells, self.answer = [], answer

    def __call__(self, cell):
        self.cells.append(cell)
        return 2 * np.nan_to_num(VALUES[cell["layer"], cell["position"]]) if self.answer is None else self.answer(cell)


def ask(explorer, **cell):
    return explorer.answer({"ask": "rerun", "cell": cell})[0]


def test_a_plain_grid_is_still_a_heatmap():
    assert isinstance(show(GRID), Heatmap)
    assert widget_for(GRID) is Heatmap
    assert widget_for(GRID.with_(values=np.array([["a"] * 4] * 2))) is None


def test_a_click_runs_the_patch_once_and_the_point_stays():
    patch = Patch()
    assert isinstance(patch, Rerun)
    explorer = PatchingExplorer(GRID, rerun=patch)
    assert ask(explorer, layer=0, position=1) == {"exact": -6.0}
    assert ask(explorer, position=1, layer=0) == {"exact": -6.0}
    assert patch.cells == [{"layer": 0, "position": 1}]
    assert explorer.points == [{"cell": {"layer": 0, "position": 1}, "approximate": -3.0, "exact": -6.0, "how": "run"}]
    assert explorer.get_state()["points"] == explorer.points
    assert explorer.get_state()["runs"] is True


def test_known_zeros_are_answered_without_a_run():
    patch = Patch()
    explorer = PatchingExplorer(GRID, rerun=patch)
    assert ask(explorer, layer=0, position=3) == {"exact": 0.0}
    assert explorer.points[0]["how"] == "known zero"
    assert patch.cells == []
    assert PatchingExplorer(GRID).measure({"layer": 0, "position": 3}) == 0.0


def test_a_cell_that_is_no_row_cannot_be_asked():
    patch = Patch()
    explorer = PatchingExplorer(GRID, rerun=patch)
    assert "InputError: This cell stands for no token or patch" in ask(explorer, layer=1, position=3)["error"]
    assert (patch.cells, explorer.points) == ([], [])


def test_a_missing_approximation_can_still_be_run():
    explorer = PatchingExplorer(GRID, rerun=Patch())
    assert ask(explorer, layer=1, position=2) == {"exact": 0.0}
    assert explorer.points[0]["approximate"] is None


def test_what_the_patch_raises_becomes_words_and_the_widget_lives():
    def fails(cell):
        raise RuntimeError("out of memory <b>")

    patch = Patch(fails)
    explorer = PatchingExplorer(GRID, rerun=patch)
    assert ask(explorer, layer=0, position=0) == {"error": "RuntimeError: out of memory <b>"}
    patch.answer = lambda cell: 7
    assert ask(explorer, layer=0, position=0) == {"exact": 7.0}
    patch.answer = lambda cell: float("inf")
    assert "gave inf, which is no effect" in ask(explorer, layer=0, position=1)["error"]
    patch.answer = lambda cell: "a word"
    assert "ValueError" in ask(explorer, layer=0, position=1)["error"]
    assert len(explorer.points) == 1


def test_without_a_rerun_a_click_is_answered_with_how_to_give_one():
    assert "PatchingExplorer(grid, rerun=…)" in ask(PatchingExplorer.of(GRID), layer=0, position=0)["error"]
    assert PatchingExplorer.of(GRID).runs is False
    with pytest.raises(InputError, match="got float, which cannot be called"):
        PatchingExplorer(GRID, rerun=3.0)


def test_the_largest_leave_out_what_a_run_cannot_tell():
    explorer = PatchingExplorer(GRID, rerun=Patch())
    cells = explorer.answer({"ask": "largest"})[0]["cells"]
    assert [VALUES[c["layer"], c["position"]] for c in cells] == [-3.0, 2.0, 1.0, 0.5, 0.25]
    explorer.measure(cells[0])
    explorer.largest = 2
    assert explorer.answer({"ask": "largest"})[0]["cells"] == [{"layer": 0, "position": 2}, {"layer": 1, "position": 0}]


def test_cells_outside_the_grid_are_refused_in_words():
    explorer = PatchingExplorer(GRID, rerun=Patch())
    assert "layer 2 is outside the grid, which has 2 of them" in ask(explorer, layer=2, position=0)["error"]
    assert "position -1 is outside" in ask(explorer, layer=0, position=-1)["error"]
    assert "A cell of this grid names layer position; got head" in ask(explorer, head=0)["error"]


def test_points_of_the_check_travel_as_bytes():
    columns = {"approximate": np.array([1.0, np.nan, 3.0]), "exact": np.array([1.5, 2.0, 2.5])}
    check = Ranking(("a", "b", "c"), [1.0, 2.0, 3.0], columns, title="Against 3 exact cells", diagnostics={"pearson": 0.9})
    explorer = PatchingExplorer(GRID.with_(check=check))
    found = payload.unpack(explorer.spec["arrays"], explorer.data)
    assert found["check"].tolist() == [[1.0, 1.5], [3.0, 2.5]]
    assert explorer.spec["check"] == "Against 3 exact cells · Pearson 0.9"
    assert "check" not in payload.unpack(PatchingExplorer(GRID).spec["arrays"], PatchingExplorer(GRID).data)


def test_leading_axes_are_part_of_a_cell():
    values = np.arange(12.0).reshape(2, 3, 2)
    explorer = PatchingExplorer(Grid(values, axes="layer position head"), rerun=lambda cell: values[tuple(cell.values())] + 0.5)
    assert ask(explorer, head=1, layer=1, position=2) == {"exact": 11.5}


def test_large_grids_are_answered_too():
    values = np.random.default_rng(0).normal(size=(800, 900)).astype("f4")
    explorer = PatchingExplorer(Grid(values, axes="layer position"), rerun=lambda cell: 1.0)
    assert not explorer.exact
    assert ask(explorer, layer=700, position=3) == {"exact": 1.0}
    assert explorer.points[0]["approximate"] == float(values[700, 3])
    _, (cell,) = explorer.answer({"ask": "cell", "frame": 0, "y": 700, "x": 41})
    assert np.frombuffer(cell)[0] == values[700, 41]
