"""Static curves: where the points stand, gaps, lone peaks among many points, escaped words, round ticks."""

import base64
import re

import numpy as np
import pytest

from activarium import plots
from activarium.results import Series


def svg(series: Series) -> str:
    found = re.search(r"svg\+xml;base64,([^\"]+)", series._repr_html_())
    assert found
    return base64.b64decode(found[1]).decode()


def test_points_stand_where_their_numbers_say():
    drawn = svg(Series([0, 1, 2], {"a": [0.0, 10.0, 5.0]}, "block"))
    circles = [(float(a), float(b)) for a, b in re.findall(r'circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    floor, right = plots.HEIGHT - plots.BOTTOM, plots.WIDTH - plots.RIGHT
    assert circles == [(plots.LEFT, floor), ((plots.LEFT + right) / 2, plots.TOP), (right, (floor + plots.TOP) / 2)]


def test_a_value_that_is_not_there_leaves_a_gap():
    drawn = svg(Series([0, 1, 2, 3, 4], {"a": [1.0, 2.0, np.nan, 4.0, np.inf]}))
    path = re.search(r'path d="(M[^"]*)" fill="none" stroke="#0072b2"', drawn)
    assert path
    assert path[1].count("M") == 2
    assert drawn.count("<circle") == 3


def test_a_lone_peak_among_many_points_stays():
    values = np.zeros(100_000)
    values[54_321] = 7.0
    drawn = svg(Series(np.arange(100_000), {"a": values}))
    path = re.search(r'path d="(M[^"]*)" fill="none" stroke="#0072b2"', drawn)
    assert path
    assert f" {plots.TOP}.0" in path[1]
    assert path[1].count("L") < 1.5 * plots.DRAWN


def test_bands_words_and_names_are_drawn_and_escaped():
    hostile = "<script>alert(1)</script>"
    series = Series(["a", hostile], {hostile: [1.0, 2.0], "b": [2.0, 1.0]}, hostile, {hostile: [[0.5, 1.5], [1.5, 2.5]]}, title=hostile)
    drawn, page = svg(series), series._repr_html_()
    assert "<script>" not in drawn
    assert "<script>" not in page
    assert "&lt;script&gt;" in drawn
    assert 'fill-opacity="0.18"' in drawn


def test_no_numbers_no_picture():
    assert "svg+xml" not in Series([], {"a": np.empty(0)})._repr_html_()
    assert "svg+xml" not in Series([0.0], {"a": [np.nan]})._repr_html_()
    assert "svg+xml" in Series([0.0], {"a": [3.0]})._repr_html_()


@pytest.mark.parametrize(("low", "high", "wanted"), [(0, 10, [0, 2, 4, 6, 8, 10]), (0.1, 0.45, [0.1, 0.2, 0.3, 0.4]), (3, 3, [3])])
def test_ticks_are_round(low, high, wanted):
    assert plots.ticks(low, high) == pytest.approx(wanted)


def test_layers_are_counted_in_whole_numbers():
    names = re.findall(r'text-anchor="middle">([^<]*)</text>', svg(Series([0, 1, 2], {"a": [1.0, 2.0, 3.0]}, "block")))
    assert names == ["0", "1", "2", "block"]
