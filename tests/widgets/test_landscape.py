"""Landscape: a planted spike survives every reduction and keeps its exact cell; who gets a landscape, and who a map."""

import json

import numpy as np
import pytest

from activarium.errors import InputError, UnknownName
from activarium.results import Grid, Overlay, Report, load
from activarium.testing import example_results
from activarium.widgets import Heatmap, Landscape, payload, show, widget_for
from activarium.widgets._landscape import blocks, largest

random = np.random.default_rng(5)


def grid(rows=200, columns=3000, peak=None, value=321.125, **words):
    values = random.normal(size=(rows, columns)).astype("f4")
    if peak:
        values[peak] = value
    return Grid(values, axes="position d_model", title="residual", unit="model units", **words)


def arrays(widget):
    return payload.unpack(widget.spec["arrays"], widget.data)


def cells(widget):
    """Row and column of what stands for each block, as the browser works them out."""
    found, (down, across) = arrays(widget), widget.spec["steps"]
    rows, columns = np.indices(found["values"].shape)
    offsets = found["offsets"].astype(int)
    return rows * down + offsets // across, columns * across + offsets % across


@pytest.mark.parametrize("value", [321.125, -77.5])
@pytest.mark.parametrize("peak", [(0, 1777), (199, 2999), (131, 0)])
def test_a_planted_spike_is_there_after_the_reduction_at_its_exact_cell(peak, value):
    made = grid(peak=peak, value=value)
    widget = Landscape.of(made)
    found = arrays(widget)
    assert found["values"].shape == (100, 250)
    block = np.unravel_index(np.abs(found["values"]).argmax(), found["values"].shape)
    assert found["values"][block] == value
    rows, columns = cells(widget)
    assert (rows[block], columns[block]) == peak
    assert tuple(found["spikes"][0].astype(int)) == peak
    assert found["spike_values"][0] == value
    assert widget.spec["top"] == abs(value)


def test_every_block_is_its_extreme_and_says_where_it_stands():
    made = grid(131, 517)
    widget = Landscape.of(made)
    found, (rows, columns) = arrays(widget), cells(widget)
    assert widget.spec["steps"] == [2, 3]
    assert (made.values[rows, columns] == found["values"]).all()
    assert (found["values"] == payload.pool(made.values, (2, 3))).all()


def test_a_small_grid_travels_whole_and_exactly():
    made = grid(12, 40)
    assert Landscape.of(made).spec["steps"] == [1, 1]
    assert arrays(Landscape.of(made))["values"].tobytes() == made.values.tobytes()
    wide = Grid(np.array([[2**53 + 1.0, 0.1]]), axes="position d_model")
    assert arrays(Landscape.of(wide))["values"].tolist() == wide.values.tolist()


def test_a_large_grid_stays_small_on_its_way():
    widget = Landscape.of(grid(1000, 4096))
    assert len(widget.data) < 400_000
    assert len(json.dumps(widget.spec)) < 2000


def test_spikes_are_the_largest_in_order_and_of_equal_ones_the_first():
    values = np.zeros((4, 5))
    values[1, 2], values[3, 0], values[0, 4], values[2, 2], values[0, 0] = -9, 8, 8, np.nan, 1
    assert largest(values, 5).tolist() == [[1, 2], [0, 4], [3, 0], [0, 0]]
    assert largest(values, 2).tolist() == [[1, 2], [0, 4]]
    assert largest(np.zeros((3, 3)), 5).shape == (0, 2)


def test_missing_values_give_way_and_stay_missing_only_where_a_block_is():
    values = np.full((4, 4), np.nan)
    values[1, 1], values[3, 3] = -2, 0.0
    found, offsets = blocks(values, (2, 2))
    assert np.array_equal(found, [[-2, np.nan], [np.nan, 0]], equal_nan=True)
    assert offsets.tolist() == [[3, 0], [0, 3]]


def test_rows_that_are_none_do_not_count_and_other_masks_mark_what_stands_for_a_block():
    made = grid(6, 8, peak=(5, 3))
    none, refused = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    none[5], refused[2, 4] = True, True
    widget = Landscape.of(made.with_(masks={"no_row": none, "refused": refused}))
    found = arrays(widget)
    assert np.isnan(found["values"][5]).all()
    assert widget.spec["top"] < 10
    assert widget.spec["masks"] == ["refused"]
    assert found["masked"].astype(bool).tolist() == refused.tolist()


def test_pointed_names_a_value_and_the_kernel_knows_every_cell():
    made = grid()
    widget = Landscape.of(made)
    assert widget.value({"position": 150, "d_model": 41}) == made.values[150, 41]
    _, (cell,) = widget.answer({"ask": "cell", "y": 150, "x": 41})
    assert np.frombuffer(cell)[0] == made.values[150, 41]
    with pytest.raises(InputError, match=r"Landscape has no answer to 'dance'"):
        widget.answer({"ask": "dance"})


def test_a_grid_is_a_map_unless_a_landscape_is_asked_for(tmp_path):
    made = grid(6, 8)
    assert widget_for(made) is Heatmap
    for name in ("Landscape", "landscape"):
        assert isinstance(show(made, as_=name), Landscape)
    asking = made.with_(diagnostics={"view": "Landscape"})
    assert isinstance(show(asking), Landscape)
    assert isinstance(show(load(asking.save(tmp_path / "grid.safetensors"))), Landscape)
    assert isinstance(show(asking, as_="Heatmap"), Heatmap)
    shown = show(Report({"residual": asking, "again": made}))
    assert [type(child).__name__ for child in shown.children if hasattr(child, "pointed")] == ["Landscape", "Heatmap"]


@pytest.mark.parametrize("view", ["TokenStrip", "Nothing", 3, ["Landscape"]])
def test_a_view_that_cannot_be_is_passed_over(view):
    assert widget_for(grid(2, 2, diagnostics={"view": view})) is Heatmap


def test_what_cannot_be_shown_so_is_refused_in_words():
    with pytest.raises(InputError, match=r"Landscape shows Grid; got Overlay"):
        show(Overlay(np.zeros((1, 1)), ("a",), tokens=("x",)), as_="Landscape")
    with pytest.raises(UnknownName, match="Did you mean 'Landscape'"):
        show(grid(2, 2), as_="landscap")
    with pytest.raises(InputError, match=r"names a widget for one Result, and a Report has many.*residual"):
        show(Report({"residual": grid(2, 2)}), as_="Landscape")


@pytest.mark.parametrize("values", [np.zeros((2, 2, 2)), np.full((2, 2), np.nan), np.zeros((0, 3)), np.array([["a"]])])
def test_grids_without_a_landscape(values):
    assert not Landscape.accepts(Grid(values, axes="layer position d_model".split()[: values.ndim]))


@pytest.mark.parametrize("values", [np.zeros((3, 3)), np.array([[np.inf, 1.0], [np.nan, -3.0]]), np.ones((1, 1)), np.ones((1, 500))])
@pytest.mark.parametrize("height", ["linear", "log"])
def test_every_landscape_has_a_picture(values, height):
    assert Landscape(Grid(values, axes="position d_model"), height=height).png().startswith(b"\x89PNG")


def test_the_picture_shows_the_spike_and_does_without_pillow(monkeypatch):
    plain = grid(6, 8)
    values = plain.values.copy()
    values[2, 3] = 500
    spiked = plain.with_(values=values)
    assert Landscape.of(plain).png() != Landscape.of(spiked).png()
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert Landscape.of(example_results()["Grid"]).png().startswith(b"\x89PNG")
