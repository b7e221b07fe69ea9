"""An exported page, opened from disk with the network off: alive, exact, and deaf to hostile text."""

import re

import numpy as np
import pytest

from activarium.results import Graph, Grid, Overlay, Report, Series
from activarium.widgets import PatchingExplorer, show
from activarium.workflows.export import export_page

from lab import WidgetOnPage, wait_until  # isort: skip

pytestmark = pytest.mark.browser

HOSTILE = '</script><script>window.__pwned = 1</script><img src="http://192.0.2.1/x" onerror="window.__pwned = 2">'
random = np.random.default_rng(5)
VALUES = random.normal(size=(4, 9)).astype("f4")
MAPS = random.normal(size=(2, 8, 8)).astype("f4")
LARGE = random.normal(size=(1200, 1200)).astype("f4")
TOKENS = ("Once", " upon", HOSTILE, " a", " time", "\n", "there", " was", ".")


@pytest.fixture
def page(offline, tmp_path):
    """The page, opened, all widgets drawn."""
    opened, troubles = offline
    labels = {"position": TOKENS}
    strip = show(Overlay(VALUES, ("a", "b", "c", HOSTILE), tokens=TOKENS, title=HOSTILE, provenance={"note": HOSTILE}))
    parts = {
        "Words": "Plain words.\n\n" + HOSTILE,
        "Text": strip,
        "Grid": Grid(VALUES, axes="layer position", labels=labels, title="A grid", unit="logits"),
        "Large": Grid(LARGE, axes="row neuron", title="Large"),
        "Image": Overlay(MAPS, ("one", HOSTILE), image=random.integers(0, 255, (32, 32, 3), dtype=np.uint8), title="Image"),
        "Report": Report({"curve": Series(np.arange(3), {HOSTILE: np.arange(3.0)})}, (HOSTILE,)),
    }
    export_page(parts, tmp_path / "page.html", title=HOSTILE, linked=[("Text", "Grid")])
    opened.goto((tmp_path / "page.html").as_uri())
    wait_until(opened, "document.querySelectorAll('.act[data-ready]').length === 5")
    yield opened
    assert troubles == []
    assert opened.evaluate("window.__pwned") is None


def test_read_outs_are_exact_without_a_kernel(page, screenshots):
    strip = WidgetOnPage(page, page.locator(".act-tokens"))
    strip.root.locator(".act-token").nth(2).hover()
    strip.settle()
    assert np.float32(strip.value()) == VALUES[0, 2]
    assert HOSTILE in strip.read_out()

    grid = WidgetOnPage(page, page.locator(".act-heatmap").first)
    grid.move_to(0.4, 0.4)
    layer, position = map(int, re.search(r"layer (\d+) · position (\d+)", grid.read_out()).groups())
    assert np.float32(grid.value()) == VALUES[layer, position]

    image = WidgetOnPage(page, page.locator(".act-image"))
    image.move_to(0.9, 0.1, ".act-panel[data-map='0'] canvas")
    y, x = map(int, re.search(r"y (\d+) · x (\d+)", image.read_out()).groups())
    assert (y, x) == (0, 7)
    assert np.float32(image.value()) == MAPS[0, y, x]

    curves = WidgetOnPage(page, page.locator(".act-curves"))
    curves.move_to(0.6, 0.5)
    assert curves.value() == int(re.search(r"x (\d)", curves.read_out())[1])
    assert HOSTILE[:70] in curves.read_out()
    page.screenshot(path=screenshots / "export.png", full_page=True)


def test_linked_widgets_point_together(page):
    strip = WidgetOnPage(page, page.locator(".act-tokens"))
    strip.root.locator(".act-token").nth(6).hover()
    strip.settle()
    grid = WidgetOnPage(page, page.locator(".act-heatmap").first)
    assert "position 6" in grid.read_out()


def test_a_map_points_at_the_same_layer_of_a_curve_and_back(offline, tmp_path):
    opened, troubles = offline
    curve = Series(np.arange(4), {"share": VALUES[:, 0], "count": VALUES[:, 1]}, "layer")
    export_page({"Map": Grid(VALUES, axes="layer position"), "Curve": curve}, tmp_path / "page.html", linked=[("Map", "Curve")])
    opened.goto((tmp_path / "page.html").as_uri())
    wait_until(opened, "document.querySelectorAll('.act[data-ready]').length === 2")
    grid, curves = (WidgetOnPage(opened, opened.locator(f".act-{kind}")) for kind in ("heatmap", "curves"))
    grid.press("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight")
    assert "layer 2" in grid.read_out()
    assert "layer 2" in curves.read_out()
    assert np.float32(curves.value()) == VALUES[2, 0]
    curves.press("ArrowRight", "ArrowDown")
    assert np.float32(curves.value()) == VALUES[3, 1]
    assert "layer 3" in grid.read_out()
    assert troubles == []


