"""What features stand for: planted features are found on held-out rows, splits are counted, and a hidden attribute is called occluded."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features.best_features import Found
from activarium.dictionaries import Origin, SupervisedDictionary, controls
from activarium.dictionaries.design import Design
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError

DRAW = {"confidence": 0.95, "resamples": 100, "seed": 0}
SITE = Origin(site="x")


def relu(directions):
    """A dictionary that fires along these directions."""
    directions = torch.as_tensor(directions, dtype=torch.float32)
    design = Design(directions.shape[1], len(directions))
    none = torch.zeros(len(directions)), torch.zeros(directions.shape[1])
    return SAE.of_weights(design, {"encoder": directions, "W_dec": directions, "b_enc": none[0], "b_dec": none[1]}, SITE)


def recorded(rows):
    return act.testing.recording_of({"x": rows}, example=range(len(rows)))


def planted(count=240, small=0.5):
    """Attribute `big` writes one of three orthogonal directions, `low` one of two others."""
    random = np.random.default_rng(0)
    big, low = random.integers(0, 3, count), random.integers(0, 2, count)
    rows = 4 * torch.eye(6)[big] + small * torch.eye(6)[3 + low]
    return rows, {"big": big.tolist(), "low": low.tolist()}


def test_planted_features_are_found_and_noise_is_not():
    rows, known = planted()
    given = {"all": relu(torch.eye(6)), "noise": relu(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))}
    report = act.analyses.dictionary_interpretability(given, recorded(rows), known)
    summary = report["summary"]
    assert summary.names[0] == "all" and summary.values[0] == 1
    assert summary.columns["low"][0] == summary.columns["high"][0] == 1
    assert summary.columns["shuffled"][0] < 0.6 and summary.values[1] < 0.9
    best = report["all values"].to_frame().set_index("name")["feature"]
    assert best.to_dict() == {"big=0": 0, "big=1": 1, "big=2": 2, "low=0": 3, "low=1": 4}
    assert report["all values"].columns["in union"].tolist() == [1] * 5
    grid = report["all F1"]
    assert grid.label("value")[3] == "low=0" and grid.values[0, 0] == 1 and grid.values[0, 5] == 0
    assert not report["all attributes"].columns["occluded"].any()


def test_an_attribute_without_features_beside_a_larger_one_is_occluded():
    rows, known = planted()
    only_big = relu(torch.eye(6)[:3])
    report = act.analyses.dictionary_interpretability({"big": only_big}, recorded(rows), known)
    table = report["big attributes"].to_frame().set_index("name")
    assert table.index.tolist() == ["big", "low"], "the larger one first"
    assert table.loc["low", "read"] == 1 and table.loc["low", "found"] == 0
    assert table["occluded"].tolist() == [False, True]
    assert "low can be read off 100% of the rows" in report.words[0]
    size = float((4 * torch.eye(3)[known["big"]] - (4 * torch.eye(3)[known["big"]]).mean(0)).norm(dim=1).mean())
    spread = float((rows - rows.mean(0)).square().sum(1).mean().sqrt())
    assert table.loc["big", "size"] == pytest.approx(size / spread, rel=0.1)  # means over chance: 'big' and 'low' are nearly independent


def test_over_splitting_is_counted():
    """The value `a` has four features, each of which fires on a quarter of its rows."""
    quarter = np.arange(160) % 4
    is_a = np.arange(160) // 4 % 2 == 0
    rows = torch.where(torch.as_tensor(is_a)[:, None], torch.eye(5)[quarter], torch.eye(5)[4])
    report = act.analyses.dictionary_interpretability({"split": relu(torch.eye(5))}, recorded(rows), {"is": np.where(is_a, "a", "b")})
    table = report["split values"].to_frame().set_index("name")
    assert table.loc["is=a", "in union"] == 4 and table.loc["is=a", "union recall"] == 1
    assert table.loc["is=a", "recall"] < 0.5
    assert table.loc["is=b", "in union"] == 1


def test_the_best_feature_is_judged_on_rows_that_did_not_choose_it():
    active = np.array([[1, 0], [0, 0], [0, 1], [0, 1]], dtype=bool)
    half = np.array([True, True, False, False])
    made = Found.of("is", active, ["a", "b", "a", "b"], half, DRAW)
    assert made.best.tolist() == [0, 0]
    assert made.f1.tolist() == [0, 0], "the feature is silent in the half that judges"
    assert made.held.f1[:, 1].tolist() == [2 / 3, 2 / 3]


def test_a_supervised_dictionary_and_rows_at_a_position():
    rows, known = planted()
    twice = torch.stack([torch.zeros_like(rows), rows], 1).flatten(0, 1)
    recording = act.testing.recording_of({"x": twice}, example=np.repeat(np.arange(len(rows)), 2))
    made = SupervisedDictionary.of_rows(rows, known, origin=SITE)
    ask = act.analyses.dictionary_interpretability
    assert ask({"known": made}, recording, known)["summary"].values.tolist() == [1]
    assert ask({"known": made}, recording, known, np.ones(len(rows), int))["summary"].values.tolist() == [1]
    assert ask({"known": made}, recording, known, 0)["summary"].values[0] < 0.6
    assert ask({"known": made}, recording, known)["known F1"].label("feature")[0] == "big=0"


def test_what_is_wrong_is_said():
    rows, known = planted()
    recording, same = recorded(rows), controls.identity(6, SITE)
    ask = act.analyses.dictionary_interpretability
    with pytest.raises(InputError, match="There are no dictionaries"):
        ask({}, recording, known)
    with pytest.raises(InputError, match="'big' has 2 values for 240 rows"):
        ask({"same": same}, recording, {"big": [1, 2]})
    with pytest.raises(InputError, match="'big' has one value in all examples"):
        ask({"same": same}, recording, {"big": [1] * 240})
    with pytest.raises(InputError, match="Example 0 has 1 rows; there is no position 3"):
        ask({"same": same}, recording, known, 3)
    with pytest.raises(InputError, match="one for each of the 240 examples"):
        ask({"same": same}, recording, known, [0, 0])
    with pytest.raises(InputError, match="There are 2 examples"):
        ask({"same": same}, recorded(rows[:2]), {"big": [0, 1]})
