"""Landscape in JupyterLab and in an exported page: the planted spike is seen, named and read out at its exact cell."""

import re

import numpy as np
import pytest

from activarium.results import Grid
from activarium.widgets import Landscape
from activarium.workflows.export import export_page

from lab import WidgetOnPage, printed, wait_until  # isort: skip

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="window.__pwned = 1">'
DATA = """
import numpy as np
random = np.random.default_rng(8)
residual = random.normal(size=(200, 3000)).astype(np.float32)
residual[17, 1777] = 321.125
residual[150, 40] = -250.5
tokens = [f"t{i}" for i in range(200)]
tokens[17] = '<img src=x onerror="window.__pwned = 1">'
"""
CELLS = [
    DATA + "import activarium as act\nfrom activarium.results import Grid",
    """grid = Grid(residual, axes="position d_model", labels={"position": tokens}, title="Planted", unit="model units")
land = act.show(grid, as_="landscape")
land""",
    """masks = {"refused": np.eye(12, 40, dtype=bool), "no_row": np.arange(480).reshape(12, 40) >= 440}
small = act.widgets.Landscape.of(Grid(residual[:12, :40], axes="position d_model", masks=masks, title="Small"))
small""",
    "beside = act.show(grid)\nbeside",
]


@pytest.fixture(scope="module")
def whole(open_notebook):
    return open_notebook("landscape.ipynb", CELLS, widgets=2)


def tip(widget, colour):
    """Where the highest pixels of a spike are, in CSS pixels from the plot's corner: `orange` above 0, `blue` below."""
    # Low ridges are paler than spikes, and what is half transparent is one of them.
    more, less, enough = (0, 2, 150) if colour == "orange" else (2, 0, 95)
    return widget.root.locator(".act-map").evaluate(
        f"""(c) => {{ const {{ data, width }} = c.getContext('2d').getImageData(0, 0, c.width, c.height);
              for (let at = 0; at < data.length; at += 4)
                if (data[at + 3] > 250 && data[at + {more}] - data[at + {less}] > {enough}) {{
                  const scale = c.getBoundingClientRect().width / width;
                  return [(at / 4) % width * scale, Math.floor(at / 4 / width) * scale];
                }} }}"""
    )


def test_both_spikes_stand_out_and_read_out_exactly(shown, screenshots):
    land = shown.widget("landscape")
    assert "each point = the value furthest from 0 of 2×12 cells" in land.root.locator(".act-caption").text_content()
    names = land.root.locator(".act-spikes li").all_text_contents()
    assert len(names) == 5
    assert names[0].startswith(f"position 17 “{HOSTILE}”"[:30])
    assert "d_model 1777 · value 321.125 model units" in names[0]
    assert "position 150 “t150” · d_model 40 · value -250.5" in names[1]
    for colour, place, value in (("orange", (17, 1777), 321.125), ("blue", (150, 40), -250.5)):
        x, y = tip(land, colour)
        land.move_to(x, y + 6)
        assert land.value() == value
        assert printed(shown, "land.pointed") == {"position": place[0], "d_model": place[1]}
    assert printed(shown, "land.value(land.pointed)") == -250.5
    land.move_to(x, y + 6)
    land.click()
    assert printed(shown, "land.pinned") == [{"position": 150, "d_model": 40}]
    assert len(land.pins()) == 1
    land.picture(screenshots / "lab_landscape.png")


def test_dragging_and_keys_turn_it_and_the_spike_stays(shown):
    land = shown.widget("landscape")
    land.move_to(0.5, 0.5)
    land.page.mouse.down()
    x, y = land.plot.bounding_box()["x"], land.plot.bounding_box()["y"]
    land.page.mouse.move(x + 40, y + 60, steps=6)
    land.page.mouse.up()
    land.settle()
    yaw, pitch = printed(shown, "land.yaw, land.pitch")
    assert abs(yaw + 24) > 20
    assert pitch != 28
    assert printed(shown, "len(land.pinned)") == 1  # a drag is no click
    land.press("d", "d", "w")
    assert printed(shown, "land.yaw") == pytest.approx((yaw + 30 + 180) % 360 - 180)
    for turn in range(4):
        land.press("d", "d", "d", "d")
        x, y = tip(land, "orange")
        land.move_to(x, y + 4)
        assert land.value() == 321.125, f"after turn {turn}"
    land.press("0")
    assert printed(shown, "land.yaw, land.pitch") == (-24.0, 28.0)


