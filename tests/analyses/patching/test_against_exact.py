"""against_exact: statistics by hand, cells that are really sampled, and what is refused."""

import numpy as np
import pytest

import activarium as act
from activarium.analyses.patching import agreement
from activarium.errors import InputError
from activarium.results import Grid, Ranking

from . import patched_models as tiny

analyses = act.analyses


# --- statistics, by hand


def test_correlations_by_hand():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
    assert agreement.pearson(a, b) == pytest.approx(0.5) and agreement.spearman(a, b) == pytest.approx(0.5)
    assert agreement.spearman(a, b**3) == pytest.approx(0.5), "ranks alone"
    assert agreement.pearson(a, 2 * a + 1) == pytest.approx(1) and np.isnan(agreement.pearson(a, np.ones(3)))
    assert np.isnan(agreement.pearson(a[:1], b[:1]))
    assert agreement.spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 1.0, 5.0])) == pytest.approx(1), "equal values share a rank"


def test_the_slope_is_of_the_score_over_the_effect():
    exact = np.array([-1.0, 0.0, 1.0, 2.0])
    assert agreement.slope(0.5 * exact, exact) == pytest.approx(0.5)
    found = agreement.compared(0.5 * exact, exact, np.zeros(4, bool), seed=0)
    assert found["pearson"] == pytest.approx(1) and found["sign_agreement"] == 1
    (words, miss) = agreement.doubts(found, "miss")
    assert "underestimated: the scores grow by 0.50 per unit" in words and miss == "miss"
    assert agreement.doubts(agreement.compared(exact, exact, np.zeros(4, bool), seed=0), "miss") == ()


def test_known_zeros_flatter_and_are_told_apart():
    approximate, exact = np.array([1.0, 2.0, 0, 0, 0, 0]), np.array([2.0, 1.0, 0, 0, 0, 0])
    found = agreement.compared(approximate, exact, exact == 0, seed=0)
    assert found["pearson"] > 0.7 and found["pearson_without_zeros"] == pytest.approx(-1)
    assert "Weak agreement: Pearson is -1.00 without known zeros. Use activation_patching" in agreement.doubts(found, "")[0]


def test_recall_looks_for_the_largest_effects():
    exact, approximate = np.array([5.0, -4.0, 3.0, 0.1, 0.0]), np.array([5.0, 0.0, -3.0, 4.0, 0.0])
    assert agreement.recall(approximate, exact, 3) == pytest.approx(2 / 3)
    assert agreement.recall(approximate, exact, 10) == 1, "there are four effects in all"
    assert np.isnan(agreement.recall(approximate, np.zeros(5), 3))


def test_the_interval_holds_the_correlation_and_narrows():
    random = np.random.default_rng(0)
    exact = random.normal(size=400)
    approximate = exact + random.normal(size=400)
    widths = []
    for count in (30, 400):
        low, high = agreement.interval(approximate[:count], exact[:count], 0)
        assert low < agreement.pearson(approximate[:count], exact[:count]) < high
        widths.append(high - low)
    # Fisher's interval of a correlation of 0.7 from 400 cells is 0.1 wide.
    assert widths[1] == pytest.approx(0.1, abs=0.03) and widths[0] > 2 * widths[1]
    assert agreement.interval(approximate, exact, 0) == agreement.interval(approximate, exact, 0)


def test_strata_are_the_largest_zeros_and_a_draw():
    scores = np.r_[np.linspace(-1, -0.01, 60), np.zeros(40), [np.nan] * 5].reshape(5, 21)
    chosen = agreement.strata(scores, np.isfinite(scores), 20, 0).ravel()
    assert {n: int((chosen == n).sum()) for n in ("top", "zero", "drawn", "whole")} == {"top": 10, "zero": 2, "drawn": 8, "whole": 0}
    assert set(np.flatnonzero(chosen == "top")) == set(range(10)) and (chosen[-5:] == "").all()
    assert (np.flatnonzero(chosen == "zero") >= 60).all()
    assert np.array_equal(chosen, agreement.strata(scores, np.isfinite(scores), 20, 0).ravel())
    assert not np.array_equal(chosen, agreement.strata(scores, np.isfinite(scores), 20, 1).ravel())
    whole = agreement.strata(scores, np.isfinite(scores), 100, 0).ravel()
    assert (whole == "whole").sum() == 100
    few = agreement.strata(np.r_[1.0, np.zeros(99)], np.ones(100, bool), 20, 0)
    assert (few == "zero").sum() == 19 and few[0] == "top"


