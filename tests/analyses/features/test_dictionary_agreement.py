"""Agreement of dictionaries: cosines by hand, planted permutations, matching against brute force, controls and refusals."""

from itertools import permutations

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses import dictionary_agreement
from activarium.analyses.features import twins as twins_of
from activarium.analyses.features.twins import twins
from activarium.dictionaries import SAE, Design, Origin, Recipe, train
from activarium.errors import InputError

SITE = "blocks.0.resid_post"


def made(directions, site=SITE):
    directions = torch.as_tensor(directions, dtype=torch.float32)
    features, width = directions.shape
    weights = {"encoder": directions.clone(), "W_dec": directions, "b_enc": torch.zeros(features), "b_dec": torch.zeros(width)}
    return SAE.of_weights(Design(width, features), weights, Origin(site=site))


def drawn(features, width, seed):
    return torch.randn(features, width, generator=torch.Generator().manual_seed(seed))


def test_by_hand_and_both_ways():
    # The second has the first's x twice (of other lengths) and nothing near y; opposite directions are no twins.
    report = dictionary_agreement(made([[1.0, 0.0], [0.0, 1.0]]), made([[2.0, 0.0], [3.0, 4.0], [0.0, -1.0]]))
    table = report["agreement"].to_frame().iloc[0]
    assert table["first in second"] == pytest.approx((1 + 0.8) / 2)
    assert table["second in first"] == pytest.approx((1 + 0.8 + 0) / 3)
    assert table["matched cosine"] == pytest.approx((1 + 0.8) / 2)
    assert table["twins > 0.7, first"] == 1 and table["twins > 0.9, first"] == 0.5
    assert table["twins > 0.7, second"] == pytest.approx(2 / 3) and table["twins > 0.9, second"] == pytest.approx(1 / 3)
    assert report["likeness"].values == pytest.approx(np.array([[1, 0.9], [0.6, 1]]))
    assert report["features"].names == ("0 – 0", "1 – 1")


def test_a_matching_takes_each_feature_once_where_the_largest_cosine_does_not():
    same = made([[1.0, 0.0], [1.0, 0.1]])
    table = dictionary_agreement(same, made([[1.0, 0.0], [0.0, 1.0]]))["agreement"].to_frame().iloc[0]
    lean = 0.1 / 1.01**0.5
    assert table["first in second"] == pytest.approx((1 + 1 / 1.01**0.5) / 2)
    assert table["matched cosine"] == pytest.approx((1 + lean) / 2)


def test_the_matching_is_the_best_of_all():
    a, b = drawn(6, 4, 1), drawn(6, 4, 2)
    likeness = (torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T).double().numpy()
    best = max(np.mean([likeness[i, p[i]] for i in range(6)]) for p in permutations(range(6)))
    assert twins(a, b).cosines.mean() == pytest.approx(best, abs=1e-6)


def test_a_permutation_of_lengths_and_order_is_found_whole():
    a, order = drawn(200, 32, 1), torch.randperm(200, generator=torch.Generator().manual_seed(0))
    report = dictionary_agreement(made(a), made(a[order] * torch.linspace(0.1, 9, 200)[:, None]))
    table = report["agreement"].to_frame().iloc[0]
    assert table["matched cosine"] == pytest.approx(1, abs=1e-6)
    assert table["random, matched"] < 0.6 and table["shuffled, matched"] < 0.6
    pairs = report["features"]
    assert (order.numpy()[pairs.columns["second"]] == pairs.columns["first"]).all()


def test_the_order_of_the_two_turns_the_table_around():
    a, b = made(drawn(20, 8, 1)), made(drawn(30, 8, 2))
    there, back = (dictionary_agreement(*pair)["agreement"].to_frame().iloc[0] for pair in ((a, b), (b, a)))
    assert there["matched cosine"] == pytest.approx(back["matched cosine"])
    assert there["first in second"] == pytest.approx(back["second in first"])
    assert there["first in second low"] < there["first in second"] < there["first in second high"]


def test_random_dictionaries_agree_as_much_as_their_control():
    report = dictionary_agreement(made(drawn(300, 40, 1)), made(drawn(300, 40, 2)))
    table = report["agreement"].to_frame().iloc[0]
    for name in ("matched", "first in second"):
        of = "matched cosine" if name == "matched" else name
        assert table[of] == pytest.approx(table[f"random, {name}"], abs=0.02)
    assert sum(report["distribution"].curves["first in second"]) == pytest.approx(1)


