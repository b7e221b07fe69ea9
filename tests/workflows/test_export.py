"""export_page: one file that asks for nothing and runs nothing it was not given."""

import base64
import hashlib
import html
import json
import re

import numpy as np
import pytest

from activarium.errors import InputError
from activarium.results import Grid, Layout, Overlay, Report
from activarium.widgets import payload, show
from activarium.workflows.export import export_page

HOSTILE = '</script><script>window.__pwned = 1</script><img src=x onerror="window.__pwned = 2">'
GRID = Grid(np.arange(6, dtype="f4").reshape(2, 3), axes="layer head", title=HOSTILE, provenance={"analysis": "demo", "note": HOSTILE})
TEXT = Overlay(np.ones((1, 2), "f4"), (HOSTILE,), tokens=("fine", HOSTILE))
PLANE = Layout((HOSTILE,), np.zeros((1, 2)), title="plane")


@pytest.fixture
def page(tmp_path):
    def write(parts, **options):
        size = export_page(parts, tmp_path / "page.html", **options)
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert size == (tmp_path / "page.html").stat().st_size
        return text

    return write


def state(text):
    return json.loads(re.search(r'id="activarium-state">(.*?)</script>', text, re.S)[1])


def test_values_are_in_the_page_bit_for_bit(page):
    saved = state(page({"Heads": GRID}))["state"]["widget0"]
    data = base64.b64decode(saved["buffers"][0]["data"])
    assert payload.unpack(saved["state"]["spec"]["arrays"], data)["values"].tobytes() == GRID.values.tobytes()


def test_every_module_is_stored_once(page):
    saved = state(page({"one": GRID, "two": GRID.with_(title="again"), "text": TEXT}))
    assert len(saved["state"]) == 3
    modules = [key for key, words in saved["assets"].items() if "render" in words]
    assert len(modules) == 2


def test_hostile_words_are_nowhere_markup(page):
    text = page({HOSTILE: GRID, "Text": TEXT, "Plane": PLANE, "Words": HOSTILE}, title=HOSTILE)
    assert HOSTILE not in text
    assert len(re.findall("<script", text)) == 2
    assert "<img src=x" not in text
    assert html.escape(HOSTILE) in text


def test_the_policy_names_exactly_the_script_that_is_there(page):
    text = page({"Heads": GRID})
    script = re.search(r'<script type="module">(.*?)</script>', text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert f"script-src 'sha256-{digest}' blob:;" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy


def test_nothing_points_outside(page):
    text = page({"Heads": GRID, "Text": TEXT, "Plane": PLANE})
    assert not re.findall(r"https?://", text)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)


def test_the_same_parts_give_the_same_bytes(page):
    assert page({"Heads": GRID, "Text": TEXT}) == page({"Heads": GRID, "Text": TEXT})


def test_pictures_stand_in_where_scripts_are_off(page):
    text = page({"Heads": GRID})
    assert re.search(r'<div data-widget="widget0"><img alt="[^"]*" src="data:image/png;base64,iVBOR', text)
    assert "<noscript>" in text


def test_kinds_without_a_widget_are_static(page):
    text = page({"Plane": PLANE})
    assert '<div class="static">' in text
    assert not state(text)["state"]


def test_reports_become_sections_and_words_paragraphs(page):
    report = Report({"heads": GRID, "words": TEXT}, ("It was found.",), title="All of it")
    text = page({"Report": report, "Notes": "One.\n\nTwo."})
    assert "<h3>heads</h3>" in text
    assert "<p>One.</p><p>Two.</p>" in text
    assert "It was found." in text
    assert len(state(text)["state"]) == 2


def test_provenance_is_kept_and_escaped(page):
    text = page({"Heads": GRID, "Report": Report({"inner": GRID})})
    kept = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", text, re.S)[1]))
    assert kept["Heads"] == {"analysis": "demo", "note": HOSTILE}
    assert "Report / inner" in kept


def test_a_widget_keeps_what_was_pinned(page):
    widget = show(GRID)
    widget.pinned = [{"layer": 1, "head": 2}]
    assert state(page({"Heads": widget}))["state"]["widget0"]["state"]["pinned"] == [{"layer": 1, "head": 2}]


def test_linked_widgets_share_pointed(page):
    links = [s for s in state(page({"a": GRID, "b": GRID}, linked=[("a", "b")]))["state"].values() if s["model_name"] == "LinkModel"]
    assert links == [
        {"model_name": "LinkModel", "state": {"source": ["IPY_MODEL_widget0", "pointed"], "target": ["IPY_MODEL_widget1", "pointed"]}}
    ]
    with pytest.raises(InputError, match="linked names 'c', which shows no widget; those that do: 'a'"):
        page({"a": GRID}, linked=[("a", "c")])


def test_other_parts_are_refused_in_words(page):
    with pytest.raises(InputError, match="Part 'x' is a ndarray"):
        page({"x": np.eye(2)})
