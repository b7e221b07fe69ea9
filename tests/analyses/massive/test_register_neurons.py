"""register_neurons: three neurons planted through weights are found, silenced and moved; registers at their mean; and "none"."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import results, testing
from activarium.analyses.massive.register_edits import at_random, moved, registers_at_mean
from activarium.edits import Set, Where
from activarium.errors import InputError

from .planted_vit import BORN, NEURONS, pictures, planted_vit

register_neurons = act.analyses.register_neurons


@pytest.fixture(scope="module", params=["vit", "dinov2_registers"])
def planted(request):
    model = act.wrap(*planted_vit(request.param), certify=False)
    images, cells = pictures(10)
    return model, images, cells, register_neurons(model, images, top_k=len(NEURONS))


def test_the_planted_neurons_and_no_other(planted):
    _, images, cells, report = planted
    neurons = report["neurons"]
    assert set(zip(neurons.columns["block"].tolist(), neurons.columns["neuron"].tolist(), strict=True)) == {(BORN, n) for n in NEURONS}
    assert report.diagnostics["high-norm patches"] == len(cells)
    assert report.diagnostics["looked up after block"] == BORN
    assert f"in {len(images) // 2} of {len(images)} pictures" in report.words[0]


def test_scores_by_hand(planted):
    model, images, cells, report = planted
    rec = model.run(images, read=f"blocks.{BORN}.mlp.post")
    values, rows = rec[f"blocks.{BORN}.mlp.post"].tensor.double(), rec.rows[""].frame()
    high = np.array([(e, y, x) in cells for e, y, x in zip(rows["example"], rows["y"], rows["x"], strict=True)])
    means = [values[torch.from_numpy(high & (rows["example"] == e).to_numpy())].abs().mean(0) for e in range(0, len(images), 2)]
    wanted = torch.stack(means).mean(0)
    assert report["neurons"].values == pytest.approx(wanted[report["neurons"].columns["neuron"].tolist()].numpy())


def test_silencing_them_takes_the_norms_away_and_random_ones_do_not(planted):
    _, images, cells, report = planted
    curves = report["layers"].curves
    percent = 100 * len(cells) / (16 * len(images))
    assert curves["unchanged"][BORN:] == pytest.approx([percent, percent])
    assert curves["silenced"][BORN:].tolist() == curves["moved"][BORN:].tolist() == [0, 0]
    for i in (1, 2, 3):
        assert curves[f"random {i}"][BORN:] == pytest.approx([percent, percent])
    effects = dict(zip(report["effects"].names, report["effects"].values, strict=True))
    assert effects["silenced"] > 5 * max(effects[f"random {i}"] for i in (1, 2, 3))


def test_moved_norms_stand_in_the_registers(planted):
    _, _, _, report = planted
    columns = {name: dict(zip(report["effects"].names, column, strict=True)) for name, column in report["effects"].columns.items()}
    assert columns["largest other norm, last block"]["moved"] > 300
    assert columns["largest other norm, last block"]["silenced"] < 100
    assert columns["largest patch norm, last block"]["moved"] < 100


@pytest.mark.parametrize(("family", "into"), [("vit", "cls"), ("dinov2_registers", "register")])
def test_the_largest_signed_value_is_what_moves(family: str, into: str):
    model = act.wrap(*testing.tiny(family), certify=False)
    inputs, neurons = model.inputs(testing.images(3)), (4, 9)
    flipped = [Set("blocks.0.mlp.post", -70.5, where=Where(features=(9,), positions=(-2,)))]  # the largest may be negative
    before = model.run(inputs, read="blocks.0.mlp.post", edits=flipped)
    after = model.run(inputs, read="blocks.0.mlp.post", edits=[*flipped, *moved("", {0: neurons}, into)(inputs)])
    rows = before.rows[""].frame()
    old, new = before["blocks.0.mlp.post"].tensor, after["blocks.0.mlp.post"].tensor
    others = [n for n in range(old.shape[1]) if n not in neurons]
    assert torch.equal(old[:, others], new[:, others])
    for e in range(3):
        patch = torch.tensor(((rows["example"] == e) & (rows["kind"] == "patch")).to_list())
        target = torch.tensor(((rows["example"] == e) & (rows["kind"] == into)).to_list())
        for n in neurons:
            values = old[patch, n]
            wanted = values[values.abs().argmax()]
            assert (new[target, n] == wanted).all() and (new[patch, n] == 0).all()
        assert new[target, 9].max() == -70.5


def test_registers_at_their_mean_is_nothing_for_one_picture_and_something_for_several():
    model = act.wrap(*testing.tiny("dinov2_registers"), certify=False)
    one = register_neurons(model, testing.images(1), threshold=0.1, controls=0)
    effects = dict(zip(one["effects"].names, one["effects"].values, strict=True))
    assert effects["registers at their mean"] == pytest.approx(0, abs=1e-9)
    assert effects["silenced"] > 1e-6
    several = register_neurons(model, testing.images(4), threshold=0.1, controls=0)
    assert dict(zip(several["effects"].names, several["effects"].values, strict=True))["registers at their mean"] > 1e-7


def test_registers_stand_at_their_own_mean_at_every_block():
    model = act.wrap(*testing.tiny("dinov2_registers"), certify=False)
    inputs = model.inputs(testing.images(4))
    sites = ["blocks.0.resid_pre", "blocks.1.resid_pre"]
    patches = register_patches(model, inputs)
    after = model.run(inputs, read=sites, edits=registers_at_mean(model, inputs, patches, False))
    plain = model.run(inputs, read=sites)
    rows = plain.rows[""].frame()
    assert sorted(set(rows["position"][rows["kind"] == "register"])) == [1, 2, 3]
    for site in sites:
        for position in (1, 2, 3):
            here = torch.tensor((rows["position"] == position).to_list())
            assert torch.allclose(after[site].tensor[here], plain[site].tensor[here].mean(0), atol=1e-6)


def register_patches(model, inputs):
    from activarium.analyses.massive.outlier_patches import find_patches

    return find_patches(model, inputs, 0.1, 0, False)


def test_random_sets_are_other_neurons_of_the_same_blocks():
    made = at_random({0: (1, 2), 2: (5,)}, 8, np.random.default_rng(0))
    assert {b: len(n) for b, n in made.items()} == {0: 2, 2: 1}
    assert not set(made[0]) & {1, 2} and 5 not in made[2]


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch, planted):
    model, images, _, report = planted
    monkeypatch.setattr("activarium.analyses.massive.batches.AT_ONCE", 3)
    again = register_neurons(model, images, top_k=len(NEURONS))
    assert again["neurons"].names == report["neurons"].names
    assert again["neurons"].values == pytest.approx(report["neurons"].values, rel=1e-5)
    assert results.identical(again["layers"], report["layers"])


def test_without_high_norm_patches_it_says_none():
    model = act.wrap(*testing.tiny("vit"), certify=False)
    report = register_neurons(model, testing.images(6))
    assert report.words == ("High-norm patches: none, so there are no register neurons to find.",)
    assert list(report) == ["layers"]


def test_two_towers_use_the_one_that_sees():
    model = act.wrap(*testing.tiny("clip"), certify=False)
    inputs = {"text": testing.texts(2), "images": testing.images(2)}
    report = register_neurons(model, inputs, threshold=0.1, top_k=2, layers=0, controls=1)
    assert all(name.startswith("vision.blocks.0.mlp.post") for name in report["neurons"].names)
    assert report["layers"].curves["unchanged"][0] == 100
    assert np.isfinite(report["effects"].values).all()


def test_what_cannot_be_asked_is_refused():
    model = act.wrap(*testing.tiny("vit"), certify=False)
    with pytest.raises(InputError, match="threshold=0 would call every patch high-norm"):
        register_neurons(model, testing.images(1), threshold=0)
    with pytest.raises(InputError, match="top_k=0, layers=None, controls=3: take at least one neuron"):
        register_neurons(model, testing.images(1), top_k=0)
    words = act.wrap(*testing.tiny("llama"), certify=False)
    with pytest.raises(InputError, match="has no rows of kind patch here, only bos, token. Give it pictures"):
        register_neurons(words, testing.texts(2))