def test_random_directions_are_none_that_dictionaries_begin_with():
    for seed in (0, 1):
        begun = SAE(Design(40, 300), seed=seed)
        table = dictionary_agreement(begun, begun, seed=seed)["agreement"].to_frame().iloc[0]
        assert table["matched cosine"] == pytest.approx(1)
        assert table["random, first in second"] < 0.6


def test_directions_that_share_a_large_part_agree_with_shuffled_ones_too():
    shared = 3 * torch.ones(16)
    table = dictionary_agreement(made(drawn(50, 16, 1) + shared), made(drawn(50, 16, 2) + shared))["agreement"].to_frame().iloc[0]
    assert table["matched cosine"] > 0.9
    assert table["random, matched"] < 0.7
    assert table["shuffled, matched"] == pytest.approx(table["matched cosine"], abs=0.02)


def test_features_that_never_fire_are_left_out_and_numbers_stay():
    same = drawn(12, 6, 1)
    a, b = same.clone(), drawn(12, 6, 2)
    b[:6] = same[:6]  # twins, but they never fire
    rows = act.testing.recording_of({SITE: torch.nn.functional.normalize(a[6:], dim=1) * 5})

    def high(directions):
        sae = made(directions)
        bias = torch.full((12,), 1.0)
        bias[:6] = -1e6
        weights = dict(sae.named_parameters()) | {"b_enc": bias}
        return SAE.of_weights(sae.design, weights, sae.origin)

    whole, alive = (dictionary_agreement(high(a), high(b), recording=r) for r in (None, rows))
    assert whole["agreement"].to_frame().iloc[0]["twins > 0.9, first"] >= 0.5
    assert alive["agreement"].to_frame().iloc[0]["twins > 0.9, first"] < 0.5
    assert alive.diagnostics["never fire"] == {"first": 6, "second": 6}
    assert min(alive["features"].columns["first"]) >= 6
    assert any("give recording=" in w for w in whole.words) and not any("give recording=" in w for w in alive.words)


@pytest.mark.slow
def test_three_seeds_of_one_recipe_find_planted_atoms_again():
    atoms, rows, _ = act.testing.planted_rows(20_000, width=32, atoms=40, active=3)
    data = act.testing.recording_of({SITE: rows})
    recipes = [Recipe(40, k=3, learning_rate=5e-3, seed=seed) for seed in (0, 1, 2)]
    seeds = [one.sae for one in train(data, SITE, recipes, batch=256, steps=300, progress=False)]
    report = dictionary_agreement(*seeds[:2], more=seeds[2:], names=["a", "b", "c"], recording=data)
    assert report["agreement"].values.min() > 0.8
    assert report["agreement"].columns["random, matched"].max() < 0.55
    assert len(report["agreement"].names) == 3 and "Stability over 3 dictionaries" in report.words[-1]
    true = dictionary_agreement(made(atoms), seeds[0])["agreement"].to_frame().iloc[0]
    assert true["first in second"] > 0.85
    matched = twins(seeds[0].directions, seeds[1].directions)
    assert report["features"].values.mean() == pytest.approx(matched.cosines.mean())


def test_too_many_to_match_are_compared_one_by_one(monkeypatch):
    a, b = made(drawn(30, 8, 1)), made(drawn(20, 8, 2))
    small = dictionary_agreement(a, b)
    monkeypatch.setattr(twins_of, "LARGEST", 100)
    monkeypatch.setattr(twins_of, "BLOCK", 7)
    large = dictionary_agreement(a, b)
    assert np.isnan(large["agreement"].values[0]) and "too many features to match" in large.words[0]
    for name in ("first in second", "second in first"):
        assert large["agreement"].columns[name] == pytest.approx(small["agreement"].columns[name])
    assert large["features"].columns["second"][0] == twins(a.directions, b.directions).nearest[large["features"].columns["first"][0]]


def test_refusals():
    a = made(drawn(4, 3, 0))
    with pytest.raises(InputError, match="different widths have no cosine: first 3, second 5"):
        dictionary_agreement(a, made(drawn(4, 5, 0)))
    with pytest.raises(InputError, match="2 dictionaries need as many different names; got x, x"):
        dictionary_agreement(a, a, names=["x", "x"])
    silent = made(-torch.ones(2, 3))
    with pytest.raises(InputError, match="No feature of second fires in this recording"):
        dictionary_agreement(a, silent, recording=act.testing.recording_of({SITE: torch.ones(4, 3)}))
    with pytest.raises(InputError, match="is no dictionary known here"):
        dictionary_agreement(a, 3)
    assert "different sites" in dictionary_agreement(a, made(drawn(4, 3, 1), "blocks.1.resid_post")).words[-1]