# --- on models


def test_exact_against_itself_agrees_in_every_cell():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    exact = analyses.activation_patching(model, pairs, "blocks.*.mlp.out")
    checked = act.against_exact(exact, model, pairs).check
    found = checked.diagnostics
    assert (found["pearson"], found["slope"]) == pytest.approx((1, 1)) and found["recall_of_top_10"] == 1 and found["doubts"] == ()
    assert np.allclose(checked.columns["approximate"], checked.columns["exact"])


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ("blocks.*.resid_pre", {}),
        ("blocks.*.attn.z", {"direction": "noise"}),
        ("blocks.*.attn.k", {"positions": [0, -1]}),
        ("blocks.*.mlp.post", {"units": [3, 7, 11]}),
        ("blocks.*.mlp.out", {"positions": "all", "normalise": True}),
        ("blocks.*.attn.out", {"positions": "places"}),
    ],
)
def test_the_exact_column_is_exact_patching_of_the_same_cells(nodes, options):
    model = tiny.model("llama")
    pairs = tiny.pairs(model, places={"name": [1, 3]})
    grid = analyses.attribution_patching(model, pairs, nodes, **options)
    checked = act.against_exact(grid, model, pairs)
    assert isinstance(checked, Grid) and isinstance(checked.check, Ranking) and np.array_equal(checked.values, grid.values, equal_nan=True)
    exact = analyses.activation_patching(model, pairs, nodes, **options)
    table = checked.check.to_frame()
    assert len(table) == np.isfinite(grid.values).sum() and list(table["exact"].abs()) == sorted(table["exact"].abs(), reverse=True)
    for _, row in table.iterrows():
        cell = tuple(grid.label(axis).index(row[axis]) for axis in grid.axes)
        assert row["exact"] == pytest.approx(exact.values[cell], abs=1e-12) and row["approximate"] == grid.values[cell]
        assert row["name"] == " · ".join(grid.label(axis)[at] for axis, at in zip(grid.axes, cell, strict=True))


def test_a_sample_runs_only_its_cells():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    grid = analyses.attribution_patching(model, pairs, "blocks.*.attn.z")
    checked = act.against_exact(grid, model, pairs, sample=20, seed=3).check
    assert checked.diagnostics["cells"] == 20 and "20 of 72 cells" in checked.title
    top = {" · ".join(name) for name, _ in grid.top(10)}
    assert top == set(np.array(checked.names)[checked.columns["stratum"] == "top"])
    assert set(checked.columns["stratum"]) == {"top", "zero", "drawn"}
    assert (checked.columns["exact"][checked.columns["known_zero"]] == 0).all() and checked.columns["known_zero"].any()
    again = act.against_exact(grid, model, pairs, sample=20, seed=3).check
    assert again.names == checked.names and again.diagnostics["interval"] == checked.diagnostics["interval"]


def test_a_grid_that_is_exact_already_is_not_run_again():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    grid, exact = (getattr(analyses, n)(model, pairs, "blocks.*.attn.z") for n in ("attribution_patching", "activation_patching"))
    run = act.against_exact(grid, model, pairs)
    model.torch_module.forward = None  # nothing can run now
    given = act.against_exact(grid, model, pairs, exact=exact)
    assert given.check.names == run.check.names and np.allclose(given.check.columns["exact"], run.check.columns["exact"])
    assert given.check.diagnostics["pearson"] == pytest.approx(run.check.diagnostics["pearson"])
    for other in (exact.with_(unit="share"), exact.with_(labels={**exact.labels, "layer": ("a", "b", "c")})):
        with pytest.raises(InputError, match="has other nodes, positions, direction or unit than"):
            act.against_exact(grid, model, pairs, exact=other)
    with pytest.raises(InputError, match="exact= takes a grid of activation_patching"):
        act.against_exact(grid, model, pairs, exact=Grid(exact.values, exact.axes))


