"""FeatureBrowser in JupyterLab and in an exported page: sort, filter, search, leaf through, and nothing hostile runs."""

import json
import re

import numpy as np
import pytest

from activarium.testing import example_pages
from activarium.widgets import FeatureBrowser
from activarium.workflows.export import export_page

from lab import WidgetOnPage, printed, wait_until  # isort: skip

pytestmark = pytest.mark.browser

HOSTILE = "<script>window.__pwned = 1</script>"
DATA = """
from activarium.testing import example_pages
pages = example_pages(600)
"""
CELLS = [
    DATA + "import activarium as act",
    "browser = act.show(pages)\nbrowser",
]


@pytest.fixture(scope="module")
def whole(open_notebook):
    return open_notebook("features.ipynb", CELLS, widgets=1)


@pytest.fixture
def browser(shown):
    """The browser as it was at the start: nothing sorted, filtered or opened."""
    shown.run(
        "browser.sort, browser.limits, browser.hide_dead, browser.query, browser.pinned = {'column': '', 'down': True}, {}, False, '', []"
    )
    widget = shown.widget("browser")
    widget.settle()
    return widget


def features(widget):
    """Numbers of the rows in sight, from the top."""
    rows = widget.root.locator(".act-list-row:not([hidden])").evaluate_all(
        "(rows) => rows.map((r) => [Number(r.dataset.row), Number(r.dataset.feature)]).sort((a, b) => a[0] - b[0])"
    )
    return [feature for _, feature in rows]


def opened(widget, feature):
    """Wait until the page of a feature is on screen."""
    widget.root.locator(f".act-page-body[data-feature='{feature}'] .act-sheet").wait_for()
    widget.settle()
    return widget.root.locator(".act-page-body")


def picture(notebook, widget, path):
    """The whole widget: it is taller than the window of the other tests."""
    notebook.page.set_viewport_size({"width": 1280, "height": 1300})
    widget.settle()
    widget.picture(path)
    notebook.page.set_viewport_size({"width": 1180, "height": 900})


def test_only_rows_in_sight_are_in_the_page(browser, data):
    assert browser.root.locator(".act-list-row").count() < 60
    first = np.argsort(-data["pages"].columns["fires"], kind="stable")
    assert features(browser)[:20] == first[:20].tolist()
    browser.plot.evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
    browser.settle()
    assert features(browser)[-1] == first[-1]
    assert browser.root.locator(".act-list-row").count() < 60
    browser.plot.evaluate("(list) => { list.scrollTop = 0; }")


def test_sorting_by_click_and_by_key(browser, shown, data):
    columns = data["pages"].columns
    browser.root.locator("[data-column='max']").click()
    browser.settle()
    assert features(browser)[:20] == np.lexsort((np.arange(600), -columns["max"]))[:20].tolist()
    assert printed(shown, "browser.sort") == {"column": "max", "down": True}
    browser.root.locator("[data-column='max']").focus()
    for key in ("ArrowRight", "Enter", "Enter"):
        browser.page.keyboard.press(key)
    browser.settle()
    assert printed(shown, "browser.sort") == {"column": "skew", "down": False}
    assert features(browser)[:20] == np.argsort(columns["skew"], kind="stable")[:20].tolist()
    assert printed(shown, "browser.order[:20].tolist()") == features(browser)[:20]


def test_filters_agree_with_python(browser, shown, data):
    columns = data["pages"].columns
    browser.root.get_by_text("hide dead").click()
    browser.root.locator("label", has_text="range of").locator("select").select_option("density")
    browser.root.locator("[aria-label='smallest density']").fill("1e-3")
    browser.root.locator("[aria-label='smallest density']").press("Tab")
    browser.root.locator("[aria-label='largest density']").fill("0.01")
    browser.root.locator("[aria-label='largest density']").press("Enter")
    browser.settle()
    inside = ((columns["density"] >= 0.001) & (columns["density"] <= 0.01)).sum()
    said = browser.root.locator(".act-list-foot output").text_content()
    assert said == f"{inside} of 600 features"
    assert printed(shown, "browser.limits, len(browser.order)") == ({"density": [0.001, 0.01]}, inside)
    browser.root.locator("[aria-label='largest density']").fill("many")
    browser.root.locator("[aria-label='largest density']").press("Enter")
    assert browser.root.locator("[aria-label='largest density']").get_attribute("aria-invalid") == "true"
    browser.root.get_by_label("No range of density").click()
    browser.settle()
    assert browser.root.locator(".act-list-foot output").text_content() == "599 of 600 features"


