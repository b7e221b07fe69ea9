"""Absorption: one planted word is found exactly, none where nothing is absorbed, and each condition by hand."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features.absorption import absorbed_fraction, folds_of, full_absorption, split_features
from activarium.dictionaries import Origin
from activarium.dictionaries.design import Design
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError

HALF = 24
WORDS = [f"b{i}" for i in range(HALF)] + [f"c{i}" for i in range(HALF)]
BAT = 5


def planted(absorbing: bool, length: float = 1.0):
    """Each word has a direction of its own, words in b have that of `b` too. Feature 0 is `b`; absorbing, it falls silent on one word,
    whose own feature writes the direction of b as well. `length` is moved from codes to directions."""
    width = 2 * HALF + 1
    own, b = torch.eye(width)[1:], torch.eye(width)[0]
    rows = own + b * (torch.arange(2 * HALF)[:, None] < HALF)
    encoder, written = torch.cat([b[None], own]), torch.cat([b[None], own]).clone()
    if absorbing:
        encoder[0] = b - 2 * own[BAT]
        written[1 + BAT] = own[BAT] + b
    weights = {"encoder": encoder / length, "W_dec": written * length, "b_enc": torch.zeros(width), "b_dec": torch.zeros(width)}
    sae = SAE.of_weights(Design(width, width), weights, Origin(site="x"))
    assert torch.allclose(sae.forward(rows), rows, atol=1e-6)
    return sae, act.testing.recording_of({"x": rows}, text=WORDS)


def ask(*given, **options):
    return act.analyses.feature_absorption(*given, **options)


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_the_absorbed_word_is_found_and_no_other(length):
    sae, recording = planted(True, length)
    report = ask(sae, recording, [w[0] for w in WORDS])
    found = report["absorbed"].to_frame()
    assert f"'b{BAT}' is absorbed by feature {1 + BAT}." in report.words
    assert report["absorbed"].names == (f"b{BAT}",)
    assert (found["feature"][0], found["property"][0]) == (1 + BAT, "b")
    assert found["cosine"][0] == pytest.approx(2**-0.5, abs=0.1)
    assert report["absorbed"].values[0] == pytest.approx(1, abs=1e-6), "its own feature makes all of it"
    rates = report["rates"].to_frame().set_index("name")
    assert rates.index[0] == "b" and rates.iloc[0, 0] == pytest.approx(1 / HALF)
    assert rates.loc["b", "fraction"] == pytest.approx(1 / HALF)
    assert rates.loc["b", ["words", "probe F1", "split features"]].tolist() == [HALF, 1, 1]
    assert rates.loc["c"].iloc[0] == 0


def test_nothing_is_absorbed_where_the_feature_fires_on_all():
    sae, recording = planted(False)
    report = ask(sae, recording, [w[0] == "b" for w in WORDS])
    assert report["rates"].names == ("True",)
    assert report["rates"].values.tolist() == [0] and report["rates"].columns["fraction"].tolist() == [0]
    assert report["absorbed"].names == ()
    assert report["rates"].columns["low"][0] == pytest.approx(0, abs=1e-9) and 0 < report["rates"].columns["high"][0] < 0.2


def test_each_condition_of_full_absorption():
    assert full_absorption(True, 0.025, 0.0, 0.4)
    assert not full_absorption(False, 0.025, 0.0, 0.4)
    assert not full_absorption(True, 0.024, 0.0, 0.4)
    assert not full_absorption(True, 0.025, -1e-9, 0.4)
    assert not full_absorption(True, 0.025, 0.0, 0.39)


def test_the_fraction_by_hand():
    assert absorbed_fraction(split=1.0, absorbers=3.0, projection=4.0) == 0.75
    assert absorbed_fraction(split=1.0, absorbers=9.0, projection=4.0) == 0.75, "no more than what split features leave"
    assert absorbed_fraction(split=4.0, absorbers=3.0, projection=4.0) == 0
    assert absorbed_fraction(split=1.0, absorbers=1.5, projection=4.0) == 0, "below 0.4"
    assert absorbed_fraction(split=0.0, absorbers=2.0, projection=4.0) == 1
    assert absorbed_fraction(split=-1.0, absorbers=2.0, projection=4.0) == 1
    assert absorbed_fraction(split=0.0, absorbers=2.0, projection=-4.0) == 0


def test_split_features_grow_while_they_help():
    positive = np.arange(80) < 40
    codes = np.zeros((80, 4))
    codes[:30, 2] = 2  # the first half of the property and more
    codes[30:40, 1] = 1  # the rest of it
    codes[0, 3] = 1  # one row more: no rise
    assert split_features(codes, positive) == ((2, 1), 1.0)
    codes[:40, 0] = 3  # all of it: nothing is left to rise
    assert split_features(codes, positive) == ((0,), 1.0)
    assert split_features(np.zeros((80, 2)), positive) == ((), 0.0)


def test_silence_of_features_that_hardly_tell_a_property_is_not_called_absorption():
    """Feature 0 is gone: no split feature tells `b`, each word's own feature writes it, and the rule is met everywhere."""
    sae, recording = planted(True)
    own, b = torch.eye(2 * HALF + 1)[1:], torch.eye(2 * HALF + 1)[0]
    weights = {
        "encoder": own,
        "W_dec": own + b * (torch.arange(2 * HALF)[:, None] < HALF),
        "b_enc": torch.zeros(2 * HALF),
        "b_dec": sae.b_dec,
    }
    alone = SAE.of_weights(Design(2 * HALF + 1, 2 * HALF), weights, Origin(site="x"))
    report = ask(alone, recording, [w[0] == "b" for w in WORDS])
    assert report["rates"].values.tolist() == [1] and report["rates"].columns["split F1"][0] < 0.8
    assert "hardly tell it (F1 0." in report.words[0] and "no absorption" in report.words[0]
    assert len(report.words) == 1, "no row is named"


