"""massive_landscape: every number in its place, and the massive ones marked."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.errors import InputError, NotFinite, UnknownName

from .planted_massive import DIM, LAYER, TEXT, TOKEN, planted, wrapped

massive_landscape = act.analyses.massive_landscape


def test_the_planted_number_stands_out_and_is_named():
    recording = wrapped(planted()).run([[3, 4], TEXT], read="blocks.*.resid_post")
    grid = massive_landscape(recording, example=1, layer=LAYER)
    assert grid.values.tolist() == recording[f"blocks.{LAYER}.resid_post"].example(1).tensor.tolist()
    assert np.argwhere(grid.masks["massive"]).tolist() == [[2, DIM]]
    assert grid.label("position")[2] == f"2 {TOKEN}"
    assert grid.diagnostics["massive"] == (f"2 {TOKEN} · dim {DIM}: 1800",)
    assert "1 massive numbers, the largest" in grid.title
    assert massive_landscape(recording, example=1, layer=0).masks["massive"].sum() == 0


def test_it_is_shown_as_mountains_with_the_planted_number_as_first_spike():
    widget = act.show(massive_landscape(wrapped(planted()).run([TEXT], read="blocks.*.resid_post"), layer=LAYER))
    assert type(widget).__name__ == "Landscape"
    assert widget._arrays["spikes"][0].tolist() == [2, DIM]
    widget.close()


def test_the_layer_with_most_is_taken():
    recording = wrapped(planted()).run([TEXT], read="blocks.*.resid_post")
    assert massive_landscape(recording).diagnostics["site"] != "blocks.0.resid_post"
    none = wrapped(planted(0.0)).run([TEXT], read="blocks.*.resid_post")
    assert "no massive number" in massive_landscape(none).title


def test_sizes_are_sizes():
    values = torch.tensor([[1.0, -2.0], [-300.0, 4.0]])
    stream = Activations(values, "row d_model", site="blocks.0.resid_post")
    assert massive_landscape(stream).values.tolist() == values.tolist()
    assert massive_landscape(stream, size=True).values.tolist() == values.abs().tolist()


def test_patches_too():
    model = act.wrap(*act.testing.tiny("vit"), certify=False)
    pictures = list(np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8))
    grid = massive_landscape(model.run(pictures, read="blocks.*.resid_post"), example=1)
    assert grid.label("position")[0] == "0 cls"


def test_what_cannot_be_shown_is_refused_with_words():
    stream = Activations(torch.ones(2, 2), "row d_model", site="blocks.0.resid_post")
    with pytest.raises(UnknownName, match="No layer called '4'"):
        massive_landscape(stream, layer=4)
    with pytest.raises(InputError, match="has no row table, so all of it is example 0; asked for 3"):
        massive_landscape(stream, example=3)
    with pytest.raises(NotFinite, match="1 NaN"):
        massive_landscape(Activations(torch.tensor([[float("nan"), 1.0]]), "row d_model", site="blocks.0.resid_post"))