def test_the_search_asks_the_kernel(browser, shown):
    browser.root.locator(".act-search").fill("<script>")
    wait_until(browser.page, "document.querySelector('.act-browser output').textContent.startsWith('1 of')")
    assert features(browser) == [0]
    assert printed(shown, "browser.query, browser.order.tolist()") == ("<script>", [0])


def test_keys_open_pages_and_go_back(browser, shown, data, screenshots):
    first = np.argsort(-data["pages"].columns["fires"], kind="stable")
    browser.press("Home", "ArrowDown", "ArrowDown", "Enter")
    opened(browser, first[2])
    assert f"feature {first[2]}" in browser.read_out()
    assert printed(shown, "browser.pinned, browser.pointed") == ([{"feature": first[2]}], {"feature": first[2]})
    browser.press("PageDown", "Enter")
    second = printed(shown, "browser.pinned[0]['feature']")
    assert second not in first[:10]
    opened(browser, second)
    cells = shown.page.locator(".jp-Notebook .jp-Cell").count()
    browser.press("[")
    opened(browser, first[2])
    browser.press("]")
    opened(browser, second)
    browser.press("End", "c")
    assert "copied" in browser.read_out()
    assert shown.page.locator(".jp-Notebook .jp-Cell").count() == cells


def test_a_page_shows_what_python_has(browser, shown, data, screenshots):
    shown.run("browser.pinned = [{'feature': 0}]")
    page = opened(browser, 0)
    truth = data["pages"].page(0)
    assert page.locator("[aria-label='promoted'] .act-token-word").all_text_contents() == [token for token, _ in truth["promoted"]]
    assert HOSTILE in page.locator(".act-contexts").text_content()
    assert [words.split(" · ")[0] for words in page.locator(".act-band").all_text_contents()] == ["top", "0.5–0.9", "0–0.5"]
    token = page.locator(".act-context").first.locator(".act-token").nth(5)
    token.hover()
    browser.settle()
    assert np.float32(browser.value()) == truth["contexts"][0]["values"][5]
    token.focus()
    browser.page.keyboard.press("ArrowDown")
    assert np.float32(browser.value()) == truth["contexts"][1]["values"][5]
    page.locator("[aria-label='promoted'] li").first.focus()
    browser.page.keyboard.press("ArrowDown")
    assert np.float32(browser.value()) == truth["promoted"][1][1]
    page.locator(".act-histogram").focus()
    browser.page.keyboard.press("ArrowRight")
    assert f"count {truth['histogram']['counts'][0]}" in browser.read_out()
    page.locator(".act-figure", has_text="density").hover()
    browser.settle()
    assert browser.value() == data["pages"].columns["density"][0]  # the float64 itself
    picture(shown, browser, screenshots / "lab_features.png")


def test_a_neighbour_opens(browser, shown, data):
    shown.run("browser.pinned = [{'feature': 0}]")
    opened(browser, 0).locator("[aria-label='alike in direction'] button").first.click()
    opened(browser, data["pages"].page(0)["neighbours"][0][0])
    browser.root.get_by_label("Back to the feature before ([)").click()
    opened(browser, 0)


def test_pictures_dead_and_missing(browser, shown, data, screenshots):
    shown.run("browser.pinned = [{'feature': 5}]")
    page = opened(browser, 5)
    truth = data["pages"].page(5)["contexts"][0]
    panel = page.locator(".act-panel canvas").first
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    browser.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"])
    browser.settle()
    y, x = map(int, re.search(r"y (\d+) · x (\d+)", browser.read_out()).groups())
    assert (y, x) == (1, 2)
    assert np.float32(browser.value()) == truth["values"][4 * y + x]
    panel.focus()
    browser.page.keyboard.press("ArrowDown")
    assert np.float32(browser.value()) in (truth["values"][4 * (y + 1) + x], truth["values"][x])
    picture(shown, browser, screenshots / "lab_features_images.png")
    before = panel.evaluate("(c) => c.toDataURL()")
    page.locator("label", has_text="cover").locator("select").select_option("grid alone")
    assert panel.evaluate("(c) => c.toDataURL()") != before
    shown.run("browser.pinned = [{'feature': 3}]")
    assert "No context of this feature is known" in opened(browser, 3).text_content()
    shown.run("browser.pinned = [{'feature': 4}]")
    page = opened(browser, 4)
    assert "skew NaN" in page.locator(".act-figures").text_content()
    assert page.locator(".act-missing").count() == 9


def test_copies(browser, shown):
    shown.run("browser.pinned = [{'feature': 0}]")
    opened(browser, 0)
    browser.root.locator(".act-browser-page").get_by_text("PNG").click()
    wait_until(browser.page, "document.querySelector('.act-browser .act-readout').textContent.includes('PNG')")
    browser.root.locator(".act-browser-page").get_by_text("CSV").click()
    wait_until(browser.page, "document.querySelector('.act-browser .act-readout').textContent.includes('CSV')")
    words = browser.page.evaluate("navigator.clipboard.readText()")
    assert words.startswith("band,example,position,value,text,values")
    assert HOSTILE in words


