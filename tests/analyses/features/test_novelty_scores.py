"""novelty_scores: every score by hand or against a library, planted strangers found, lots drawn found to be nothing."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.analyses.features import novelty, separation
from activarium.analyses.features.example_codes import example_codes
from activarium.errors import InputError
from activarium.recording import Recording

from .planted_classes import SITE, atoms, dictionary, recording

novelty_scores = act.analyses.novelty_scores
RANDOM = np.random.default_rng(4)


def test_auroc_by_hand_and_as_sklearn_has_it():
    from sklearn.metrics import roc_auc_score

    assert separation.auroc(np.array([1.0, 2, 3]), np.array([2.0, 4])) == 4.5 / 6
    known, outside = RANDOM.integers(9, size=40), RANDOM.integers(3, 12, size=30)
    truth = np.r_[np.zeros(40), np.ones(30)]
    assert separation.auroc(known, outside) == pytest.approx(roc_auc_score(truth, np.r_[known, outside]), abs=1e-12)


def test_false_positives_by_hand():
    known = np.arange(1.0, 21)  # 19 of 20 are accepted at 19
    assert separation.false_positive_rate(known, np.array([18.5, 19, 19.5, 30])) == 0.5


def test_draws_are_what_a_plain_loop_finds():
    known, outside = RANDOM.normal(size=15), RANDOM.normal(size=11) + 0.5
    draws = separation.Draws.of(15, 11, 20, seed=3)
    for found, plain in ((separation.auroc_draws, separation.auroc), (separation.false_positive_draws, separation.false_positive_rate)):
        expected = [plain(known[a], outside[b]) for a, b in zip(draws.known, draws.outside, strict=True)]
        assert found(known, outside, draws) == pytest.approx(np.array(expected))


def test_lots_lie_around_one_half_with_the_known_spread():
    drawn = separation.shuffled_auroc(np.arange(30.0), 100 + np.arange(20.0), 2000, seed=0)
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.std() == pytest.approx(np.sqrt((30 + 20 + 1) / (12 * 30 * 20)), rel=0.05)  # Mann and Whitney's variance


@pytest.mark.parametrize(("count", "width"), [(60, 5), (12, 30)])
def test_mahalanobis_is_that_of_the_shrunk_covariance(count, width):
    from sklearn.covariance import ledoit_wolf

    classes = np.arange(count) % 3
    values = RANDOM.normal(size=(count, width)) * np.linspace(0.1, 3, width) + classes[:, None]
    seen = novelty.Seen(values, classes)
    covariance, weight = ledoit_wolf(values - seen.means()[classes], assume_centered=True)
    centred = values - seen.means()[classes]
    assert novelty.shrinkage(centred, np.linalg.svd(centred, compute_uv=False) ** 2 / count)[0] == pytest.approx(weight)
    asked = RANDOM.normal(size=(7, width))
    apart = asked[:, None] - seen.means()[None]
    expected = np.einsum("ncd,de,nce->nc", apart, np.linalg.inv(covariance), apart).min(1)
    assert novelty.mahalanobis(seen, asked) == pytest.approx(expected)


def test_neighbours_ranks_and_logits_by_hand():
    from scipy.stats import spearmanr

    seen = novelty.Seen(np.array([[2.0, 0, 0], [0, 3, 0], [1, 0, 0], [0, 1, 1]]), np.array([0, 1, 0, 1]))
    assert novelty.nearest(seen, np.array([[5.0, 0, 0]]), 3) == pytest.approx([2**0.5])  # two lie on it, the third a quarter turn away
    asked = np.array([[3.0, 0, 1], [0, 0, 2]])
    plain = [-spearmanr(a, seen.means()[c]).statistic for a, c in zip(asked, (0, 1), strict=True)]
    assert novelty.profile_spearman(seen, asked, np.array([0, 1])) == pytest.approx(plain)
    logits = np.log(np.array([[1.0, 3.0]]))
    assert novelty.maximum_probability(logits) == pytest.approx([-0.75])
    assert novelty.energy(logits) == pytest.approx([-np.log(4)])


def test_mean_codes_are_the_plain_mean():
    directions = atoms(12, 8)
    rec = recording(np.full((6, 12), 0.2), directions, rows=5)
    made = example_codes(dictionary(directions), rec)
    x = rec[SITE].tensor
    assert made.spaces["codes"] == pytest.approx(dictionary(directions).encode(x).double().reshape(6, 5, 12).mean(1).numpy(), abs=1e-6)
    assert made.spaces["activations"] == pytest.approx(x.double().reshape(6, 5, 8).mean(1).numpy(), abs=1e-6)
    assert made.diagnostics["random codes per row"] == pytest.approx(made.diagnostics["codes per row"], abs=1.0)


def planted(strangers: bool = True):
    """Four known classes with two atoms each of their own; strangers have atoms that no known class has, or are of class 0."""
    directions = atoms(16, 12)
    rates = np.full((160, 16), 0.05)
    for e in range(160):
        known = e % 4 if e < 120 or not strangers else 4 + e % 2
        rates[e, 2 * known : 2 * known + 2] = 0.7
    return directions, recording(rates, directions, rows=6), [f"class {e % 4}" for e in range(160)], np.arange(160) >= 120


def test_planted_strangers_are_found():
    directions, rec, labels, outside = planted()
    report = novelty_scores(dictionary(directions), rec, labels, outside)
    grid = report["separation"]
    assert grid.values[2:, 0].min() > 0.93  # Mahalanobis, neighbours, profile on codes
    assert np.isnan(grid.values[:, 3]).all()  # no classifier was read
    table = report["table"].to_frame().set_index("name")
    assert (table["low"] <= table["AUROC"] + 1e-9).all() and (table["AUROC"] <= table["high"] + 1e-9).all()
    assert table.loc["nearest neighbour, codes", "FPR95"] < 0.3
    assert report["gain"].values[0] == grid.values[0, 0] - grid.values[0, 1]


def test_without_a_difference_nothing_is_found():
    directions, rec, labels, outside = planted(strangers=False)
    report = novelty_scores(dictionary(directions), rec, labels, outside)
    assert np.nanmean(report["separation"].values) == pytest.approx(0.5, abs=0.08)
    table = report["table"].to_frame()
    inside = (table["by lot low"] <= table["AUROC"]) & (table["AUROC"] <= table["by lot high"])
    assert inside.mean() > 0.6


def test_labels_of_strangers_are_not_looked_at_and_examples_tested_were_not_seen():
    directions, rec, labels, outside = planted()
    first = novelty_scores(dictionary(directions), rec, labels, outside, resamples=20)
    other = [v if e < 120 else "anything" for e, v in enumerate(labels)]
    assert act.results.identical(
        first["separation"], novelty_scores(dictionary(directions), rec, other, outside, resamples=20)["separation"]
    )
    assert first.diagnostics["seen"] == 60 and first.diagnostics["tested known"] == 60 and first.diagnostics["outside"] == 40


def test_a_classifiers_answers_stand_beside():
    directions, rec, labels, outside = planted()
    logits = torch.zeros(160, 4)
    logits[torch.arange(160), torch.arange(160) % 4] = torch.where(torch.tensor(outside), 0.5, 5.0)
    both = Recording({SITE: rec[SITE], "logits": Activations(logits, "example class", site="logits")}, rec.rows)
    grid = novelty_scores(dictionary(directions), both, labels, outside, resamples=20)["separation"]
    assert grid.values[0, 3] == grid.values[1, 3] == 1.0
    assert np.isnan(grid.values[2:, 3]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outside": [False] * 160}, "0 of 160 examples are outside"),
        ({"labels": ["one"] * 160}, "all of class 'one'"),
        ({"labels": ["a", "b"]}, "give one for each example"),
        ({"labels": ["rare", "rare", *["a", "b"] * 79]}, "'rare' has 2 known examples"),
        ({"neighbours": 99}, "Give a rank from 1 to 60"),
    ],
)
def test_what_cannot_be_scored_is_refused(changes, words):
    directions, rec, labels, outside = planted()
    given = {"labels": labels, "outside": outside} | changes
    with pytest.raises(InputError, match=words):
        novelty_scores(dictionary(directions), rec, **given)


def test_one_example_alone_is_refused():
    directions = atoms(4, 4)
    with pytest.raises(InputError, match="Record several"):
        novelty_scores(dictionary(directions), recording(np.ones((1, 4)), directions), ["a"], [True])
