"""massive_rules: each rule by hand, what phi can never do, and their agreement."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.attention import AttentionSpec
from activarium.errors import InputError, UnknownName
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report
from activarium.rows import Rows

from .planted_massive import DIM, LAYER, TOKEN, planted, wrapped

massive_rules = act.analyses.massive_rules
READ = ["blocks.*.resid_post", "blocks.*.attn.pattern"]


def recording(*layers: torch.Tensor, examples: int = 1) -> Recording:
    rows = len(layers[0]) // examples
    index = Rows({"example": np.repeat(np.arange(examples), rows), "position": np.tile(np.arange(rows), examples)})
    names = [f"blocks.{i}.resid_post" for i in range(len(layers))]
    return Recording({n: Activations(h, "row d_model", site=n, index=index) for n, h in zip(names, layers, strict=True)}, {"": index})


def flagged(report: Report, rule: str) -> list[int]:
    rows = report["rows"]
    assert isinstance(rows, Ranking)
    return sorted(rows.columns["position"][rows.columns[rule]].tolist())


def cell(report: Report, part: str, rule: str, other: str) -> float:
    grid = report[part]
    assert isinstance(grid, Grid)
    return float(grid.values[grid.label("rule").index(rule), grid.label("other").index(other)])


def test_each_rule_by_hand():
    h = torch.full((20, 500), 0.1)
    h[3, 7] = 2000.0  # one number
    h[5], h[5, 7] = 40.0, 0.1  # a long vector without one
    report = massive_rules(recording(h))
    assert flagged(report, "single number") == [3]
    assert flagged(report, "long vector") == [3]  # 2000 against 894: its own length widens the spread
    assert flagged(massive_rules(recording(h), spread=1.5), "long vector") == [3, 5]  # 147 + 1.5 · 467 = 847 is below its 894
    assert flagged(report, "phi") == [3]
    assert flagged(report, "energy") == [3]
    assert cell(report, "row agreement", "single number", "phi") == 1.0
    assert cell(report, "dim agreement", "single number", "column") == 0.0  # no column is large in more than one row of twenty: 5 %
    h[6] = 40.0
    assert cell(massive_rules(recording(h)), "dim agreement", "single number", "column") == 1 / 500  # now in 10 %, all of them


def test_phi_can_never_reach_its_cut_in_a_narrow_stream():
    h = torch.full((20, 64), 0.001, dtype=torch.float64)
    h[2, 9] = 1800.0
    report = massive_rules(recording(h))
    rows = report["rows"]
    assert isinstance(rows, Ranking)
    assert rows.columns["largest phi"][0] == pytest.approx(8.0, abs=1e-6)  # the root of 64, and no more
    assert flagged(report, "phi") == []
    assert flagged(report, "energy") == [2]
    assert any("phi cannot reach 20 here: in 64 dimensions it is at most 8.0" in line for line in report.words)
    assert np.isnan(cell(report, "row agreement", "phi", "phi"))
    wide = torch.full((20, 401), 0.001, dtype=torch.float64)
    wide[2, 9] = 1800.0
    assert flagged(massive_rules(recording(wide)), "phi") == [2]


@pytest.mark.parametrize(("layers", "rows", "found"), [(1, 2, True), (1, 1, False), (2, 2, True)])
def test_a_column_needs_a_quarter_of_the_layers_and_six_percent_of_the_rows(layers: int, rows: int, found: bool):
    made = [torch.full((20, 8), 0.1) for _ in range(5)]  # one layer of five is less than a quarter
    for h in made[: layers + 1]:
        h[:rows, 3] = -6.0
    dims = massive_rules(recording(*made))["dims"]
    assert isinstance(dims, Ranking)
    assert dims.names == (("dim 3",) if found else ())
    alone = [torch.full((20, 8), 0.1) for _ in range(5)]
    alone[0][:10, 3] = 6.0
    assert massive_rules(recording(*alone))["dims"].to_frame().empty


def test_the_planted_model_by_all_rules():
    texts = [[3, 4, TOKEN, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, TOKEN]]
    report = massive_rules(wrapped(planted()).run(texts, read=READ), layer=LAYER)
    rows = report["rows"]
    assert isinstance(rows, Ranking)
    for rule in ("single number", "energy"):
        assert sorted(rows.columns["position"][rows.columns[rule]].tolist()) == [2, 5]
    assert report.diagnostics["dims"] == (DIM,)
    assert not rows.columns["sink"].any()  # random weights attend evenly
    assert cell(report, "dim agreement", "single number", "persistent") == 1.0


def test_a_sink_is_found_where_the_attention_goes():
    made = recording(torch.full((6, 4), 0.5))
    focused = torch.zeros(1, 6, 6)
    focused[:, :, 0] = 1
    index = made["blocks.0.resid_post"].index
    assert index is not None
    pattern = Activations(focused, "head query key", site="blocks.0.attn.pattern", index=index)
    joined = Recording({**dict(made), "blocks.0.attn.pattern": pattern}, {"": index})
    joined.attention = {"blocks.0.attn": AttentionSpec(scaling=1.0, causal=True)}
    report = massive_rules(joined)
    assert flagged(report, "sink") == [0]
    assert cell(report, "row agreement", "sink", "single number") == 0.0


def test_with_none_the_words_say_why_phi_looks_at_nothing():
    report = massive_rules(wrapped(planted(0.0)).run([[3, 4, 5]], read="blocks.*.resid_post"))
    assert any("no dimension has a single massive number, so phi and energy have no fixed dimensions" in line for line in report.words)
    assert any("patterns were not recorded" in line for line in report.words)


def test_pieces_say_the_same():
    h = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    h[7, 3] = 3000.0
    whole = recording(h)
    index = whole["blocks.0.resid_post"].index
    cut = Recording(
        {"blocks.0.resid_post": Activations([h[:3], h[3:11], h[11:]], "row d_model", site="blocks.0.resid_post", index=index)}, {}
    )
    for part in ("rows", "row agreement", "dims", "dim agreement", "ratio"):
        assert massive_rules(whole)[part].to_frame().equals(massive_rules(cut)[part].to_frame())


def test_what_cannot_be_done_is_refused_with_words():
    made = recording(torch.ones(4, 8))
    with pytest.raises(UnknownName, match="No layer called '3'"):
        massive_rules(made, layer=3)
    with pytest.raises(InputError, match=r"dims=\[8\]: there is no dimension 8; the stream has 0 to 7"):
        massive_rules(made, dims=[8])
    with pytest.raises(InputError, match="spread=0 would flag everything"):
        massive_rules(made, spread=0)
