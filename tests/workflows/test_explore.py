"""Exploring a grid: what a click answers is what activation patching gives for that cell."""

import pytest

import activarium as act
from activarium import testing
from activarium.errors import InputError


@pytest.fixture(scope="module")
def case():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    clean, corrupt = ["Anna saw the cat now", "the dog saw Tom"], ["Tom saw the cat now", "the dog saw Anna"]
    return model, act.pairs(model, clean, corrupt, answers=["Anna", "Tom"], foils=["Tom", "Anna"])


@pytest.mark.parametrize(("nodes", "options"), [("blocks.*.attn.z", {}), ("blocks.*.mlp.post", {"units": [3, 40], "positions": [-1, -2]})])
def test_a_click_is_an_exact_patch(case, nodes, options):
    model, pairs = case
    for direction in ("denoise", "noise"):
        grid = act.analyses.attribution_patching(model, pairs, nodes, direction=direction, normalise=True, **options)
        exact = act.analyses.activation_patching(model, pairs, nodes, direction=direction, normalise=True, reuse=False, **options)
        explorer = act.explore(grid, model, pairs)
        for place in ((0, 0, 1), (1, 1, 0)):
            cell = dict(zip(grid.axes, place, strict=True))
            assert explorer.measure(cell) == pytest.approx(exact.values[place], abs=1e-5)
            assert explorer.points[-1]["approximate"] == pytest.approx(grid.values[place])


def test_other_pairs_are_refused(case):
    model, pairs = case
    grid = act.analyses.attribution_patching(model, pairs, "blocks.*.mlp.out")
    with pytest.raises(InputError, match="made from 2 pairs by 'logit_difference'; these are 1 pairs"):
        act.explore(grid, model, pairs.select([0])).measure({"layer": 0, "position": 4})
    stranger = grid.with_(diagnostics={})
    with pytest.raises(InputError, match="it was not made by patching nodes"):
        act.explore(stranger, model, pairs).measure({"layer": 0, "position": 4})
