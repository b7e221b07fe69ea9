"""massive_beginnings: a constant planted at BOS needs it, one planted at a word does not."""

import pytest
import torch

import activarium as act
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.results import Ranking, Series

from .planted_massive import DIM, TOKEN, planted

TEXTS = ["the cat sat on the book", "Anna saw the cat", "the book"]


def planted_at(word: str) -> Runner:
    """The planted model under a tokenizer whose `word` is the trigger."""
    tokenizer = act.testing.tiny("llama")[1]
    token = tokenizer.convert_tokens_to_ids(word)
    text = [token, *range(10, 14)]
    return act.wrap(planted(token=token, text=text, vocabulary=len(tokenizer)), tokenizer, certify=False)


def test_one_that_needs_bos():
    report = act.analyses.massive_beginnings(planted_at("<bos>"), TEXTS)
    assert report.words[0].startswith("massive activations only with BOS (|h| > 100")
    table = report["policies"]
    assert isinstance(table, Ranking)
    assert table.values.tolist() == [3 * len(TEXTS), 0]
    assert table.columns["share of sequences"].tolist() == [1.0, 0.0]
    assert table.columns["where"].tolist() == ["first", ""]
    assert table.columns["persistent"].tolist() == [str(DIM), ""]
    assert "without BOS: none; the largest is" in report.words[2]


def test_one_that_does_not():
    report = act.analyses.massive_beginnings(planted_at("cat"), TEXTS)
    assert report.words[0].startswith("massive activations with BOS and without (")
    for name, dims in {"with BOS": [2], "without BOS": [1]}.items():
        hits = report[f"hits {name}"]
        assert isinstance(hits, Ranking)
        assert hits.columns["position"][hits.columns["example"] == 0].tolist() == dims * 3  # one place earlier without BOS


def test_none_and_both_curves_are_those_of_massive_activations():
    model = act.wrap(*act.testing.tiny("llama"), certify=False)
    report = act.analyses.massive_beginnings(model, TEXTS)
    assert report.words[0].startswith("none, neither with BOS nor without (")
    series = report["ratio"]
    assert isinstance(series, Series)
    for name, bos in {"with BOS": True, "without BOS": False}.items():
        alone = act.analyses.massive_activations(model.run(TEXTS, read="blocks.*.resid_post", bos=bos))["ratio"]
        assert isinstance(alone, Series)
        assert series.curves[name] == pytest.approx(alone.curves["mean"])


def test_inputs_that_begin_alike_are_refused():
    model = planted_at("cat")
    with pytest.raises(InputError, match="begin the same way with and without BOS, as token ids do. Give texts"):
        act.analyses.massive_beginnings(model, [[3, 4, TOKEN]])
    assert torch.is_grad_enabled()
