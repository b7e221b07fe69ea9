"""Sparse probing: a planted feature tells its label alone, controls stay at chance, and the arithmetic is by hand."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features.probes import Probe, balanced_halves, difference_of_means, share_with_interval, widest
from activarium.dictionaries import Origin, controls
from activarium.dictionaries.design import Design
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError

DRAW = {"confidence": 0.95, "resamples": 200, "seed": 0}


def planted(examples=200, rows=3, width=24, seed=0):
    """Two atoms in every row's noise: atom 0 in the positive examples, spread over all channels; a dictionary that has the atoms."""
    random = torch.Generator().manual_seed(seed)
    atoms = torch.linalg.qr(torch.randn(width, width, generator=random))[0]
    labels = np.arange(examples) % 2
    sizes = 0.6 * torch.randn(examples * rows, width, generator=random).abs()
    sizes[:, 0] = torch.as_tensor(np.repeat(labels, rows)).float() * 0.9
    recording = act.testing.recording_of({"x": sizes @ atoms}, example=np.repeat(np.arange(examples), rows))
    design = Design(width, width)
    weights = {"encoder": atoms, "W_dec": atoms, "b_enc": torch.zeros(width), "b_dec": torch.zeros(width)}
    return recording, labels, SAE.of_weights(design, weights, Origin(site="x"))


def test_a_planted_feature_tells_its_label_alone():
    recording, labels, dictionary = planted()
    report = act.analyses.sparse_probing(dictionary, recording, labels)
    curves = report["accuracy"].curves
    assert curves["dictionary"].tolist() == [1, 1, 1]
    assert report["features"].values[0, 0] == 0
    assert curves["raw channels"][0] < 0.95 and curves["random dictionary"][0] < 0.95
    assert curves["all raw channels"][0] == 1
    assert (np.abs(curves["shuffled labels"] - 0.5) < 0.2).all()
    low, high = report["accuracy"].bands["dictionary"]
    assert high[0] == 1 and 0.9 < low[0] < 0.92, "Wilson's interval for 40 of 40 does not close up at 1"
    assert np.isin(report["classes"].values, np.arange(41) / 40).sum() >= 5


def test_rows_are_pooled_and_excluded_kinds_left_out():
    recording, labels, dictionary = planted(rows=2)
    rows = recording["x"].tensor.clone()
    kinds = ["bos", "token"] * 200
    rows[::2] = 1e4 * torch.randn(200, 24, generator=torch.Generator().manual_seed(1))
    odd = act.testing.recording_of({"x": rows}, kinds=kinds, example=np.repeat(np.arange(200), 2))
    report = act.analyses.sparse_probing(dictionary, odd, labels, exclude=["bos"], counts=[1])
    assert report["accuracy"].curves["dictionary"].tolist() == [1]
    assert report.diagnostics["rows left out"] == {"bos": 200}
    blurred = act.analyses.sparse_probing(dictionary, odd, labels, exclude=[], counts=[1])
    assert blurred["accuracy"].curves["dictionary"][0] < 0.9


def test_several_classes_each_against_the_rest():
    _, _, dictionary = planted(examples=120, rows=1)
    which = np.arange(120) % 3
    sizes = torch.rand(120, 24, generator=torch.Generator().manual_seed(2)) * 0.3
    sizes[torch.arange(120), torch.as_tensor(which)] = 1.0
    made = act.testing.recording_of({"x": sizes @ dictionary.W_dec}, example=range(120))
    report = act.analyses.sparse_probing(dictionary, made, np.array(["circle", "square", "star"])[which], counts=[1, 2])
    assert report["features"].values[:, 0].tolist() == [0, 1, 2]
    assert report["classes"].label("class") == ["circle", "square", "star"]
    assert report["accuracy"].curves["dictionary"].tolist() == [1, 1]
    assert report.diagnostics["classes"] == {"circle": 40, "square": 40, "star": 40}


