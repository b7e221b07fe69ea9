"""show: the right view for every kind, and words where there is none."""

import subprocess
import sys

import ipywidgets
import numpy as np
import pytest

import activarium.widgets
from activarium.errors import InputError
from activarium.results import Graph, Grid, Layout, Overlay, Ranking, Report, Series
from activarium.widgets import base, registry, show, widget_for

GRID = Grid(np.eye(2), axes="layer head", title="heads")
TEXT = Overlay(np.ones((1, 2)), ("a",), tokens=("x", "y"))
IMAGE = Overlay(np.ones((1, 2, 2)), ("a",), image=np.zeros((4, 4, 3), np.uint8))
CURVE = Series(np.arange(3), {"loss": np.arange(3.0)})
PLAIN = [
    Ranking(("a", "b"), np.array([2.0, 1.0])),
    Series(np.empty(0), {"loss": np.empty(0)}),
    Layout(("a",), np.zeros((1, 2))),
    Graph(("a", "b"), np.array([[0, 1]]), np.ones(1)),
]


@pytest.mark.parametrize(("result", "name"), [(GRID, "Heatmap"), (TEXT, "TokenStrip"), (IMAGE, "ImageOverlay"), (CURVE, "Curves")])
def test_each_kind_finds_its_widget(result, name):
    assert isinstance(show(result), getattr(activarium.widgets, name))


@pytest.mark.parametrize("result", PLAIN, ids=lambda r: type(r).__name__)
def test_kinds_without_a_widget_show_themselves(result):
    if widget_for(result) is None:
        assert show(result) is result
        assert show(result)._repr_html_()


@pytest.mark.parametrize("values", [np.float64(3), np.zeros((0, 4)), np.array([["text"]])], ids=["no axis", "empty", "words"])
def test_grids_that_cannot_be_drawn_show_themselves(values):
    result = Grid(values, axes="layer head"[: 5 * min(1, np.ndim(values))] if np.ndim(values) < 2 else "layer head")
    assert widget_for(result) is None


def test_a_report_is_its_parts_in_order_with_escaped_titles():
    box = show(Report({"first <b>": GRID, "second": PLAIN[0], "inner": Report({"text": TEXT}, ("found <i>",))}, title="<script>"))
    assert isinstance(box, ipywidgets.VBox)
    words = "".join(child.value for child in box.children if isinstance(child, ipywidgets.HTML))
    assert "first &lt;b&gt;" in words
    assert "<script>" not in words
    assert isinstance(box.children[-1], ipywidgets.VBox)


def test_something_else_is_refused_in_words():
    with pytest.raises(InputError, match=r"show\(\) wants a Result; got ndarray"):
        show(np.eye(2))


def test_an_unknown_widget_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"No widget called 'HeatMap'. Did you mean 'Heatmap'"):
        activarium.widgets.HeatMap


def test_a_missing_bundle_says_what_to_build(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "STATIC", tmp_path)
    assert "npm run build" in base.bundle("heatmap")
    assert "'heatmap.js'" in base.bundle("heatmap")


@pytest.mark.parametrize("entry", list(registry), ids=lambda e: e.name)
def test_every_widget_has_its_bundle_and_stays_small(entry):
    stem = entry.path.stem.removeprefix("_")
    bundle = base.STATIC / f"{stem}.js"
    assert bundle.is_file()
    # A bundle is sent again for every widget on a page.
    assert bundle.stat().st_size < 60_000
    text = bundle.read_text(encoding="utf-8")
    assert "innerHTML" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_listing_widgets_imports_none_of_them():
    code = "import sys, activarium.widgets as w; dir(w); assert not [m for m in ('anywidget', 'ipywidgets', 'torch') if m in sys.modules]"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_widgets_need_no_torch():
    code = "import sys, numpy as np, activarium.widgets as w; from activarium.results import Grid; w.show(Grid(np.eye(2), axes='layer head')); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
