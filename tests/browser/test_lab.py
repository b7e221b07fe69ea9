"""The widgets in JupyterLab: real mouse, real keys, and the numbers that Python has."""

import re

import numpy as np
import pytest

from lab import printed, reads_what_python_has  # isort: skip

pytestmark = pytest.mark.browser

# What a notebook cell and this test both compute, so that the test knows what the widget has to say.
DATA = """
import numpy as np
random = np.random.default_rng(11)
tokens = ("When", " Mary", " and", " John", " went", " to", "\\n", "<script>window.__pwned = 1</script>", " store", ".")
relevance = random.normal(size=(2, len(tokens))).astype(np.float32)
small = random.normal(size=(6, 12)).astype(np.float32)
attention = np.tril(random.random((3, 4, 16, 16))).astype(np.float32)
large = random.normal(size=(3000, 2000)).astype(np.float32)
large[1234, 777] = 321.125
image = random.integers(40, 120, (64, 64, 3)).astype(np.uint8)
down, across = np.mgrid[:64, :64]
mask = (down - 30) ** 2 + (across - 36) ** 2 < 15 ** 2
image[mask] = (214, 120, 66)
maps = (np.exp(-((np.mgrid[:8, :8] - np.array([3.5, 4.5]).reshape(2, 1, 1)) ** 2).sum(0) / 4) - 0.2).astype(np.float32)
"""
SHOWN = [
    DATA + "import activarium as act\nfrom activarium.results import Grid, Overlay",
    """words = Overlay(relevance, ("block 0", '<img src=x onerror="window.__pwned = 2">'), tokens=tokens, title="Where the logit difference comes from", unit="logits")
strip = act.show(words)
strip""",
    """heads = Grid(small, axes="layer position", labels={"position": [t.strip() or "·" for t in (tokens + (" and", " so"))]}, title="Residual patching", unit="logits")
heat = act.show(heads)
heat""",
    """patterns = act.show(Grid(attention, axes="layer head query key", title="Attention"))
patterns""",
    """big = act.show(Grid(large, axes="row neuron", title="A massive activation"))
big""",
    """disc = act.show(Overlay(np.stack([maps, -maps]), ("rollout", "its negative"), image=image, mask=mask, title="Where the disc is"))
disc""",
]


# Further notebooks: name, code cells, and which variable is shown by which widget: (kind, how many of its kind stand before it).
BOOKS = {
    "report": (
        [
            SHOWN[0],
            """from activarium.results import Report, Series
words = Overlay(relevance, ("block 0", "block 1"), tokens=tokens)
parts = {"<b>text</b>": words, "heads": Grid(small, axes="layer position"), "loss": Series(np.arange(12), {"train": np.sqrt(np.arange(12))})}
box = act.show(Report(parts, ("Found <i>this</i>.",), title="A report"))
strip, heat, loss = [child for child in box.children if hasattr(child, "pointed")]
box""",
        ],
        {"strip": ("tokens", 0), "heat": ("heatmap", 0), "loss": ("curves", 0)},
    ),
}


@pytest.fixture(scope="module")
def whole(open_notebook):
    """One notebook for all tests here; each of them works on its own widget."""
    return open_notebook("widgets.ipynb", SHOWN, widgets=5)


def test_token_strip(shown, data, screenshots):
    strip = shown.widget("tokens")
    for position in (3, 7):
        strip.root.locator(".act-token").nth(position).hover()
        strip.settle()
        assert np.float32(strip.value()) == data["relevance"][0, position]
        assert f"position {position}" in strip.read_out()
    assert "<script>" in strip.read_out()
    strip.click()
    assert len(strip.pins()) == 1
    assert printed(shown, "strip.pointed, strip.pinned") == ({"map": 0, "position": 7}, [{"map": 0, "position": 7}])
    strip.press("ArrowLeft", "ArrowLeft", "Enter")
    assert np.float32(strip.value()) == data["relevance"][0, 5]
    assert printed(shown, "[strip.value(p) for p in strip.pinned]") == [float(data["relevance"][0, p]) for p in (7, 5)]
    strip.root.locator("select").first.select_option(index=2)
    strip.settle()
    assert strip.root.locator(".act-strip").count() == 2
    strip.picture(screenshots / "lab_token_strip.png")