def test_features_are_chosen_on_the_training_examples_alone():
    """A feature that is on in the held-out positives alone would be chosen by all examples together."""
    _, labels, dictionary = planted(examples=100, rows=1)
    _, held = balanced_halves(labels == 1, 0.2, np.random.default_rng([0, 0]))
    sizes = 0.1 * torch.rand(100, 24, generator=torch.Generator().manual_seed(3))
    sizes[held, 5] = 50.0 * torch.as_tensor(labels[held]).float()
    made = act.testing.recording_of({"x": sizes @ dictionary.W_dec}, example=range(100))
    report = act.analyses.sparse_probing(dictionary, made, labels, counts=[1])
    assert report["features"].values[0, 0] != 5


def test_ranking_by_hand():
    values = np.array([[1.0, 0.0, 5.0, 2.0], [3.0, 0.0, 5.0, 2.0], [0.0, 2.0, 5.0, 0.0]])
    differences = difference_of_means(values, np.array([True, True, False]))
    assert differences.tolist() == [2, -2, 0, 2]
    assert widest(differences, 2).tolist() == [0, 1]
    assert widest(differences, 9).tolist() == [0, 1, 3]


def test_a_split_is_balanced_and_no_example_is_on_both_sides():
    positive = np.arange(100) < 30
    train, held = balanced_halves(positive, 0.2, np.random.default_rng(0))
    assert not set(train) & set(held)
    assert (positive[train].sum(), (~positive[train]).sum(), positive[held].sum(), (~positive[held]).sum()) == (24, 24, 6, 6)


def test_a_probe_in_the_units_of_its_columns():
    values = np.array([[0.0, 100.0], [1.0, 300.0], [4.0, 100.0], [5.0, 300.0]])
    made = Probe(values, np.array([False, False, True, True]))
    assert made(values).tolist() == [False, False, True, True]
    assert made.weights[0] > 0 and abs(made.weights[1]) < 2e-3
    assert made.bias + made.weights @ np.array([2.5, 200.0]) == pytest.approx(0, abs=1e-2)
    assert Probe(np.zeros((4, 0)), np.array([True, False, True, True]))(np.zeros((2, 0))).tolist() == [True, True]


def test_intervals_by_hand():
    share, low, high = share_with_interval(np.array([1.0, 1, 0, 1, 0]), np.array([1.0, 1, 1, 1, 0]), DRAW)
    assert share == 0.75
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-3)  # Wilson, 3 of 4
    share, low, high = share_with_interval(np.array([2.0, 1, 0]), np.array([2.0, 2, 2]), DRAW)
    assert share == 0.5 and low >= 0 and high <= 1
    share, low, high = share_with_interval(np.full(20, 2.0), np.full(20, 2.0), DRAW)
    assert share == 1 and high == 1 and low == pytest.approx(0.8389, abs=1e-3)  # Wilson, 20 of 20


def test_it_takes_images_and_texts_alike():
    model = act.wrap(*act.testing.tiny("vit"), certify=False)
    recording = model.run(act.testing.images(20), read="blocks.0.resid_post")
    same = controls.identity(recording["blocks.0.resid_post"].shape[1], Origin(site="blocks.0.resid_post", exclude=("cls",)))
    report = act.analyses.sparse_probing(same, recording, np.arange(20) % 2, counts=[1], test=0.3)
    assert report.diagnostics["rows left out"] == {"cls": 20}


def test_what_is_wrong_is_said():
    recording, labels, dictionary = planted()
    ask = act.analyses.sparse_probing
    with pytest.raises(InputError, match="labels has shape .3,.; the recording has 200 examples"):
        ask(dictionary, recording, [0, 1, 0])
    with pytest.raises(InputError, match="All 200 examples have the label '1'"):
        ask(dictionary, recording, np.ones(200, int))
    with pytest.raises(InputError, match="Label '7' has 1 examples"):
        ask(dictionary, recording, np.r_[7, labels[1:]])
    with pytest.raises(InputError, match=r"counts=\[0\]"):
        ask(dictionary, recording, labels, counts=[0])
    with pytest.raises(InputError, match=r"test=1\.0"):
        ask(dictionary, recording, labels, test=1.0)
    alone = act.testing.recording_of(
        {"x": recording["x"].tensor}, kinds=["bos"] + ["token"] * 599, example=np.r_[0, np.repeat(np.arange(1, 200), 3), 199, 199]
    )
    with pytest.raises(InputError, match="Example 0 has no row left after bos were left out"):
        ask(dictionary, alone, labels, exclude=["bos"])