def test_in_the_dark(browser, shown, screenshots):
    shown.run("browser.pinned, browser.sort = [{'feature': 0}], {'column': 'max', 'down': True}")
    opened(browser, 0)
    for theme in ("Dark", "Light"):
        light = browser.root.locator(".act-histogram").evaluate("(c) => c.toDataURL()")
        shown.page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        shown.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
        browser.settle()
        assert browser.root.locator(".act-histogram").evaluate("(c) => c.toDataURL()") != light
        if theme == "Dark":
            picture(shown, browser, screenshots / "lab_features_dark.png")


@pytest.fixture
def exported(offline, tmp_path):
    """A page of 400 features, 30 of them with their page, opened with the network off."""
    page, troubles = offline
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    browser = FeatureBrowser(example_pages(400)).embedded([*range(30)])
    export_page({"Features": browser}, tmp_path / "page.html", title=HOSTILE)
    page.goto((tmp_path / "page.html").as_uri())
    wait_until(page, "document.querySelectorAll('.act-browser[data-ready]').length === 1")
    yield WidgetOnPage(page, page.locator(".act-browser"))
    assert troubles == []
    assert [url for url in asked if not url.startswith(("blob:", "data:"))] == [(tmp_path / "page.html").as_uri()]
    assert page.evaluate("window.__pwned") is None


def test_an_exported_page_goes_on_working(exported, screenshots):
    pages = example_pages(400)
    assert "Pages of 30 of 400 features are in this file." in exported.root.text_content()
    exported.root.locator(".act-go").fill("7")
    exported.root.locator(".act-go").press("Enter")
    page = opened(exported, 7)
    token = page.locator(".act-context").first.locator(".act-token").nth(5)
    token.hover()
    exported.settle()
    assert np.float32(exported.value()) == pages.page(7)["contexts"][0]["values"][5]
    exported.root.locator(".act-search").fill("<SCRIPT>")
    wait_until(exported.page, "document.querySelector('.act-browser .act-list-foot output').textContent.startsWith('1 of 400')")
    assert "looked in the 30 pages of this file" in exported.root.text_content()
    exported.press("Home", "Enter")
    assert HOSTILE in opened(exported, 0).text_content()
    exported.root.locator(".act-search").fill("")
    wait_until(exported.page, "document.querySelector('.act-browser .act-list-foot output').textContent === '400 features'")
    exported.root.locator("[data-column='max']").click()
    exported.page.screenshot(path=screenshots / "export_features.png", full_page=True)
    exported.root.locator(".act-go").fill("300")
    exported.root.locator(".act-go").press("Enter")
    exported.settle()
    assert "The page of feature 300 is not in this file." in exported.root.locator(".act-page-words").text_content()


def test_a_link_into_an_exported_page_opens_its_feature(exported):
    exported.page.evaluate("location.hash = '#feature=12'")
    opened(exported, 12)
    exported.page.set_viewport_size({"width": 420, "height": 900})
    exported.page.emulate_media(color_scheme="dark")
    exported.settle()
    assert exported.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_hundred_thousand_features_paint_and_scroll(offline, tmp_path, screenshots):
    """Counts, not times: rows in the page stay few. The times are kept beside the pictures for people to read."""
    page, troubles = offline
    pages = example_pages(100_000)
    export_page({"Features": FeatureBrowser(pages).embedded(1)}, tmp_path / "page.html")
    page.goto((tmp_path / "page.html").as_uri())
    wait_until(page, "document.querySelectorAll('.act-browser[data-ready]').length === 1")
    page.locator("[data-column='skew']").click()
    times = page.evaluate(
        """async () => {
             const list = document.querySelector('.act-list'), frames = [];
             const frame = () => new Promise((done) => requestAnimationFrame(done));
             let last = await frame();
             for (let at = 0; at < 90; at++) {
               list.scrollTop += at < 60 ? 400 : 40000;
               const now = await frame();
               frames.push(now - last);
               last = now;
             }
             frames.sort((a, b) => a - b);
             const before = performance.now();
             document.querySelector("[data-column='max']").click();
             return { ready: performance.now(), p50: frames[45], p95: frames[85], worst: frames[89], sort: performance.now() - before };
           }"""
    )
    (screenshots / "features_times.json").write_text(json.dumps(times))
    assert page.locator(".act-list-row").count() < 60
    assert troubles == []
