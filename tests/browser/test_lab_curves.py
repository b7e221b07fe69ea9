"""Curves in JupyterLab: the numbers that Python has, by mouse and by key, on every axis; and the reports that hold them."""

import re

import numpy as np
import pytest

from lab import printed, reads_what_python_has  # isort: skip

pytestmark = pytest.mark.browser

DATA = """
import numpy as np
random = np.random.default_rng(4)
hostile = '<img src=x onerror="window.__pwned = 1">'
layers = np.arange(12)
top = np.exp(random.normal(size=12) * 3)
other = random.normal(size=12).astype(np.float32)
other[5:7] = np.nan
long = random.normal(size=60_000)
long[43_210] = 99.5
counts, edges = np.histogram(random.exponential(size=900), 12)
"""
CELLS = [
    DATA + "import activarium as act\nfrom activarium.results import Series",
    """series = Series(layers, {"top": top, hostile: other}, "layer", {"top": np.stack([top / 2, top * 2])}, title=hostile, unit="model units")
depth = act.show(series)
depth""",
    """training = act.show(Series(np.arange(60_000), {"loss": long}, "step", title="A long one", unit="nats"))
training""",
    """rates = act.show(Series(edges[:-1], {"neurons": counts}, "share of tokens", title="Firing rates", unit="neurons"))
rates""",
]
# Two and more layers of a bundled model are enough for every report that ends in curves.
REPORTS = [
    """import activarium as act
scribe = act.load("scribe")
texts = ["When Anna and Oscar went to the park, Oscar gave the book to Anna.", "Once upon a time there was a small dog."]
recording = scribe.run(texts, read=["embed", "blocks.*.resid_post", "blocks.*.mlp.post", "logits"])
lazy = act.show(act.analyses.lazy_neurons(recording))
lazy""",
    "lens = act.show(act.analyses.logit_lens(recording, scribe))\nlens",
    "influence = act.show(act.analyses.block_influence(recording))\ninfluence",
    "massive = act.show(act.analyses.massive_activations(recording))\nmassive",
    "indices = act.show(act.analyses.sparsity_indices(recording))\nindices",
    """pairs = act.pairs(
    scribe,
    ["When Anna and Oscar went to the park, Oscar gave the book to"],
    ["When Anna and Oscar went to the park, Anna gave the book to"],
    answers=["Anna"],
    foils=["Oscar"],
)
graph = act.analyses.edge_attribution(scribe, pairs, direction="noise", steps=2)
faithful = act.show(act.analyses.circuit_faithfulness(scribe, pairs, graph, progress=False))
faithful""",
]


@pytest.fixture(scope="module")
def whole(open_notebook):
    return open_notebook("curves.ipynb", CELLS, widgets=3)


def legend(widget):
    return [text.strip() for text in widget.root.locator(".act-curve-value").all_text_contents()]


def test_hover_names_x_and_every_value(shown, data, screenshots):
    depth = shown.widget("curves")
    seen = set()
    for share in (0.2, 0.35, 0.75):
        depth.move_to(share, 0.3)
        layer = int(re.search(r"layer (\d+)", depth.read_out()).group(1))
        pointed = printed(shown, "depth.pointed")
        assert pointed["layer"] == layer
        assert depth.value() == printed(shown, "depth.value(depth.pointed)")
        said = [float(words) for words in legend(depth)]
        assert np.allclose(said, [data["top"][layer], data["other"][layer]], rtol=6e-3, equal_nan=True)
        seen.add(layer)
    assert len(seen) == 3
    depth.move_to(0.75, 0.3)  # running code has scrolled the page
    depth.click()
    assert printed(shown, "depth.pinned") == [pointed]
    assert len(depth.pins()) == 1
    depth.picture(screenshots / "lab_curves.png")


