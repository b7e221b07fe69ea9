"""Features of a dictionary as nodes: the parts of a row, with the error, are patched and scored like heads are."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Replace
from activarium.errors import InputError

SITE, WIDTH, COUNT = "blocks.1.resid_post", 32, 40


class Relu:
    """A dictionary with random directions, in float64."""

    def __init__(self, seed=0):
        made = torch.Generator().manual_seed(seed)
        self.into = torch.randn(WIDTH, COUNT, generator=made, dtype=torch.float64) / 6
        self.out = torch.randn(COUNT, WIDTH, generator=made, dtype=torch.float64) / 6
        self.bias = torch.randn(WIDTH, generator=made, dtype=torch.float64)

    def encode(self, x):
        return (x.double() @ self.into + 0.1).relu()

    def decode(self, feature_acts):
        return feature_acts @ self.out + self.bias


class Identity:
    def encode(self, x):
        return x

    def decode(self, feature_acts):
        return feature_acts


@pytest.fixture(scope="module")
def case():
    net, tokenizer = testing.tiny("gpt2")
    model = act.wrap(net.double(), tokenizer, certify=False)
    clean, corrupt = ["Anna saw the cat now", "the dog saw Tom"], ["Tom saw the cat now", "the dog saw Anna"]
    return model, act.pairs(model, clean, corrupt, answers=["Anna", "Tom"], foils=["Tom", "Anna"])


def test_exact_patches_of_features_are_those_of_a_hook(case):
    model, pairs = case
    dictionary, wanted = Relu(), [3, 17, COUNT]
    grid = act.analyses.activation_patching(model, pairs, act.Features(SITE, dictionary, [3, 17]))
    assert grid.axes == ("layer", "position", "feature") and grid.label("feature") == ["3", "17", "error"]
    base, source = (model.run(side, read=SITE)[SITE].tensor for side in (pairs.corrupt, pairs.clean))
    codes, other = dictionary.encode(base), dictionary.encode(source)
    start, before = 0, model.run(pairs.corrupt, metrics=pairs.metric).metric["logit_difference"]
    for example, length in enumerate(pairs.clean.lengths):
        for position in range(length):
            for node, feature in enumerate(wanted):
                row, values = start + position, base.clone()
                if feature < COUNT:
                    values[row] += (other[row, feature] - codes[row, feature]) * dictionary.out[feature]
                else:
                    values[row] += (source[row] - dictionary.decode(other)[row]) - (base[row] - dictionary.decode(codes)[row])
                edit = Replace(SITE, lambda _, v=values: v)
                after = model.run(pairs.corrupt, edits=[edit], metrics=pairs.metric).metric["logit_difference"]
                found = grid.per_example[example, 0, position, node]
                assert found == pytest.approx(float(after[example] - before[example]), abs=1e-9)
        start += length


@pytest.mark.parametrize("method", ["attribution_patching", "attribution_patching_star", "relevance_patching", "integrated_patching"])
def test_scores_of_features_and_error_add_up_to_the_row(case, method):
    model, pairs = case
    score = getattr(act.analyses, method)
    parts, whole = score(model, pairs, act.Features(SITE, Relu())), score(model, pairs, SITE)
    assert np.abs(parts.values.sum(-1) - whole.values).max() < 1e-9 * np.abs(whole.values).max()


def test_the_identity_is_the_site_itself_without_an_error(case):
    model, pairs = case
    features = act.Features("blocks.1.mlp.post", Identity())
    for score in (act.analyses.attribution_patching, act.analyses.activation_patching):
        parts, units = score(model, pairs, features), score(model, pairs, "blocks.1.mlp.post", units="all")
        assert np.allclose(parts.values[..., :-1], units.values, rtol=0, atol=1e-12)
        # A node that changes nothing is measured in a forward of another batch shape, whose last bits differ on some processors.
        assert np.abs(parts.values[..., -1]).max() < 1e-13


def test_a_check_and_a_click_need_the_features(case):
    model, pairs = case
    features = act.Features(SITE, Relu(), range(4))
    grid = act.analyses.attribution_patching(model, pairs, features)
    with pytest.raises(InputError, match=r"This grid is of features of blocks.1.resid_post. Give nodes="):
        act.against_exact(grid, model, pairs)
    exact = act.analyses.activation_patching(model, pairs, features)
    checked = act.against_exact(grid, model, pairs, nodes=features).check
    assert sorted(checked.columns["exact"]) == pytest.approx(sorted(exact.values[np.isfinite(exact.values)]), abs=1e-9)
    explorer = act.explore(grid, model, pairs, nodes=features)
    assert explorer.measure({"layer": 0, "position": 4, "feature": 2}) == pytest.approx(exact.values[0, 4, 2], abs=1e-9)


def test_the_best_rules_for_features_are_chosen_on_exact_patches_of_features(case):
    model, pairs = case
    grid = act.analyses.relevance_patching(model, pairs, act.Features(SITE, Relu(), range(4)), rules="auto")
    assert grid.diagnostics["chosen"] in grid.diagnostics["compared"] and grid.check.diagnostics["cells"] >= 20


def test_features_that_do_not_fit_are_refused(case):
    model, pairs = case
    score = act.analyses.attribution_patching
    with pytest.raises(InputError, match=r"has features 0 to 39; features= gives \[40\]"):
        score(model, pairs, act.Features(SITE, Relu(), [40]))
    with pytest.raises(InputError, match="choose them with Features"):
        score(model, pairs, act.Features(SITE, Relu()), units="all")
    with pytest.raises(InputError, match="of sites without heads"):
        score(model, pairs, act.Features("blocks.1.attn.z", Identity()))
    with pytest.raises(InputError, match="paths start at heads or whole rows"):
        act.analyses.path_patching(model, pairs, senders=act.Features(SITE, Relu()), receivers={"blocks.2.mlp.in": None})
