"""Heatmap: what travels to the browser, and what the kernel answers."""

import base64
import json

import numpy as np
import pytest

from activarium.errors import InputError
from activarium.results import Grid, Overlay, Ranking
from activarium.widgets import Heatmap, grid_view, payload, show

random = np.random.default_rng(7)


def grid(*shape, axes=None, dtype="f4", **words):
    names = axes or "layer head query key".split()[: len(shape)]
    return Grid(random.normal(size=shape).astype(dtype), axes=names, **words)


def arrays(widget):
    return payload.unpack(widget.spec["arrays"], widget.data)


def large(side=1500, peak=None):
    values = random.normal(size=(side, side)).astype("f4")
    if peak:
        values[peak] = 500
    return Grid(values, axes="row feature")


@pytest.mark.parametrize("shape", [(9,), (4, 6), (3, 4, 6), (2, 3, 5, 7)])
def test_every_value_of_a_small_grid_travels_bit_for_bit(shape):
    made = grid(*shape)
    assert arrays(show(made))["values"].tobytes() == made.values.tobytes()


def test_float64_and_integers_keep_their_precision():
    for values in (np.array([[0.1, 2**53 + 1.0]]), np.array([[2**24 + 1, -3]])):
        widget = show(Grid(values, axes="layer head"))
        assert (arrays(widget)["values"] == values).all()
        assert widget.spec["dtype"] == "f8"


def test_numbers_never_travel_as_json():
    widget = show(grid(200, 300))
    assert len(json.dumps(widget.spec)) < 2000
    assert isinstance(widget.data, bytes)


def test_a_large_grid_sends_a_small_preview_that_keeps_its_peak():
    made = large(peak=(1234, 777))
    widget = show(made)
    preview = arrays(widget)["preview"]
    assert not widget.exact
    assert preview.shape == (1, 750, 750)
    assert widget.spec["steps"] == [2, 2]
    assert len(widget.data) < 1 << 20
    assert preview[0, 617, 388] == 254


def test_previews_of_all_slices_travel_while_they_are_small():
    assert show(grid(12, 12, 64, 64)).spec["whole"]
    widget = show(grid(6, 1000, 1000, axes="layer query key"))
    assert not widget.spec["whole"]
    first = widget.data
    widget.frame = 3
    assert widget.spec["frame"] == 3
    assert widget.data != first


def test_another_colour_range_renews_the_preview():
    widget = show(large(peak=(3, 3)))
    assert list(widget.spec["ranges"]) == ["robust", "full", "tight"]
    assert widget.spec["coded"] == widget.spec["ranges"]["robust"]
    widget.clip = "full"
    assert widget.spec["coded"] == [-500.0, 500.0]


def test_questions_are_answered_exactly():
    made = large()
    widget = show(made)
    _, (cell,) = widget.answer({"ask": "cell", "frame": 0, "y": 700, "x": 41})
    assert np.frombuffer(cell)[0] == made.values[700, 41]
    words, (tile,) = widget.answer({"ask": "region", "frame": 0, "y": 1408, "x": 0, "height": 256, "width": 256, "steps": [1, 1]})
    assert words["shape"] == [92, 256]
    assert (np.frombuffer(tile, "f4").reshape(92, 256) == made.values[1408:, :256]).all()


def test_a_pooled_region_keeps_extremes():
    made = large(peak=(130, 9))
    words, (tile,) = show(made).answer({"ask": "region", "frame": 0, "y": 0, "x": 0, "height": 512, "width": 512, "steps": [2, 2]})
    assert np.frombuffer(tile, "f4").reshape(words["shape"])[65, 4] == 500


def test_a_ping_and_an_unknown_question():
    widget, sent = show(grid(2, 2)), []
    widget.send = lambda words, buffers=None: sent.append((words, buffers))
    widget._hear(widget, {"ask": "ping", "id": 5}, [])
    assert sent == [({"id": 5}, [])]
    with pytest.raises(InputError, match=r"Heatmap has no answer to 'dance'"):
        widget.answer({"ask": "dance"})