def test_keys_walk_points_and_curves(shown, data):
    depth = shown.widget("curves")
    depth.press("Home", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowRight")
    assert printed(shown, "depth.pointed") == {"layer": 3, "curve": "top"}
    assert depth.value() == data["top"][3]
    depth.press("ArrowDown")
    assert printed(shown, "depth.pointed") == {"layer": 3, "curve": data["hostile"]}
    assert np.float32(depth.value()) == data["other"][3]
    assert "<img" in depth.read_out()
    depth.press("ArrowRight", "ArrowRight")
    assert "NaN" in depth.read_out()
    depth.press("ArrowUp", "p")
    assert printed(shown, "depth.pointed['layer']") == int(data["top"].argmax())


def test_the_legend_takes_curves_away(shown, data):
    depth = shown.widget("curves")
    first = depth.root.locator(".act-curve").first
    first.click()
    depth.settle()
    assert printed(shown, "depth.shown") == [1]
    assert first.get_attribute("aria-pressed") == "false"
    depth.press("End", "c")
    copied = shown.page.evaluate("navigator.clipboard.readText()").splitlines()
    assert len(copied) == 13
    assert np.float32(copied[4].split(",")[1]) == data["other"][3]
    depth.press("0")
    assert printed(shown, "depth.shown") == [0, 1]


def test_log_axes_say_what_they_do_with_zero(shown):
    depth = shown.widget("curves")
    before = depth.root.locator(".act-map").evaluate("(c) => c.toDataURL()")
    depth.root.locator("select").nth(1).select_option(label="log")
    depth.root.locator("select").nth(2).select_option(label="log")
    depth.settle()
    assert printed(shown, "depth.x_scale, depth.y_scale") == ("log", "log")
    caption = depth.root.locator(".act-caption").text_content()
    assert "x: logarithmic, linear within ±1, for it holds 0 or negative numbers" in caption
    assert "y: logarithmic, linear within" in caption
    assert depth.root.locator(".act-map").evaluate("(c) => c.toDataURL()") != before
    assert reads_what_python_has(shown, "depth", "curves", 0) >= 3
    shown.run("depth.shown = [0]")
    depth.settle()
    assert "y: logarithmic ·" in depth.root.locator(".act-caption").text_content() + " ·"
    depth.press("0")


def test_a_long_curve_keeps_its_peak_and_says_what_is_left_out(shown, data):
    training = shown.widget("curves", 1)
    assert re.search(r"\d+ of 60000 points: of each stretch", training.root.locator(".act-caption").text_content())
    training.press("Home", "p")
    assert printed(shown, "training.pointed") == {"step": 43_210, "curve": "loss"}
    assert training.value() == 99.5
    # Blue pixels close to the upper edge, and only there: the peak is on the screen.
    columns = training.root.locator(".act-map").evaluate(
        """(c) => { const { data } = c.getContext('2d').getImageData(0, Math.round(c.height * 0.1), c.width, Math.round(c.height * 0.2));
                    const found = new Set();
                    for (let at = 0; at < data.length; at += 4) if (data[at + 2] - data[at] > 80) found.add((at / 4) % c.width / c.width);
                    return [...found]; }"""
    )
    assert columns
    assert max(columns) - min(columns) < 0.02
    assert 0.65 < min(columns) < 0.78


def test_bars_read_out_their_own_bin(shown, data, screenshots):
    rates = shown.widget("curves", 2)
    assert rates.root.locator("select").first.input_value() == "bars"
    assert reads_what_python_has(shown, "rates", "curves", 2) >= 3
    rates.press("Home")
    assert rates.value() == data["counts"][0]
    rates.picture(screenshots / "lab_curves_bars.png")


def test_a_copied_picture_carries_title_and_legend(shown):
    depth = shown.widget("curves")
    depth.root.get_by_role("button", name="Copy the picture").click()
    depth.root.locator(".act-readout", has_text="PNG copied").wait_for()
    height = shown.page.evaluate(
        """async () => { const [item] = await navigator.clipboard.read();
                         const picture = await createImageBitmap(await item.getType('image/png')); return picture.height; }"""
    )
    assert height > depth.root.locator(".act-map").evaluate("(c) => c.height") + 60


def test_reports_show_their_curves(open_notebook, screenshots):
    notebook = open_notebook("curve_reports.ipynb", REPORTS, widgets=2)
    for name in ("lazy", "influence", "massive", "indices", "faithful"):
        assert int(notebook.run(f"print(sum(type(c).__name__ == 'Curves' for c in getattr({name}, 'children', [{name}])))")) >= 1, name
    every = notebook.page.locator(".act-curves")
    assert every.count() >= 9
    for at in range(every.count()):
        widget = notebook.widget("curves", at)
        # The notebook draws what is near the screen.
        widget.root.scroll_into_view_if_needed()
        notebook.page.locator(".act-curves[data-ready]").nth(at).wait_for()
        widget.press("Home", "ArrowRight")
        assert re.search(r"\S+ -?[\d.]+ · .*[\d.]", widget.read_out())
        widget.picture(screenshots / f"lab_report_curves_{at}.png")
    assert notebook.troubles == []
    assert [words for words in notebook.printed_troubles() if "UserWarning" not in words] == []


def test_dark_theme_and_a_narrow_cell(open_notebook, screenshots):
    notebook = open_notebook(
        "curves_dark.ipynb",
        [*CELLS[:2], "from ipywidgets import HBox, Layout\nnarrow = act.show(series)\nnarrow.layout.width = '320px'\nHBox([narrow])"],
        widgets=2,
        dark=True,
    )
    widget = notebook.widget("curves")
    ground = widget.root.locator(".act-map").evaluate("(c) => getComputedStyle(c.closest('.act')).getPropertyValue('--act-ground')")
    assert ground
    widget.move_to(0.4, 0.4)
    widget.picture(screenshots / "lab_curves_dark.png")
    narrow = notebook.widget("curves", 1)
    narrow.press("Home", "ArrowRight")
    widths = narrow.root.evaluate(
        "(root) => [root.getBoundingClientRect().width, root.scrollWidth, root.querySelector('.act-map').getBoundingClientRect().width]"
    )
    assert widths[0] <= 320
    assert widths[1] <= widths[0] + 1
    assert widths[2] <= widths[0]
    narrow.picture(screenshots / "lab_curves_narrow.png")
    assert notebook.troubles == []
    assert notebook.printed_troubles() == []