def test_a_large_grid_says_that_it_is_a_preview(page):
    large = WidgetOnPage(page, page.locator(".act-heatmap").nth(1))
    large.move_to(0.3, 0.4)
    row, neuron = map(int, re.search(r"row (\d+) · neuron (\d+)", large.read_out()).groups())
    assert "8-bit preview" in large.read_out()
    said = float(re.search(r"≈ (-?[\d.]+)", large.read_out())[1])
    block = LARGE[row // 2 * 2 : row // 2 * 2 + 2, neuron // 2 * 2 : neuron // 2 * 2 + 2].ravel()
    assert abs(said - block[np.abs(block).argmax()]) < 0.03


def test_keys_work_and_pins_stay(page):
    grid = WidgetOnPage(page, page.locator(".act-heatmap").first)
    grid.press("ArrowDown", "ArrowRight", "Enter")
    assert len(grid.pins()) == 1
    grid.press("Enter")
    assert grid.pins() == []


def test_it_fits_a_narrow_window_and_the_dark(page, screenshots):
    page.set_viewport_size({"width": 420, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=screenshots / "export_narrow_dark.png", full_page=True)


def test_scripts_off_shows_pictures(chromium, tmp_path):
    export_page({"Grid": Grid(VALUES, axes="layer position")}, tmp_path / "page.html")
    context = chromium.new_context(java_script_enabled=False, offline=True)
    still = context.new_page()
    still.goto((tmp_path / "page.html").as_uri())
    assert still.locator("[data-widget] img").is_visible()
    assert "Scripts are off" in still.locator("body").inner_text()
    context.close()


def test_what_was_run_stays_and_a_click_says_that_it_needs_a_kernel(offline, tmp_path, screenshots):
    opened, troubles = offline
    masks = {"known_zero": np.arange(36).reshape(4, 9) < 9}
    grid = Grid(VALUES, axes="layer position", labels={"position": TOKENS}, masks=masks, title=HOSTILE, unit="logits")
    explorer = PatchingExplorer(grid, rerun=lambda cell: 1.5)
    explorer.measure({"layer": 2, "position": 3})
    edges = np.array([(a, b) for a in range(6) for b in range(a + 1, 6)])
    graph = Graph([HOSTILE, "a", "b", "c", "d", "logits"], edges, random.normal(size=15), columns={"readout": [HOSTILE] * 6})
    export_page({"Explorer": explorer, "Circuit": graph}, tmp_path / "page.html")
    opened.goto((tmp_path / "page.html").as_uri())
    wait_until(opened, "document.querySelectorAll('.act-explorer[data-ready], .act-circuit[data-ready]').length === 2")
    shown = WidgetOnPage(opened, opened.locator(".act-explorer"))
    assert f"approximate {VALUES[2, 3]:.4g} · exact 1.5" in shown.pins()[0]
    shown.root.locator(".act-pins button").click()
    assert "exact 1.5 logits" in shown.read_out()
    shown.press("ArrowRight", "Enter")
    assert "an exact run needs one" in shown.root.locator(".act-explorer-words[aria-live]").text_content()
    assert len(shown.pins()) == 1
    shown.press("ArrowUp", "ArrowUp")
    assert "exact 0 logits" in shown.read_out()  # known without a run, so also without a kernel
    circuit = WidgetOnPage(opened, opened.locator(".act-circuit"))
    circuit.press("ArrowUp", "ArrowUp", "Enter")
    assert HOSTILE in circuit.read_out()
    assert len(circuit.pins()) == 1
    before = circuit.root.locator(".act-controls > output").text_content()
    assert before == "15 of 15 edges, 6 of 6 nodes"
    circuit.root.locator("input[type=range]").press("End")
    circuit.settle()
    assert re.match(r"[1-9]\d? of 15 edges", circuit.root.locator(".act-controls > output").text_content())
    assert circuit.root.locator(".act-controls > output").text_content() != before
    opened.screenshot(path=screenshots / "export_circuits.png", full_page=True)
    assert troubles == []
    assert opened.evaluate("window.__pwned") is None