def test_heatmap(shown, data, screenshots):
    heat = shown.widget("heatmap")
    centre = heat.root.evaluate("(root) => root.querySelector('.act-map').getBoundingClientRect().width")
    assert centre > 200
    seen = set()
    for share in (0.15, 0.25, 0.35, 0.5):
        heat.move_to(share, 0.3)
        layer, position = map(int, re.search(r"layer (\d+) · position (\d+)", heat.read_out()).groups())
        assert np.float32(heat.value()) == data["small"][layer, position]
        seen.add((layer, position))
    assert len(seen) == 4
    heat.click()
    assert printed(shown, "heat.pinned") == [{"layer": layer, "position": position}]
    heat.press("ArrowUp", "ArrowLeft")
    assert printed(shown, "heat.pointed") == {"layer": layer - 1, "position": position - 1}
    assert np.float32(heat.value()) == data["small"][layer - 1, position - 1]
    heat.press("Home", "+", "+")
    assert "position 0" in heat.read_out()
    heat.press("0", "c")
    copied = shown.page.evaluate("navigator.clipboard.readText()")
    line = copied.splitlines()[1].split(",")
    assert [np.float32(v) for v in line[1:]] == data["small"][0].tolist()
    heat.picture(screenshots / "lab_heatmap.png")


def test_heatmap_with_leading_axes(shown, data, screenshots):
    patterns = shown.widget("heatmap", 1)
    patterns.root.locator("select").nth(0).select_option(index=2)
    patterns.root.locator("select").nth(1).select_option(index=3)
    patterns.settle()
    patterns.move_to(0.2, 0.6)
    place = {k: int(v) for k, v in re.findall(r"(layer|head|query|key) (\d+)", patterns.read_out())}
    assert (place["layer"], place["head"]) == (2, 3)
    assert np.float32(patterns.value()) == data["attention"][tuple(place.values())]
    assert printed(shown, "patterns.pointed") == place
    patterns.picture(screenshots / "lab_attention.png")


def test_large_heatmap_gets_exact_values_and_tiles_from_the_kernel(shown, data, screenshots):
    big = shown.widget("heatmap", 2)
    big.picture(screenshots / "lab_large.png")
    big.move_to(0.3, 0.5)
    # The value's element is a new one whenever the read-out speaks: it is looked up again each time.
    value = "root.querySelector('.act-value')?.textContent"
    shown.page.wait_for_function(f"(root) => {value} && !/[≈…]/.test({value})", arg=big.root.element_handle())
    row, neuron = map(int, re.search(r"row (\d+) · neuron (\d+)", big.read_out()).groups())
    assert np.float32(big.value()) == data["large"][row, neuron]
    assert "each pixel shows the cell furthest from 0" in big.root.locator(".act-caption").text_content()
    for _ in range(12):
        big.press("+")
    shown.page.wait_for_timeout(500)
    assert colour_under_cursor(big, data["large"][row, neuron])
    assert "8-bit" not in big.root.locator(".act-caption").text_content()
    big.picture(screenshots / "lab_large_zoomed.png")
    big.press("p")
    shown.page.wait_for_function(f"(root) => {value} === '321.125'", arg=big.root.element_handle())
    assert printed(shown, "big.pointed") == {"row": 1234, "neuron": 777}


def test_another_colour_range_comes_from_the_kernel(shown, screenshots):
    big = shown.widget("heatmap", 2)
    big.root.locator("select").select_option(index=1)
    # Messages are served on another thread than cells: a cell may run between the click and the new preview.
    wait = "next((big.spec['coded'] for _ in range(100) if big.spec['coded'][1] > 300 or time.sleep(0.05)), None)"
    shown.run("import time; print(time)")
    assert printed(shown, wait) == [-321.125, 321.125]
    big.press("0")
    assert "colours ±321" in big.root.locator(".act-caption").text_content()
    big.picture(screenshots / "lab_large_full_range.png")


