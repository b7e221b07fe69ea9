"""Curves: what travels, what is left out of long ones, and which Series they show."""

import itertools
import json

import numpy as np
import pytest

from activarium.results import Series
from activarium.testing import example_results
from activarium.widgets import Curves, payload, show, widget_for
from activarium.widgets.thinning import POINTS, kept

random = np.random.default_rng(3)
HOSTILE = '<img src=x onerror="alert(1)">'


def arrays(widget):
    return payload.unpack(widget.spec["arrays"], widget.data)


def depth(**words):
    x = np.arange(6)
    curves = {"mean": random.normal(size=6).astype("f4"), HOSTILE: random.normal(size=6)}
    bands = {"mean": np.stack([curves["mean"] - 1, curves["mean"] + 1])}
    return Series(x, curves, "layer", bands, title="depth", unit="model units", **words)


def test_every_value_travels_bit_for_bit_and_none_as_json():
    series = depth()
    widget = show(series)
    assert isinstance(widget, Curves)
    found = arrays(widget)
    assert found["curve 0"].tobytes() == series.curves["mean"].tobytes()
    assert found["curve 1"].tobytes() == series.curves[HOSTILE].tobytes()
    assert (found["band 0"] == series.bands["mean"]).all()
    assert (found["x"] == series.x).all()
    assert widget.spec["dtypes"] == {"x": "f8", "curve 0": "f4", "curve 1": "f8", "band 0": "f4"}
    assert str(float(series.curves[HOSTILE][0])) not in json.dumps(widget.spec)
    assert widget.spec["curves"] == ["mean", HOSTILE]


def test_pointed_names_a_value_by_axis_and_curve():
    series = depth()
    assert show(series).value({"layer": 4, "curve": HOSTILE}) == series.curves[HOSTILE][4]
    phrase = series.with_(x_label="share of edges")
    assert show(phrase).value({"x": 4, "curve": "mean"}) == series.curves["mean"][4]


def test_a_long_curve_keeps_its_ends_and_both_its_peaks():
    values = random.normal(size=300_000)
    values[123_456], values[77_777], values[200_000:200_100] = 90, -80, np.nan
    widget = show(Series(np.arange(300_000), {"loss": values}, "step"))
    found = arrays(widget)
    sent = found["index"].astype(int)
    assert len(sent) <= 2 * POINTS
    assert len(widget.data) < 200_000
    assert {0, 123_456, 77_777, 299_999} <= set(sent.tolist())
    assert np.array_equal(found["curve 0"], values[sent], equal_nan=True)
    assert np.isnan(found["curve 0"]).any()
    assert widget.spec["total"] == 300_000


def test_every_stretch_keeps_the_extremes_of_every_curve_and_band():
    lines = [random.normal(size=40_000) for _ in range(3)]
    stays = kept(lines)
    edges = np.linspace(0, 40_000, 501).astype(int)
    for line in lines:
        for start, stop in itertools.pairwise(edges):
            here = line[stays[(stays >= start) & (stays < stop)]]
            assert here.min() == line[start:stop].min()
            assert here.max() == line[start:stop].max()


def test_the_beginning_is_fine_enough_for_a_logarithmic_axis():
    assert set(range(100)) <= set(kept([random.normal(size=10**6)]).tolist())


def test_five_thousand_points_all_travel():
    series = Series(np.arange(POINTS), {"loss": random.normal(size=POINTS)}, "step")
    assert "index" not in arrays(show(series))
    assert len(arrays(show(series))["x"]) == POINTS


def test_x_in_any_order_is_put_in_order_and_pointed_keeps_the_order_of_the_result():
    series = Series(np.array([3.0, 1.0, np.nan, 2.0]), {"a": np.array([30.0, 10.0, 5.0, 20.0])}, "step")
    found = arrays(show(series))
    assert found["x"].tolist() == [1, 2, 3]
    assert found["curve 0"].tolist() == [10, 20, 30]
    assert found["index"].tolist() == [1, 3, 0]
    assert show(series).spec["unplaced"] == 1
    assert show(series).value({"step": 3, "curve": "a"}) == 20


def test_names_along_x_are_kept_as_words():
    widget = show(Series(np.array(["embed", HOSTILE]), {"norm": np.array([1.0, 2.0])}, "site"))
    assert widget.spec["names"] == ["embed", HOSTILE]
    assert arrays(widget)["x"].tolist() == [0, 1]


def test_counts_stand_as_bars_from_edges_or_around_what_is_counted():
    counts, edges = np.histogram(random.random(50), 8)
    histogram = show(Series(edges[:-1], {"neurons": counts}, "rate"))
    assert (histogram.form, histogram.spec["centred"]) == ("bars", False)
    per_layer = show(Series(np.arange(8), {"neurons": counts}, "layer"))
    assert (per_layer.form, per_layer.spec["centred"]) == ("bars", True)
    assert show(Series(np.arange(8), {"share": counts / 50}, "layer")).form == "lines"
    assert show(Series(np.arange(8), {"change": counts - 40}, "layer")).form == "lines"


@pytest.mark.parametrize(
    "series",
    [
        Series(np.empty(0), {"a": np.empty(0)}),
        Series(np.arange(3), {}),
        Series(np.full(3, np.nan), {"a": np.arange(3.0)}),
        Series(np.arange(3), {"a": np.array(["x", "y", "z"])}),
        Series(np.arange(3), {"a": np.zeros((3, 2))}),
        Series(np.arange(3), {"a": np.arange(3.0)}, bands={"a": np.zeros((3, 2))}),
    ],
    ids=["empty", "no curve", "no place", "words", "planes", "bands of another shape"],
)
def test_series_that_cannot_be_drawn_show_themselves(series):
    assert widget_for(series) is None
    assert show(series) is series


def test_state_a_reader_can_set_from_python():
    widget = Curves(depth(), shown=[1], y_scale="log", form="bars")
    assert (widget.get_state()["shown"], widget.get_state()["y_scale"], widget.form) == ([1], "log", "bars")


def test_the_picture_shows_what_is_shown():
    whole, one, log = Curves(depth()), Curves(depth(), shown=[0]), Curves(depth(), y_scale="log", form="bars")
    pictures = {widget.png() for widget in (whole, one, log)}
    assert len(pictures) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize("values", [[np.nan] * 3, [np.inf, 1.0, -np.inf], [0.0] * 3, [1e-300, 1e300, 5.0]])
@pytest.mark.parametrize("form", ["lines", "bars"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_odd_values_have_a_picture_too(values, form, scale):
    series = Series(np.array([0.0, 0.5, 2.0]), {"a": np.array(values)})
    assert Curves(series, form=form, x_scale=scale, y_scale=scale).png().startswith(b"\x89PNG")


def test_the_picture_does_without_pillow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert show(example_results()["Series"]).png().startswith(b"\x89PNG")