def test_rows_of_a_word_are_in_one_part():
    words = np.repeat(np.array(WORDS, dtype=object), 3)
    positive = np.array([w[0] == "b" for w in words])
    fold = folds_of(words, positive, 5, np.random.default_rng(0))
    assert all(len(set(fold[words == w])) == 1 for w in WORDS)
    counts = [len(set(words[positive & (fold == f)])) for f in range(5)]
    assert max(counts) - min(counts) <= 1 and sum(counts) == HALF


def test_a_property_that_the_rows_do_not_tell_is_refused_with_words():
    sae, recording = planted(True)
    odd = ["o" if i % 2 else "e" for i in range(2 * HALF)]
    with pytest.raises(
        InputError, match=r"No property can be looked at: 'e': its probe has F1 0\.\d\d, wanted 0.8; 'o': .* cannot be absorbed"
    ):
        ask(sae, recording, odd)
    mixed = [("b" if w[0] == "b" else odd[i]) for i, w in enumerate(WORDS)]
    report = ask(sae, recording, mixed, least=10)
    assert report["rates"].names == ("b",)
    assert set(report.diagnostics["left out"]) == {"e", "o"}
    assert "Left out: 'e' (its probe has F1" in report.words[-1]


def test_what_is_wrong_is_said():
    sae, recording = planted(True)
    labels = [w[0] for w in WORDS]
    with pytest.raises(InputError, match="There are 2 labels; the recording has 48 rows"):
        ask(sae, recording, ["b", "c"])
    with pytest.raises(InputError, match="There are 1 words"):
        ask(sae, recording, labels, words=["b"])
    with pytest.raises(InputError, match="All labels are None"):
        ask(sae, recording, [None] * 48)
    with pytest.raises(InputError, match="'b': 24 words with it and 24 without, wanted 30"):
        ask(sae, recording, labels, least=30)
    bare = act.testing.recording_of({"x": recording["x"].tensor})
    with pytest.raises(InputError, match=r"The rows have no text.*Give words="):
        ask(sae, bare, labels)
    assert ask(sae, bare, labels, words=WORDS)["absorbed"].names == (f"b{BAT}",)