def test_pictures_can_be_copied(shown):
    for kind in ("tokens", "heatmap", "image"):
        widget = shown.widget(kind)
        widget.root.locator("button", has_text="PNG").click()
        shown.page.wait_for_function("(el) => el.textContent.includes('PNG')", arg=widget.root.locator(".act-readout").element_handle())
        assert "PNG copied" in widget.read_out()


def colour_under_cursor(big, value):
    """Does the canvas show the sign of the exact cell where the cursor is? Orange is above zero, blue below."""
    red, _, blue = big.root.evaluate(
        """(root) => { const map = root.querySelector('.act-map'); const marks = root.querySelector('.act-marks');
             const pixels = marks.getContext('2d').getImageData(0, 0, marks.width, marks.height).data;
             let [x, y, n] = [0, 0, 0];
             for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) { n++; const at = (i - 3) / 4; x += at % marks.width; y += Math.floor(at / marks.width); }
             return [...map.getContext('2d').getImageData(Math.round(x / n), Math.round(y / n), 1, 1).data].slice(0, 3); }"""
    )
    return (red > blue) == (value > 0)


def test_image_overlay(shown, data, screenshots):
    disc = shown.widget("image")
    disc.move_to(0.55, 0.45, ".act-panel[data-map='0'] canvas")
    y, x = map(int, re.search(r"y (\d+) · x (\d+)", disc.read_out()).groups())
    assert (y, x) == (3, 4)
    assert np.float32(disc.value()) == data["maps"][y, x]
    assert "inside truth 100 %" in disc.read_out()
    disc.click()
    disc.press("ArrowDown")
    assert np.float32(disc.value()) == data["maps"][4, 4]
    assert printed(shown, "disc.pointed, disc.pinned") == ({"map": 0, "y": 4, "x": 4}, [{"map": 0, "y": 3, "x": 4}])
    disc.root.locator("select").first.select_option(index=2)
    disc.settle()
    assert disc.root.locator(".act-panel").count() == 3
    disc.picture(screenshots / "lab_image_overlay.png")


def test_traits_set_in_python_reach_the_page(shown):
    shown.run("strip.pinned = [{'map': 0, 'position': 2}]; heat.pointed = {'layer': 5, 'position': 1}; print('set')")
    assert "and" in shown.widget("tokens").pins()[0]
    heat = shown.widget("heatmap")
    heat.settle()
    assert "layer 5 · position 1" in heat.read_out()


def test_keys_stay_inside_the_widget(shown):
    before = shown.page.locator(".jp-Notebook .jp-Cell").count()
    shown.widget("heatmap").press("ArrowDown", "c", "+", "0", "Enter")
    assert shown.page.locator(".jp-Notebook .jp-Cell").count() == before


@pytest.mark.parametrize("name", BOOKS)
def test_read_outs_agree_with_the_kernel(open_notebook, screenshots, name):
    cells, shown = BOOKS[name]
    notebook = open_notebook(f"{name}.ipynb", cells, widgets=len(shown))
    for variable, (kind, at) in shown.items():
        part = ".act-strip" if kind == "tokens" else ".act-plot"
        assert reads_what_python_has(notebook, variable, kind, at, part) >= (1 if kind == "tokens" else 3)
    notebook.picture(screenshots / f"lab_{name}.png")
    assert notebook.troubles == []
    assert notebook.printed_troubles() == []


def test_dark_theme(open_notebook, screenshots):
    notebook = open_notebook("dark.ipynb", [*SHOWN[:3], SHOWN[5]], widgets=3, dark=True)
    for kind in ("tokens", "heatmap", "image"):
        widget = notebook.widget(kind)
        widget.move_to(0.3, 0.4)
        widget.picture(screenshots / f"lab_dark_{kind}.png")
    notebook.picture(screenshots / "lab_dark.png")
    assert notebook.troubles == []
