"""attention_sinks: heads made by hand, the uniform baseline, windows, and agreement with transformers' own attention."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import activarium as act
from activarium.activations import Activations
from activarium.analyses.massive.updates import constancy, split_update
from activarium.attention import AttentionSpec
from activarium.errors import InputError, UnknownSite
from activarium.recording import Recording
from activarium.results import Grid, Report, Series
from activarium.rows import Rows

attention_sinks = act.analyses.attention_sinks
SITE = "blocks.0.attn.pattern"


def uniform(rows: int) -> Tensor:
    """Every query spreads its attention over what it sees."""
    return torch.ones(rows, rows).tril() / torch.arange(1.0, rows + 1)[:, None]


def focused(rows: int, key: int = 0) -> Tensor:
    """Every query looks at one key, or at itself before that."""
    made = torch.eye(rows)
    made[key:] = 0
    made[key:, key] = 1
    return made


def recorded(
    *patterns: Tensor, spec: AttentionSpec | None = None, values: Tensor | None = None, tokens: list[int] | None = None
) -> Recording:
    lengths = [p.shape[-1] for p in patterns]
    columns = {"example": np.repeat(np.arange(len(patterns)), lengths), "position": np.concatenate([np.arange(n) for n in lengths])}
    made = np.array(tokens if tokens is not None else list(range(sum(lengths))))
    rows = Rows(columns | {"token": made, "text": made.astype(str).astype(object), "kind": np.full(len(made), "token", dtype=object)})
    sites = {SITE: Activations(list(patterns), "head query key", site=SITE, index=rows)}
    if values is not None:
        sites["blocks.0.attn.v"] = Activations(values, "row head d_head", site="blocks.0.attn.v", index=rows)
    recording = Recording(sites, {"": rows})
    recording.attention = {"blocks.0.attn": spec or AttentionSpec(scaling=1.0, causal=True)}
    return recording


def curve(report: Report, part: str, name: str = "measured") -> np.ndarray:
    series = report[part]
    assert isinstance(series, Series)
    return series.curves[name]


def grid(report: Report, part: str) -> np.ndarray:
    found = report[part]
    assert isinstance(found, Grid)
    return found.values


@pytest.mark.parametrize(("rows", "subtract"), [(10, True), (16, False), (64, False)])
def test_one_head_in_eight(rows: int, subtract: bool):
    heads = torch.stack([focused(rows), *[uniform(rows)] * 7])
    report = attention_sinks(recorded(heads, heads), subtract=subtract)
    assert curve(report, "sinks").tolist() == [12.5] + [0.0] * (rows - 1)
    assert curve(report, "sinks", "uniform attention").tolist() == [0.0] * rows
    assert report.diagnostics["sinks"] == (0,)
    assert grid(report, "heads").tolist() == [[100.0] + [0.0] * 7]
    assert grid(report, "mass")[0, 0] == 1.0
    assert grid(report, "mass")[0, 1] == pytest.approx(np.mean([1 / n for n in range(9, rows + 1)]))


def test_uniform_attention_alone_is_a_sink_in_short_texts_so_they_are_refused():
    with pytest.raises(
        InputError, match=r"At 9 rows uniform attention alone gives the first one an importance of 0.31; epsilon is 0.3. Give"
    ):
        attention_sinks(recorded(uniform(9)[None]))
    assert curve(attention_sinks(recorded(uniform(9)[None]), subtract=True), "sinks").tolist() == [0.0] * 9


@pytest.mark.parametrize("rows", [16, 32, 64])
def test_the_uniform_baseline_is_a_difference_of_harmonic_numbers(rows: int):
    report = attention_sinks(recorded(uniform(rows)[None]))
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, rows + 1))])
    wanted = [(harmonic[rows] - harmonic[k]) / (rows - k) for k in range(rows)]
    assert curve(report, "importance", "uniform attention") == pytest.approx(wanted)
    assert curve(report, "importance") == pytest.approx(wanted, rel=1e-6)
    assert {16: 0.211, 32: 0.127, 64: 0.074}[rows] == pytest.approx(wanted[0], abs=5e-4)


def test_none_is_said_in_words():
    report = attention_sinks(recorded(uniform(20)[None]))
    assert report.words[1].startswith("none: no head gives position 0, or any other that many queries see, more than 0.3")


def test_the_last_keys_look_important_to_the_few_that_see_them_and_are_not_chosen():
    late = uniform(20)
    late[18:] = 0
    late[18:, 18] = 1  # both queries that see key 18 look at it
    report = attention_sinks(recorded(late[None]))
    assert curve(report, "sinks")[18] == 100.0  # the metric itself says so
    assert report.diagnostics["sinks"] == (0,)
    assert "none: no head" in report.words[1]


def test_a_sink_can_stand_anywhere_and_is_named():
    report = attention_sinks(recorded(torch.stack([focused(20, 3), uniform(20)])))
    assert report.diagnostics["sinks"] == (3,)
    assert curve(report, "sinks")[3] == 50.0
    chosen = attention_sinks(recorded(torch.stack([focused(20, 3), uniform(20)])), sinks=[0, 3])
    assert grid(chosen, "mass")[0, 0] == 1.0


def test_behind_its_window_a_key_is_no_sink():
    rows, width = 24, 4
    oldest = torch.zeros(rows, rows)
    oldest[torch.arange(rows), (torch.arange(rows) - width + 1).clamp_min(0)] = 1  # each query looks at the oldest key it sees
    report = attention_sinks(recorded(oldest[None], spec=AttentionSpec(scaling=1.0, causal=True, window=width)), sinks=[0])
    importance = curve(report, "importance")
    assert importance[0] == 1.0  # four queries can see it, and all four look
    assert importance[1:-3] == pytest.approx(0.25)
    assert curve(report, "sinks")[1:-3].tolist() == [0.0] * (rows - 4)
    assert grid(report, "mass").tolist() == [[0.0]]  # from query 8 on nobody sees it
    assert curve(report, "layers", "uniform attention").tolist() == [0.0]
    assert curve(report, "importance", "uniform attention")[3:-3] == pytest.approx(0.25)


TEXTS = [[(7 * i + 3 * e) % 90 + 5 for i in range(n)] for e, n in enumerate((20, 24, 17, 12))]


@pytest.mark.parametrize("family", ["llama", pytest.param("mistral", marks=pytest.mark.slow), pytest.param("gpt2", marks=pytest.mark.slow)])
def test_agrees_with_transformers_own_attention(family: str):
    torch_model, tokenizer = act.testing.tiny(family)
    report = attention_sinks(act.wrap(torch_model, tokenizer, certify=False), TEXTS, length=17, epsilon=0.2)
    torch_model.set_attn_implementation("eager")
    importance, sinks = [], []
    window = 4 if family == "mistral" else 99
    for text in TEXTS[:3]:
        attention = torch.stack(torch_model(torch.tensor([text[:17]]), output_attentions=True).attentions).squeeze(1).double()
        seers = torch.tensor([min(17 - k, window) for k in range(17)])
        importance.append((attention.sum(2) / seers).detach().numpy())
        sinks.append(100 * (importance[-1] > 0.2).mean((0, 1)))
    assert curve(report, "importance") == pytest.approx(np.mean(importance, axis=(0, 1, 2)), rel=1e-4)
    assert curve(report, "sinks") == pytest.approx(np.mean(sinks, axis=0))
    assert report.words[0] == "3 sequences of 17 rows, cut to their first rows; 1 of another length were left out."


def test_a_recording_its_pieces_and_a_store_say_the_same(tmp_path: Path):
    model = act.wrap(*act.testing.tiny("llama"), certify=False)
    texts = TEXTS * 6  # more than run at once
    live = attention_sinks(model, texts)
    whole = attention_sinks(model.run(texts, read=["blocks.*.attn.pattern", "blocks.*.attn.v"]))
    act.capture(model, texts, ["blocks.*.attn.pattern", "blocks.*.attn.v"], to=tmp_path / "made.acts")
    stored = attention_sinks(act.open(tmp_path / "made.acts"))
    for other in (whole, stored):
        assert list(other) == list(live)
        assert curve(other, "sinks").tolist() == curve(live, "sinks").tolist()
        for part, name in (("importance", "measured"), ("constancy", "sinks"), ("value norms", "sinks"), ("update", "sinks")):
            assert curve(other, part, name) == pytest.approx(curve(live, part, name), rel=1e-5)
        assert grid(other, "kv heads") == pytest.approx(grid(live, "kv heads"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_two_parts_of_an_update_are_the_heads_output(family: str):
    model = act.wrap(*act.testing.tiny(family), certify=False)
    read = model.run([TEXTS[0]], read=["blocks.1.attn.pattern", "blocks.1.attn.v", "blocks.1.attn.z"])
    pattern = read["blocks.1.attn.pattern"].example(0).tensor
    first, rest = split_update(pattern, read["blocks.1.attn.v"].tensor, [0, 5])
    assert torch.allclose(first + rest, read["blocks.1.attn.z"].tensor, atol=1e-5)
    assert torch.allclose(first[7, 0], (pattern[0, 7, [0, 5], None] * read["blocks.1.attn.v"].tensor[[0, 5], 0]).sum(0), atol=1e-6)


def test_a_bias_is_constant_and_is_told_from_what_varies():
    steady = torch.full((30, 30), 0.0)
    steady[:, 0], steady[:, 1] = 0.75, 0.25
    values = torch.randn(30, 1, 6, generator=torch.Generator().manual_seed(0))
    values[0] *= 0.01  # sinks have small values
    report = attention_sinks(recorded(steady[None].tril(), values=values))
    assert curve(report, "constancy", "sinks")[0] == pytest.approx(0, abs=1e-6)
    assert curve(report, "value norms", "sinks")[0] == pytest.approx(float(values[0].norm()))
    assert curve(report, "update", "sinks")[0] < 0.1
    update = torch.tensor([1.0, 3.0])[:, None, None].expand(2, 1, 4)
    assert constancy(update).tolist() == [0.5]  # 1 and 3 are each 1 away from 2


def test_heads_that_share_keys_are_shown_together():
    heads = torch.stack([focused(20), uniform(20), uniform(20), uniform(20)])
    report = attention_sinks(recorded(heads, values=torch.randn(20, 2, 6)))
    assert grid(report, "kv heads").tolist() == [[50.0, 0.0]]


def test_a_head_that_sees_no_sink_has_no_update_by_it():
    window = torch.eye(20)[None]
    report = attention_sinks(recorded(window, spec=AttentionSpec(1.0, True, window=1), values=torch.randn(20, 1, 6)), sinks=[0])
    assert np.isnan(curve(report, "constancy", "sinks")).all()


def test_repetitive_inputs_are_flagged():
    tokens = [5] * 12 + list(range(8)) + list(range(20))
    report = attention_sinks(recorded(uniform(20)[None], uniform(20)[None], tokens=tokens))
    assert report.diagnostics["repetitive"] == (0,)
    assert "1 sequences are repetitive (one token is half of them or more)" in report.words[-2]


def test_where_rows_look_ahead_every_query_counts_for_every_key():
    torch_model, processor = act.testing.tiny("vit")
    pictures = list(np.random.default_rng(1).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8))
    model = act.wrap(torch_model, processor, certify=False)
    report = attention_sinks(model, pictures, epsilon=0.15)
    pattern = model.run(pictures, read="blocks.*.attn.pattern")["blocks.*.attn.pattern"]
    dense = torch.stack([pattern.example(e).tensor for e in range(3)]).double()  # example layer head query key
    assert curve(report, "importance") == pytest.approx(dense.mean((0, 1, 2, 3)).numpy(), rel=1e-6)
    assert curve(report, "sinks") == pytest.approx(100 * (dense.mean(3) > 0.15).double().mean((0, 1, 2)).numpy())
    assert curve(report, "importance", "uniform attention") == pytest.approx(1 / dense.shape[-1])
    assert report.diagnostics["rows look ahead"]
    assert "as they are" in report.words[0]


def test_what_cannot_be_done_is_refused_with_words():
    recording = recorded(uniform(20)[None])
    model = act.wrap(*act.testing.tiny("llama"), certify=False)
    for given, error, words in [
        ((recording, [[1]]), InputError, "A model needs inputs=, a recording has its own"),
        ((model,), InputError, "A model needs inputs="),
        ((Recording({}, {}),), UnknownSite, r"no site 'blocks.\*.attn.pattern'"),
    ]:
        with pytest.raises(error, match=words):
            attention_sinks(*given)
    for options, words in [
        ({"epsilon": 1.5}, "epsilon=1.5 is no share of attention"),
        ({"skip": 20}, "skip=20 leaves none of the 20 queries"),
        ({"length": 40}, "length=40 asks for 40 rows; the sequences have 20 to 20. Give a length up to 20"),
        ({"sinks": [20]}, r"sinks=\[20\] should name positions from 0 to 19"),
    ]:
        with pytest.raises(InputError, match=words):
            attention_sinks(recording, **options)
