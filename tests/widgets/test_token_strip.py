"""TokenStrip: what travels, what is shown where no widget can run."""

import json

import numpy as np

from activarium.results import Overlay
from activarium.widgets import TokenStrip, payload, show

TOKENS = ("The", " cat", "\n", "<script>alert(1)</script>")


def strip(dtype="f4", **words):
    values = np.random.default_rng(2).normal(size=(3, 4)).astype(dtype)
    return Overlay(values, ("a", "b", "c"), tokens=TOKENS, title="words", unit="logits", **words)


def test_tokens_travel_as_text_and_values_as_bytes():
    overlay = strip()
    widget = show(overlay)
    assert isinstance(widget, TokenStrip)
    assert widget.spec["tokens"] == list(TOKENS)
    found = payload.unpack(widget.spec["arrays"], widget.data)["values"]
    assert found.tobytes() == overlay.values.tobytes()
    assert str(float(overlay.values[0, 0])) not in json.dumps(widget.spec)


def test_float16_grows_to_float32_exactly():
    overlay = strip("f2")
    widget = show(overlay)
    assert (payload.unpack(widget.spec["arrays"], widget.data)["values"] == overlay.values).all()
    assert widget.spec["source"] == "float16"


def test_colours_span_all_maps_by_default():
    overlay = strip()
    size = float(np.abs(overlay.values).max())
    assert show(overlay).spec["range"] == [-size, size]


def test_pointed_names_a_value():
    overlay = strip()
    assert show(overlay).value({"map": 2, "position": 1}) == overlay.values[2, 1]


def test_state_a_reader_can_set_from_python():
    widget = show(strip())
    widget.shown, widget.pinned = [0, 2], [{"map": 0, "position": 1}]
    assert widget.get_state()["shown"] == [0, 2]


def test_missing_values_have_a_picture_too():
    widget = show(Overlay(np.array([[np.nan, 1.0]]), ("a",), tokens=("x", "y")))
    assert widget.png().startswith(b"\x89PNG")
    assert widget.spec["data"] == [1.0, 1.0]


def test_the_picture_does_without_pillow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert show(strip()).png().startswith(b"\x89PNG")