def test_kinds_in_one_grid_are_told_apart():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    found = act.against_exact(analyses.attribution_patching(model, pairs, ["blocks.*.attn.out", "blocks.*.mlp.out"]), model, pairs)
    alone = act.against_exact(analyses.attribution_patching(model, pairs, "blocks.*.mlp.out"), model, pairs)
    assert found.check.diagnostics["pearson of mlp.out"] == pytest.approx(alone.check.diagnostics["pearson_without_zeros"])
    assert "pearson of attn.out" in found.check.diagnostics


def test_sizes_are_compared_by_rank_with_sizes():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    grid = analyses.attribution_patching_star(model, pairs, "blocks.*.mlp.out", graddrop=True)
    found = act.against_exact(grid, model, pairs).check
    assert "pearson" not in found.diagnostics and found.diagnostics["compared_with"] == "|effect|"
    exact = analyses.activation_patching(model, pairs, "blocks.*.mlp.out")
    sizes = np.nanmean(np.abs(exact.per_example), 0)
    assert sorted(found.columns["exact"]) == pytest.approx(sorted(sizes[np.isfinite(grid.values)]))
    assert found.diagnostics["spearman"] == pytest.approx(
        agreement.spearman(grid.values[np.isfinite(grid.values)], sizes[np.isfinite(grid.values)])
    )


def test_it_is_shown_beside_the_grid_and_can_be_saved(tmp_path):
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    checked = act.against_exact(analyses.relevance_patching(model, pairs, "blocks.*.mlp.out"), model, pairs)
    assert "Pearson" in checked.checked and "slope" in checked.checked and "interval" in checked.checked
    loaded = act.load_result(checked.save(tmp_path / "grid.safetensors"))
    assert act.identical(loaded, checked)
    assert act.identical(act.against_exact(loaded.with_(check=None), model, pairs).check, checked.check)


def test_what_cannot_be_compared_is_refused_with_the_next_step():
    model = tiny.model("gpt2")
    pairs = tiny.pairs(model)
    grid = analyses.attribution_patching(model, pairs, "blocks.*.mlp.out")
    with pytest.raises(InputError, match="says no direction: it was not made by patching nodes"):
        act.against_exact(Grid(np.eye(2), "layer position", title="other"), model, pairs)
    with pytest.raises(InputError, match="made from 2 pairs by 'logit_difference'; these are 1 pairs"):
        act.against_exact(grid, model, pairs.select([0]))
    with pytest.raises(InputError, match="sample=1: agreement needs two cells"):
        act.against_exact(grid, model, pairs, sample=1)
    other = tiny.pairs(model, ["Anna saw the king", "Tom gave Anna the old ball"], ["Tom saw the king", "Tom gave Tom the old ball"])
    with pytest.raises(InputError, match="The clean metric was .* when this grid was made and is .* now"):
        act.against_exact(grid, model, other)


# --- on a trained model


@pytest.mark.slow
def test_on_scribe_constant_norms_bring_the_stream_nearer_and_constant_patterns_do_not():
    """What holds on this trained model (indirect objects, 16 pairs); no law of nature."""
    model = act.load("scribe")
    pairs = act.pairs.ioi(model, 16)
    found = {}
    for kind in ("resid_pre", "attn.out", "mlp.out"):
        grids = {"atp": analyses.attribution_patching(model, pairs, f"blocks.*.{kind}")}
        grids |= {r: analyses.relevance_patching(model, pairs, f"blocks.*.{kind}", rules=r) for r in ("ln", "relp", "relp-ah")}
        for name, grid in grids.items():
            found[kind, name] = act.against_exact(grid, model, pairs, sample=10**6, progress=False).check.diagnostics
    assert all(
        found[k, "ln"]["pearson_without_zeros"] > 0.95 > found[k, "atp"]["pearson_without_zeros"]
        for k in ("resid_pre", "attn.out", "mlp.out")
    )
    assert all(found[k, "relp-ah"]["pearson_without_zeros"] < found[k, "relp"]["pearson_without_zeros"] for k in ("resid_pre", "attn.out"))
    assert any("underestimated" in words for words in found["resid_pre", "atp"]["doubts"])