def test_keys_walk_blocks_and_spikes(shown):
    land = shown.widget("landscape")
    land.press("Escape", "p")
    assert land.value() == 321.125
    land.press("p", "Enter")
    assert printed(shown, "len(land.pinned)") == 0  # it was pinned
    land.press("ArrowUp", "ArrowRight")
    place = printed(shown, "land.pointed")
    assert (place["position"] // 2, place["d_model"] // 12) == (76, 4)
    assert np.float32(land.value()) == np.float32(printed(shown, "float(residual[land.pointed['position'], land.pointed['d_model']])"))
    land.press("Home")
    assert printed(shown, "land.pointed['d_model']") < 12


def test_log_height_is_drawn_and_said(shown):
    land = shown.widget("landscape")
    pixels = "(c) => c.toDataURL()"
    before = land.root.locator(".act-map").evaluate(pixels)
    land.root.locator("select").select_option(label="log")
    land.settle()
    assert printed(shown, "land.height == 'log'")
    assert "logarithmic above" in land.root.locator(".act-caption").text_content()
    assert land.root.locator(".act-map").evaluate(pixels) != before
    shown.run("land.height = 'linear'")
    land.settle()
    assert land.root.locator("select").input_value() == "linear"


def test_a_cell_that_its_block_does_not_show_is_asked_for(shown):
    land = shown.widget("landscape")
    shown.run("land.pointed = {'position': 16, 'd_model': 1776}")
    land.settle()
    assert np.float32(land.value()) == np.float32(printed(shown, "float(residual[16, 1776])"))


def test_masks_are_marked_and_named(shown, screenshots):
    small = shown.widget("landscape", 1)
    small.press("Escape", "ArrowUp")
    assert "(masked)" in small.read_out()
    assert "refused" in small.root.locator(".act-land-legend").text_content()
    small.press("ArrowRight", "ArrowUp", "ArrowUp")
    assert "(masked)" not in small.read_out()
    small.picture(screenshots / "lab_landscape_masks.png")


def test_csv_holds_every_block_at_its_cell(shown):
    land = shown.widget("landscape")
    land.press("c")
    lines = land.page.evaluate("navigator.clipboard.readText()").splitlines()
    assert len(lines) == 1 + 100 * 250
    assert lines[0] == "position,position name,d_model,d_model name,model units"
    assert sum(line.startswith("17,") and line.endswith(",1777,1777,321.125") for line in lines) == 1


def test_dark_theme_and_a_narrow_cell(open_notebook, screenshots):
    narrow = "narrow = act.show(grid, as_='Landscape')\nnarrow.layout.width = '320px'\nnarrow"
    notebook = open_notebook("landscape_dark.ipynb", [*CELLS[:2], narrow], widgets=1, dark=True)
    land = notebook.widget("landscape")
    land.press("p")
    land.picture(screenshots / "lab_landscape_dark.png")
    small = notebook.widget("landscape", 1)
    small.press("p")
    widths = small.root.evaluate(
        "(r) => [r.getBoundingClientRect().width, r.scrollWidth, r.querySelector('.act-map').getBoundingClientRect().width]"
    )
    assert widths[0] <= 320
    assert widths[1] <= widths[0] + 1
    assert widths[2] <= widths[0]
    small.picture(screenshots / "lab_landscape_narrow.png")
    assert notebook.troubles == []
    assert notebook.printed_troubles() == []


def test_an_exported_page_names_the_spike_without_a_kernel(offline, data, tmp_path, screenshots):
    opened, troubles = offline
    words = {"title": HOSTILE, "unit": "model units", "diagnostics": {"view": "Landscape"}}
    grid = Grid(data["residual"], axes="position d_model", labels={"position": data["tokens"]}, **words)
    low = Landscape(grid.with_(title="from the side"), yaw=60.0, pitch=12.0, height="log")
    export_page({"Asked for": grid, "From the side": low}, tmp_path / "page.html")
    opened.goto((tmp_path / "page.html").as_uri())
    wait_until(opened, "document.querySelectorAll('.act-landscape[data-ready]').length === 2")
    land = WidgetOnPage(opened, opened.locator(".act-landscape").first)
    x, y = tip(land, "orange")
    land.move_to(x, y + 6)
    assert land.value() == 321.125
    assert HOSTILE[:30] in land.read_out()
    land.press("d", "d", "p", "p")
    assert land.value() == -250.5
    land.root.locator(".act-spikes button").first.click()
    assert re.search(r"d_model 1777 · value 321.125", land.read_out())
    opened.screenshot(path=screenshots / "export_landscape.png", full_page=True)
    assert troubles == []
    assert opened.evaluate("window.__pwned") is None
