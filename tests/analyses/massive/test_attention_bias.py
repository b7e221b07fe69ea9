"""attention_bias: exact where the sink is one and the same key, and less where it is not."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.massive.one_key import KeySums, SinkPart, ValueSums
from activarium.errors import InputError, UnknownSite
from activarium.results import Grid, Report

attention_bias = act.analyses.attention_bias


def texts(count: int, first: int | None, length: int = 20) -> list[list[int]]:
    random = np.random.default_rng(0)
    made = random.integers(5, 95, (count, length))
    if first is not None:
        made[:, 0] = first
    return made.tolist()


def absorbed(report: Report, part: str = "absorbed") -> np.ndarray:
    grid = report[part]
    assert isinstance(grid, Grid)
    return grid.values


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # rotation too leaves the key of one position the same
def test_the_same_first_token_is_one_key_and_one_value(family: str):
    model = act.wrap(*act.testing.tiny(family), certify=False)
    report = attention_bias(model, texts(20, 7))
    assert absorbed(report) == pytest.approx(1, abs=1e-6)
    assert (absorbed(report, "constant") < 0.999).all()  # attention on it varies, which only a key can follow
    assert report.diagnostics["fitted"] == 10
    assert "explain 100.0% of the energy" in report.words[0]


def test_other_first_tokens_are_other_keys_and_values():
    model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
    assert absorbed(attention_bias(model, texts(20, None))).max() < 0.9


def test_the_same_token_later_depends_on_what_came_before():
    made = np.array(texts(20, None))
    made[:, 3] = 7
    found = absorbed(attention_bias(act.wrap(*act.testing.tiny("llama"), certify=False), made.tolist(), sinks=[3]))
    assert found[0] == pytest.approx(1, abs=1e-6)  # in block 0 it has looked at nothing yet
    assert (found[1] < 1 - 1e-4).all()


def test_a_key_and_a_value_put_there_are_found():
    random = torch.Generator().manual_seed(0)
    key, value = (torch.randn(2, 3, generator=random, dtype=torch.float64) for _ in range(2))
    queries, rest = torch.randn(40, 2, 3, generator=random, dtype=torch.float64), torch.randn(40, 2, generator=random, dtype=torch.float64)
    score = torch.einsum("qhd,hd->qh", queries, key)
    update = torch.sigmoid(score - rest)[..., None] * value
    part, keys, values = SinkPart(queries, score, rest, update), KeySums(), ValueSums()
    keys.add(part)
    assert torch.allclose(keys.key(), key)
    values.add(part, keys.key())
    assert torch.allclose(values.value(), value)
    explained, plain = values.explained(values.value(), values.mean())
    assert torch.allclose(explained, torch.ones(2, dtype=torch.float64))
    by_hand = 1 - ((update - update.mean(0)) ** 2).sum((0, 2)) / (update**2).sum((0, 2))
    assert torch.allclose(plain, by_hand)


def test_what_cannot_be_done_is_refused_with_words():
    model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
    with pytest.raises(InputError, match=r"1 sequences are longer than skip=8 and hold the sinks \[0\]; one fits and another measures"):
        attention_bias(model, [texts(1, 7)[0], [5, 6]])
    with pytest.raises(InputError, match=r"sinks=\[-1\] and skip=8 should be positions"):
        attention_bias(model, texts(2, 7), sinks=[-1])
    with pytest.raises(UnknownSite, match=r"no site 'encoder.blocks.\*.attn.pattern' that can be read"):
        attention_bias(model, texts(2, 7), stack="encoder")
