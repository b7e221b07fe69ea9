"""Strengths by KL: measured again, both signs, on one linear head by hand, and what cannot be met."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.analyses.matched_strength import TARGETS, matched_strength, steering_add
from activarium.dictionaries import SNMF, Origin, factorise
from activarium.edits import Where
from activarium.errors import InputError

SITE = "blocks.1.mlp.post"


def measured(model, texts, edit):
    """KL at each text's last row, once more and by itself."""
    found = []
    for text in texts:
        before, after = (model.run([text], read="logits", edits=e)["logits"].tensor[-1].double().log_softmax(0) for e in ([], [edit]))
        found.append(float((before.exp() * (before - after)).sum()))
    return float(np.mean(found))


@pytest.mark.parametrize("site", ["blocks.1.mlp.post", "blocks.0.mlp.out"])
def test_targets_are_met_on_a_tiny_model_with_both_signs(site):
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    texts = testing.texts(3)
    direction = torch.randn(model.sites[site].shape[-1], generator=torch.Generator().manual_seed(0))
    found = matched_strength(model, texts, direction, site, kl=(0.001, 0.005))
    assert [(f.sign, f.target) for f in found] == [(1, 0.001), (1, 0.005), (-1, 0.001), (-1, 0.005)]
    for one in found:
        assert one.met
        assert np.sign(one.strength) == one.sign
        edit = act.edits.Add(site, torch.nn.functional.normalize(direction, dim=0), one.strength)
        assert measured(model, texts, edit) == pytest.approx(one.target, rel=0.011)
    assert abs(found[1].strength) > abs(found[0].strength)


def test_published_targets_on_scribe_rise_with_the_strength():
    model = act.load("scribe")
    texts = ["The keys near the old door", "Anna gave"]
    rows = model.run(testing.texts(4), read=SITE)
    snmf = factorise(rows, SITE, features=3, share=0.05, steps=10, restarts=1, progress=False).snmf
    found = matched_strength(model, texts, snmf.directions[0], SITE)
    for sign in (1, -1):
        mine = [f for f in found if f.sign == sign and f.met]
        assert len(mine) >= 4
        assert (np.diff([abs(f.strength) for f in mine]) > 0).all()
        assert [f.target for f in mine] == list(TARGETS[: len(mine)])
        again = measured(model, texts, steering_add(snmf, 0, mine[-1].strength))
        assert again == pytest.approx(mine[-1].kl, rel=1e-3)


def test_what_is_not_reached_is_said():
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    found = matched_strength(model, testing.texts(1), torch.arange(32.0).sin(), "blocks.0.mlp.out", kl=(1e-4, 50.0), signs=(1,))
    assert found[0].met
    assert not found[1].met
    assert np.isnan(found[1].strength)
    assert "KL 50 is not reached: the largest seen is" in found[1].words
    nowhere = matched_strength(
        model, testing.texts(1), torch.ones(32), "blocks.0.mlp.out", kl=0.1, signs=(1,), where=Where(positions=(99,))
    )
    assert not nowhere[0].met
    assert nowhere[0].kl == 0


def test_images_are_steered_too():
    model = act.wrap(*testing.tiny("vit"), certify=False)
    found = matched_strength(model, testing.images(2), torch.ones(32), "blocks.0.mlp.out", kl=1e-3, signs=(-1,))
    assert found[0].met == (abs(found[0].kl - 1e-3) <= 1e-5)


def test_a_feature_becomes_an_edit_of_its_site():
    snmf = SNMF(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), Origin(site=SITE))
    edit = steering_add(snmf, 0, 2.0)
    assert (edit.site, edit.strength) == (SITE, 2.0)
    assert edit.vector.tolist() == pytest.approx([0.6, 0.8])
    assert steering_add(snmf.directions, 0, 1.0, site="blocks.1.mlp.out").site == "blocks.1.mlp.out"
    with pytest.raises(InputError, match=r"Feature 1 has a direction of length 0: it is dead"):
        steering_add(snmf, 1, 1.0)
    with pytest.raises(InputError, match=r"There is no feature 7; there are 2"):
        steering_add(snmf, 7, 1.0)
    with pytest.raises(InputError, match=r"At which site\?"):
        steering_add(snmf.directions, 0, 1.0)


def test_what_cannot_be_searched_is_refused():
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    with pytest.raises(InputError, match=r"length 0: nothing points anywhere"):
        matched_strength(model, ["the cat"], torch.zeros(32), "blocks.0.mlp.out")
    with pytest.raises(InputError, match=r"direction has 5 numbers; blocks.0.mlp.out has 32"):
        matched_strength(model, ["the cat"], torch.ones(5), "blocks.0.mlp.out")
    with pytest.raises(InputError, match=r"targets are above 0 nats"):
        matched_strength(model, ["the cat"], torch.ones(32), "blocks.0.mlp.out", kl=0.0)
