"""Edits through dictionaries: planted attributes are the true counterfactual, greedy is brute force, F1 never sees the pair that is edited."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features.feature_edits import Aware, Coded, highest
from activarium.analyses.features.value_firing import Firing
from activarium.dictionaries import FeatureDictionary, Origin, SupervisedDictionary, controls
from activarium.dictionaries.design import Design
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError

from . import planted_pairs as planted

SITE = Origin(site=planted.SITE)


@dataclass(eq=False)
class Plain(FeatureDictionary):
    """A supervised dictionary that hides what it is made of, so that it is edited by features."""

    inner: SupervisedDictionary

    def __post_init__(self):
        self.origin = self.inner.origin

    d_in = property(lambda self: self.inner.d_in)
    directions = property(lambda self: self.inner.directions)

    def encode(self, x, features=None):
        return self.inner.encode(x, features)

    def decode(self, feature_acts):
        return self.inner.decode(feature_acts)


def supervised_of(pairs, known):
    values = planted.model().run(pairs.clean, read="embed")["embed"].tensor
    rows = values[torch.as_tensor(np.arange(len(pairs)) * 6 + pairs.places["HERE"])]
    return SupervisedDictionary.of_rows(rows, known, origin=SITE)


@pytest.mark.parametrize("change", [("token",), ("position",), ("token", "position")])
def test_edits_of_planted_attributes_are_the_true_counterfactual(change):
    """What stands at an embedding is the sum of its token and its position, so an edit of either is exact."""
    pairs, known, wanted = planted.planted_pairs(("token",))
    if change != ("token",):  # positions move the row: compare rows, not runs
        made = supervised_of(pairs, known)
        cells = {(t, p): i for i, (t, p) in enumerate(zip(known["token"], known["position"], strict=True))}
        wanted = {a: (v[1:] + v[:1] if a in change else v) for a, v in known.items()}
        rows = made.decode(made.of_values(known))
        true = rows[[cells[key] for key in zip(wanted["token"], wanted["position"], strict=True)]]
        assert (made.edit(rows, known, wanted) - true).abs().max() < 1e-5
        return
    report = act.analyses.dictionary_control(
        planted.model(), pairs, {"known": supervised_of(pairs, known)}, known, wanted, "HERE", counts=[1, 2]
    )
    assert report["accuracy"].curves["known swap"].tolist() == [1, 1]
    assert report["distance"].curves["known swap"].max() < 1e-5
    assert report["distance"].curves["no edit"].tolist() == [1, 1]
    assert report.diagnostics["edited"] == {"token": 15, "position": 0}
    matters = report.diagnostics["pairs in which it matters"]["no edit"]
    assert 0 < matters <= 15
    assert report["where it matters"].curves["no edit"].tolist() == [0, 0]
    assert report["accuracy"].curves["no edit"][0] == pytest.approx(1 - matters / 15)


def test_features_that_mean_the_values_are_found_and_edited():
    pairs, known, wanted = planted.planted_pairs()
    plain = Plain(supervised_of(pairs, known))
    exact = controls.identity(32, SITE)
    report = act.analyses.dictionary_control(
        planted.model(), pairs, {"plain": plain, "same": exact}, known, wanted, "HERE", counts=[1, 2, 64]
    )
    distance = report["distance"].curves
    assert distance["plain aware"].max() < 1e-5, "one feature goes and one comes"
    assert distance["plain greedy"][1:].max() < 1e-5
    assert distance["plain greedy"][0] > 0.1, "one change is half of it"
    assert distance["same greedy"][-1] < 1e-5
    assert (np.diff(distance["same greedy"]) < 0).all()
    assert report["accuracy"].curves["same greedy"][-1] == 1
    made = plain.inner
    codes = made.of_values(known)
    whole = codes @ made.directions
    token = codes[:, made.span("token")] @ made.directions[made.span("token")]
    by_hand = ((token * whole).sum(1) / whole.square().sum(1)).mean()
    assert report["magnitude"].curves["plain aware"][0] == pytest.approx(float(by_hand), rel=1e-4)


def coded(features=6, width=4, orthogonal=False, seed=0):
    random = torch.Generator().manual_seed(seed)
    written = torch.eye(width) * (1 + torch.arange(width)) if orthogonal else torch.randn(features, width, generator=random)
    count = len(written)
    design = Design(width, count)
    weights = {
        "encoder": torch.zeros(count, width),
        "W_dec": written,
        "b_enc": torch.zeros(count),
        "b_dec": torch.randn(width, generator=random),
    }
    codes, other = torch.rand(2, 5, count, generator=random)
    x, to = torch.randn(2, 5, width, generator=random)
    return Coded(SAE.of_weights(design, weights), x, to, codes, other)


def gap(c, pair, features):
    return float((c.edited(pair, features) - c.other[pair]).norm())


@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_brute_force_where_features_do_not_meet_and_at_every_step(seed):
    c = coded(orthogonal=True, seed=seed)
    for pair, most in itertools.product(range(5), (1, 2, 3)):
        sets = [s for n in range(most + 1) for s in itertools.combinations(range(4), n)]
        assert gap(c, pair, c.greedy(pair, most)) == pytest.approx(min(gap(c, pair, s) for s in sets), abs=1e-5)
    c = coded(seed=seed)
    for pair in range(5):
        taken = c.greedy(pair, 6)
        for n in range(len(taken) + 1):
            left = [i for i in range(6) if i not in taken[:n]]
            options = {i: gap(c, pair, [*taken[:n], i]) for i in left}
            here = gap(c, pair, taken[:n])
            if n == len(taken):
                assert not options or min(options.values()) >= here - 1e-6
            else:
                assert options[taken[n]] == pytest.approx(min(options.values()), abs=1e-6) and options[taken[n]] < here


def test_weights_add_up_to_one_and_are_zero_where_nothing_is_written():
    c = coded()
    for pair in range(5):
        assert float(c.weights(pair).sum()) == pytest.approx(1, abs=1e-5)
        written = c.dictionary.decode(c.codes)[pair] - c.dictionary.b_dec
        by_hand = [float(c.codes[pair, i] * c.dictionary.W_dec[i] @ written / written.square().sum()) for i in range(6)]
        assert c.weights(pair).tolist() == pytest.approx(by_hand, abs=1e-5)
    silent = Coded(c.dictionary, c.x, c.other, torch.zeros_like(c.codes), c.other_codes)
    assert silent.weights(0).tolist() == [0] * 6


def test_what_a_code_adds_is_what_the_decoder_adds():
    """This decoder normalises its directions, so they are not what a code of 1 adds."""
    design = Design(4, 6, kind="topk", k=6, ranks_by_norm=True)
    sae = SAE(design, seed=1)
    weights = {n: p.detach() * (3 if n == "W_dec" else 1) for n, p in sae.named_parameters()}
    c = Coded.of(SAE.of_weights(design, weights), torch.randn(3, 4), torch.randn(3, 4))
    used = ((c.codes != 0) | (c.other_codes != 0)).any(0)
    assert torch.allclose(c.writes[used].norm(dim=1), torch.ones(int(used.sum())))


def test_scores_never_see_the_pair_that_is_edited():
    known = {"who": [f"v{i}" for i in range(10)]}  # every value is in one pair alone
    c = coded()
    codes = torch.eye(10)
    alone = Coded(c.dictionary, torch.zeros(10, 4), torch.zeros(10, 4), codes, torch.zeros(10, 10))
    made = Aware(alone, known, {"who": ["other"] * 10}, np.arange(10) % 5)
    assert made.chosen(3) == [[]] * 10


def test_firing_by_hand():
    active = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]], dtype=bool)
    made = Firing.of(active, ["a", "a", "b", "b"])
    assert made.precision.tolist() == [[2 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 0]]
    assert made.recall.tolist() == [[1, 1 / 2, 0], [1 / 2, 1 / 2, 0]]
    assert made.f1.tolist() == [[0.8, 0.5, 0], [0.4, 0.5, 0]]
    rest = made - Firing.of(active[:1], ["a"], ["a", "b"])
    assert rest.f1.tolist() == Firing.of(active[1:], ["a", "b", "b"]).f1.tolist()


def test_highest_takes_active_ones_and_the_lower_of_equals():
    scores, active = np.array([0.5, 0.9, 0.5, 0.9, 0.0]), np.array([True, False, True, True, True])
    assert highest(scores, active, 2) == [3, 0]
    assert highest(scores, active, 9) == [3, 0, 2]


def test_what_is_wrong_is_said():
    pairs, known, wanted = planted.planted_pairs()
    ask, model, same = act.analyses.dictionary_control, planted.model(), controls.identity(32, SITE)
    with pytest.raises(InputError, match="give the same attributes for both"):
        ask(model, pairs, {"same": same}, known, {"token": wanted["token"]}, "HERE")
    with pytest.raises(InputError, match="No attribute differs"):
        ask(model, pairs, {"same": same}, known, known, "HERE")
    with pytest.raises(InputError, match=r"counts=\[0\]"):
        ask(model, pairs, {"same": same}, known, wanted, "HERE", counts=[0])
    made = supervised_of(pairs, known)
    with pytest.raises(InputError, match="'made' needs attribute 'position'"):
        ask(model, pairs, {"made": made}, {"token": known["token"]}, {"token": wanted["token"]}, "HERE")
    with pytest.raises(InputError, match="mixes supervised and other"):
        ask(model, pairs, {"both": [made, controls.identity(32, Origin(site="blocks.1.resid_post"))]}, known, wanted, "HERE")
    scaled = SAE(Design(32, 8, scaling="layer_norm"), SITE)
    with pytest.raises(InputError, match="'scaled' rescales each row"):
        ask(model, pairs, {"scaled": scaled}, known, wanted, "HERE")
