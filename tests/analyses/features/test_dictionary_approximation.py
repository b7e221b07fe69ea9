"""Reconstructions in the place of a node: the identity is 1, the mean is 0, planted attributes are 1, and the arithmetic is by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features._dictionary_approximation import _scores
from activarium.dictionaries import Origin, SupervisedDictionary, controls
from activarium.errors import InputError, OtherModel, UnknownName

from . import planted_pairs as planted

SITE = Origin(site=planted.SITE)


def rows_of(pairs):
    values = planted.model().run(pairs.clean, read="embed")["embed"].tensor
    return values[torch.as_tensor(np.arange(len(pairs)) * 6 + pairs.places["HERE"])]


def test_the_ends_of_the_scale_and_planted_attributes():
    pairs, known, _ = planted.planted_pairs()
    rows = rows_of(pairs)
    supervised = SupervisedDictionary.of_rows(rows, known, origin=SITE)
    none = replace(supervised, written=torch.zeros_like(supervised.written))
    given = {"none": none, "known": supervised, "identity": controls.identity(32, SITE)}
    made = act.analyses.dictionary_approximation(planted.model(), pairs, given, "HERE", attributes=known)
    found = dict(zip(made.names, made.values, strict=True))
    assert found["identity"] == 1 and found["none"] == pytest.approx(0, abs=1e-6)
    assert found["known"] == pytest.approx(1, abs=1e-5)
    table = made.to_frame().set_index("name")
    assert table.loc["known", "necessity"] == pytest.approx(1, abs=1e-5)
    assert table.loc["identity", "necessity"] == pytest.approx(1, abs=1e-6)
    assert table.loc["none", "necessity"] == pytest.approx(0, abs=1e-6)
    assert table.loc["known", "explained"] == pytest.approx(1, abs=1e-6)
    assert table.loc["none", "explained"] == pytest.approx(0, abs=1e-6)
    assert table.loc["identity", ["low", "high"]].tolist() == pytest.approx([1, 1])
    assert abs(table.loc["known", "scrambled"] - 1) > 0.2
    assert made.names[-1] == "none"


def test_it_is_what_an_edit_of_the_whole_site_gives():
    """Against a run in which every row of the site is set by hand."""
    pairs, known, _ = planted.planted_pairs()
    model, rows = planted.model(), rows_of(pairs)
    half = SupervisedDictionary.of_rows(rows, {"token": known["token"]}, origin=SITE)
    made = act.analyses.dictionary_approximation(model, pairs, {"token": half}, "HERE", attributes=known, batch=4)
    whole = model.run(pairs.clean, read="embed")["embed"].tensor.clone()
    index = torch.as_tensor(np.arange(len(pairs)) * 6 + pairs.places["HERE"])

    def by_hand(values):
        changed = whole.clone()
        changed[index] = values
        return float(model.run(pairs.clean, edits=[act.edits.Set("embed", changed)], metrics={"m": pairs.metric}).metric["m"].mean())

    clean, mean = by_hand(rows), by_hand(rows.mean(0))
    spliced = half.decode(half.of_values({"token": known["token"]}))
    assert made.values[0] == pytest.approx(abs(by_hand(spliced) - mean) / abs(clean - mean), rel=1e-4)
    assert made.columns["necessity"][0] == pytest.approx((clean - by_hand(rows - spliced + rows.mean(0))) / (clean - mean), rel=1e-4)


def test_shares_by_hand():
    metric = {"clean": [4.0, 2.0], "mean": [1.0, 1.0], "spliced": [-1.0, 1.0], "without": [1.0, 3.0], "scrambled": [0.0, 3.0]}
    made = _scores({k: np.array(v) for k, v in metric.items()}, {"confidence": 0.95, "resamples": 50, "seed": 0})
    assert made["signed"] == -0.5 and made["sufficiency"] == 0.5
    assert made["necessity"] == 0.5 and made["scrambled"] == 0.25
    assert made["low"] <= 0.5 <= made["high"] and made["low"] >= 0


def test_several_nodes_are_spliced_at_once():
    pairs, _, _ = planted.planted_pairs()
    both = [controls.identity(32, Origin(site=s)) for s in ("embed", "blocks.1.attn.z")]
    made = act.analyses.dictionary_approximation(planted.model(), pairs, {"both": both}, "HERE")
    assert made.values.tolist() == [1.0]
    assert made.diagnostics["nodes"]["both"] == ("embed", "blocks.1.attn.z")


def test_what_is_wrong_is_said():
    pairs, known, _ = planted.planted_pairs()
    model, same = planted.model(), controls.identity(32, SITE)
    ask = act.analyses.dictionary_approximation
    with pytest.raises(InputError, match="There are no dictionaries"):
        ask(model, pairs, {}, "HERE")
    with pytest.raises(InputError, match="'same' does not say where it reads"):
        ask(model, pairs, {"same": controls.identity(32)}, "HERE")
    with pytest.raises(InputError, match="two dictionaries of embed"):
        ask(model, pairs, {"same": [same, same]}, "HERE")
    with pytest.raises(InputError, match=r"'same' reads rows of 8 numbers; embed of GPT2LMHeadModel has 32"):
        ask(model, pairs, {"same": controls.identity(8, SITE)}, "HERE")
    with pytest.raises(OtherModel, match="was trained on weights abc"):
        ask(model, pairs, {"same": controls.identity(32, Origin(site="embed", weight_hash="abc"))}, "HERE")
    with pytest.raises(UnknownName, match="place in these pairs"):
        ask(model, pairs, {"same": same}, "THERE")
    with pytest.raises(InputError, match="Position 6 is not in pair 0, which has 6 rows"):
        ask(model, pairs, {"same": same}, 6)
    with pytest.raises(InputError, match="at least one pair"):
        ask(model, pairs, {"same": same}, "HERE", batch=0)
    supervised = SupervisedDictionary.of_rows(rows_of(pairs), known, origin=SITE)
    with pytest.raises(InputError, match="'known' needs attribute 'position'; given are token"):
        ask(model, pairs, {"known": supervised}, "HERE", attributes={"token": known["token"]})
    last = controls.identity(32, Origin(site="blocks.2.resid_post"))
    with pytest.raises(InputError, match="nothing of the answer passes there"):
        ask(model, pairs, {"last": last}, 0)  # the last block's first row: the answer is read at another row