def test_a_region_too_large_to_travel_is_refused():
    with pytest.raises(InputError, match="Zoom in"):
        show(large()).answer({"ask": "region", "frame": 0, "y": 0, "x": 0, "height": 9000, "width": 9000, "steps": [1, 1]})


def test_pointed_names_a_value():
    made = grid(3, 4, 5)
    widget = show(made)
    assert widget.value({"layer": 2, "head": 1, "query": 0}) == made.values[2, 1, 0]


def test_the_peak_is_found_whatever_its_sign():
    values = np.array([[1.0, np.nan], [-7.0, np.inf]])
    assert show(Grid(values, axes="layer head")).spec["peak"] == {"layer": 1, "head": 0}
    assert show(large(peak=(12, 34))).spec["peak"] == {"row": 12, "feature": 34}


def test_repeated_axis_names_get_keys_of_their_own():
    widget = show(grid(4, 4, axes="feature feature"))
    assert widget.spec["keys"] == ["feature", "feature_2"]
    assert widget.value({"feature": 1, "feature_2": 2}) == widget.result.values[1, 2]


def test_masks_travel_as_bits():
    first, second = random.random((2, 4, 6)) > 0.5
    widget = show(grid(4, 6, masks={"refused": first, "known zero": second}))
    assert widget.spec["masks"] == ["refused", "known zero"]
    assert (arrays(widget)["masks"] == first + 2 * second).all()


def test_masks_of_a_preview_travel_as_long_as_a_page_can_unfold_them(monkeypatch):
    zero = np.zeros((1500, 1500), bool)
    zero[:, :700] = True
    made = Grid(large().values, axes="row feature", masks={"known_zero": zero})
    widget = show(made)
    assert not widget.exact
    assert (arrays(widget)["masks"] == zero).all()
    monkeypatch.setattr(grid_view, "MASK_CELLS", 1500 * 1500 - 1)
    assert (show(made).spec["masks"], show(made).spec["unshown"]) == ([], ["known_zero"])
    assert "masks" not in arrays(show(made))


def test_the_picture_shows_the_masks():
    values = np.ones((2, 2), "f4")
    plain, masked = (Grid(values, axes="layer head", masks=m) for m in ({}, {"known_zero": np.eye(2, dtype=bool)}))
    assert show(plain).png() != show(masked).png()


def test_the_check_is_said():
    check = Ranking(("a",), [1.0], title="Against 9 exact cells", diagnostics={"pearson": 0.5})
    assert show(grid(2, 2, check=check)).spec["check"] == "Against 9 exact cells · Pearson 0.5"
    assert show(grid(2, 2)).spec["check"] == ""


def test_missing_values_stay_missing():
    values = np.full((1200, 1200), np.nan, "f4")
    values[5, 5] = -2
    widget = show(Grid(values, axes="row feature"))
    preview = arrays(widget)["preview"][0]
    assert preview[2, 2] == 0
    assert (np.delete(preview.ravel(), 2 * 600 + 2) == payload.MISSING).all()
    assert widget.png()


def test_hostile_labels_travel_as_text():
    label = '<img src=x onerror="alert(1)">'
    widget = show(Grid(np.zeros((1, 1)), axes="layer head", labels={"head": [label]}, title="<script>"))
    assert widget.spec["labels"]["head"] == [label]
    assert widget.spec["title"] == "<script>"


def test_output_carries_picture_and_words():
    data, _ = show(grid(4, 6, title="heads"))._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == "Heatmap('heads')"
    assert "application/vnd.jupyter.widget-view+json" in data


def test_other_kinds_are_refused_in_words():
    with pytest.raises(InputError, match=r"Heatmap shows Grid; got Overlay.*show\(result\)"):
        Heatmap.of(Overlay(np.zeros((1, 1)), ("a",), tokens=("x",)))
