"""Semi-nonnegative factorisation: planted factors found, laws of its steps, exact codes, odd rows, streams and stores."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, nnls

import activarium as act
from activarium import testing
from activarium.activations import Activations
from activarium.dictionaries import SNMF, Origin, as_dictionary, factorise, residual_directions, semi_nmf
from activarium.dictionaries.nonnegative import nonnegative
from activarium.dictionaries.rows import RowSource
from activarium.dictionaries.semi_nmf import Pieces, fit, multiplied, solved, winner_take_all, winners_of
from activarium.dictionaries.semi_nmf_starts import start
from activarium.errors import CapacityError, InputError, NotFinite, UnknownSite
from activarium.recording import Recording

SITE = "blocks.1.mlp.post"


def planted(seed, width=200, rows=2000, features=10, entries=10, density=0.3, noise=0.01):
    """Rows that are sums of sparse signed unit factors with positive sizes: `feature d`, `row feature`, `row d`."""
    generator = torch.Generator().manual_seed(1000 + seed)
    factors = torch.zeros(features, width)
    for factor in factors:
        factor[torch.randperm(width, generator=generator)[:entries]] = torch.randn(entries, generator=generator)
    factors = torch.nn.functional.normalize(factors, dim=1)
    on = torch.rand(rows, features, generator=generator) < density
    codes = on * torch.rand(rows, features, generator=generator)
    return factors, codes, codes @ factors + noise * torch.randn(rows, width, generator=generator)


def matched(truth, found):
    """Cosine of each true factor with the one that the best assignment gives it."""
    cosine = torch.nn.functional.normalize(truth, dim=1) @ torch.nn.functional.normalize(found.to(truth), dim=1).T
    return cosine[linear_sum_assignment(-cosine.numpy())]


def made(rows, **options):
    settings = {"features": 4, "share": 0.2, "progress": False, "restarts": 1, "steps": 40} | options
    return factorise(testing.recording_of({SITE: rows}), SITE, **settings)


def small(seed=0, **options):
    return planted(seed, **{"width": 30, "rows": 120, "features": 4, "entries": 6, "noise": 0.05} | options)


def fitted(rows, winners=None, steps=60, dtype=torch.float64, features=4):
    pieces = Pieces(RowSource(testing.recording_of({SITE: rows})[SITE]), dtype)
    codes = start(pieces, features, "random", 3)
    return pieces, codes, fit(pieces, codes, winners, steps=steps, tolerance=0, patience=steps, advance=lambda *_, **__: None)


# --- what it finds


@pytest.mark.parametrize("seed", range(5))
def test_planted_factors_are_found_from_k_means(seed):
    truth, _, rows = planted(seed)
    found = made(rows, features=10, share=0.05, restarts=None, steps=300, seed=seed)
    assert float(matched(truth, found.snmf.directions).min()) > 0.98
    assert (found.snmf.directions != 0).sum(1).tolist() == [10] * 10
    assert bool((found.codes.values > 0).all())


def test_shuffled_columns_hold_no_such_factors():
    truth, _, rows = planted(0, noise=0.1)
    generator = torch.Generator().manual_seed(0)
    mixed = torch.stack([column[torch.randperm(len(rows), generator=generator)] for column in rows.T], 1)
    assert float(matched(truth, made(mixed, features=10, share=0.05, steps=30).snmf.directions).mean()) < 0.6


# --- laws of a step


def test_without_winners_no_step_raises_the_error():
    _, codes, found = fitted(small()[2])
    losses = np.array(found.losses)
    assert len(losses) == 60
    assert (np.diff(losses) <= 1e-6 * losses[:-1]).all()
    assert found.best == 59
    assert bool((codes >= 0).all())


def test_the_best_step_is_what_comes_back():
    rows = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))  # noise: keeping few entries makes the error rise now and then
    _, _, found = fitted(rows, winners=4, steps=40)
    losses = np.array(found.losses)
    assert (np.diff(losses) > 0).any()
    assert found.loss == losses.min()
    assert found.loss < losses[-1]
    report = made(rows, share=4 / 20).report
    assert (np.diff(report["error"].curves["best so far"]) <= 0).all()


def test_the_error_is_the_distance_that_it_says():
    rows = small()[2]
    _, codes, found = fitted(rows, winners=6, steps=1)
    exact = float((rows.double() - codes @ found.factors.T).square().sum())
    assert found.loss == pytest.approx(exact, rel=1e-9)
    result = made(rows)
    left = float(result.snmf.error(rows).double().square().sum() / rows.double().square().sum())
    assert result.report.diagnostics["error"] == pytest.approx(left, rel=1e-5)
    assert left <= min(result.report["error"].curves["this step"]) + 1e-6


def test_one_multiplicative_step_by_hand():
    # P = [2, -1], Q = [[1, -2], [-2, 4]], G = [3, 5]: up = [2 + 10, 0 + 6], down = [0 + 3, 1 + 20].
    made = multiplied(torch.tensor([[3.0, 5.0]]), torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, -2.0], [-2.0, 4.0]]), 0.0)
    assert made[0].tolist() == pytest.approx([3 * (12 / 3) ** 0.5, 5 * (6 / 21) ** 0.5])


def test_winners_are_the_largest_and_of_equals_the_first():
    kept = winner_take_all(torch.tensor([[1.0, 5.0], [-2.0, 5.0], [2.0, 5.0], [0.5, -6.0]]), 2)
    assert kept.tolist() == [[0, 5], [-2, 0], [2, 0], [0, -6]]


@pytest.mark.parametrize(("share", "width", "wanted"), [(0.07, 100, 7), (0.01, 512, 6), (0.05, 200, 10), (0.29, 100, 29), (1e-9, 10, 1)])
def test_winners_are_counted_upwards_and_no_rounding_adds_one(share, width, wanted):
    assert winners_of(share, width) == wanted


def test_a_singular_system_is_solved_all_the_same():
    gram = torch.ones(3, 3, dtype=torch.float64)
    z = solved(torch.ones(5, 3, dtype=torch.float64), gram)
    assert torch.allclose(z @ gram, torch.ones(5, 3, dtype=torch.float64), atol=1e-3)
    assert float(z.abs().max()) < 1


def test_units_do_not_matter():
    rows = small()[2]
    plain, large = made(rows), made(rows * 1024)
    assert torch.equal(plain.snmf.directions, large.snmf.directions)
    assert torch.allclose(plain.codes.dense() * 1024, large.codes.dense(), rtol=1e-5)


# --- codes


def test_codes_are_those_of_scipy_and_have_exact_zeros():
    _, _, rows = small(noise=0.5)
    snmf = made(rows, features=8, share=0.4, dtype=torch.float64).snmf
    codes = snmf.encode(rows)
    exact = np.stack([nnls(snmf.factors.numpy(), row)[0] for row in rows.double().numpy()])
    assert np.abs(codes.numpy() - exact).max() < 1e-7
    assert 0 < int((codes == 0).sum()) == int((exact == 0).sum())


def test_multiplicative_steps_go_where_the_exact_codes_are():
    rows = small(noise=0.3)[2].double()
    z = torch.nn.functional.normalize(torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), dim=0)
    codes = torch.ones(len(rows), 4, dtype=torch.float64)
    for _ in range(400):
        codes = multiplied(codes, rows @ z, z.T @ z, 1e-300)
    assert torch.allclose(codes, nonnegative(rows @ z, z.T @ z), atol=2e-2)


def test_the_rows_it_was_made_of_are_coded_as_they_were():
    rows = small()[2]
    result = made(rows)
    assert torch.equal(result.snmf.codes(rows).dense(), result.codes.dense())
    subset = result.snmf.encode(rows, [3, 0])
    assert torch.equal(subset, result.codes.dense()[:, [3, 0]])
    assert torch.allclose(result.snmf.decode(result.codes), result.snmf(rows), atol=1e-6)


def test_a_row_is_coded_the_same_alone():
    rows = small(noise=0.5)[2]
    snmf = made(rows, features=8, share=0.4).snmf
    together = snmf.encode(rows)
    assert all(torch.allclose(snmf.encode(rows[i : i + 1])[0], together[i], atol=1e-5) for i in range(0, 120, 7))


def test_twins_and_zero_factors_get_finite_codes():
    snmf = SNMF(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    codes = snmf.encode(torch.tensor([[2.0, 1.0], [0.0, 0.0]]))
    assert snmf.decode(codes).tolist() == [[2, 0], [0, 0]]
    assert codes[:, 2].tolist() == [0, 0]


# --- odd rows


def test_zero_rows_and_silent_columns_stay_zero():
    _, _, rows = small()
    rows[::7] = 0
    rows[:, [2, 9]] = 0
    result = made(rows)
    assert result.codes.active[::7].tolist() == [0] * len(rows[::7])
    assert not result.snmf.directions[:, [2, 9]].any()
    assert result.report.diagnostics["zero rows"] == len(rows[::7])
    assert result.report.diagnostics["silent columns"] == 2
    assert (result.snmf.directions != 0).sum(1).tolist() == [6] * 4


@pytest.mark.parametrize("init", ["kmeans", "random", "svd"])
def test_more_factors_than_the_rank_are_finite_and_said(init):
    _, _, rows = small(features=2, noise=0.0)
    result = made(rows, features=9, share=None, init=init)
    assert bool(result.snmf.directions.isfinite().all())
    assert bool(result.codes.values.isfinite().all())
    assert result.report.diagnostics["error"] < 1e-3


def test_the_same_row_many_times():
    row = torch.tensor([[1.0, -2.0, 0.5]])
    result = made(row.repeat(20, 1), features=2, share=None)
    assert result.report.diagnostics["error"] < 1e-6
    assert "cosine above 0.99" in " ".join(result.report.words) or result.report.diagnostics["dead factors"]


def test_sixteen_bits_are_promoted():
    rows = small()[2].bfloat16()
    half, full = made(rows), made(rows.float())
    assert half.snmf.dtype == torch.float32
    assert torch.equal(half.snmf.directions, full.snmf.directions)


# --- streams, stores, seeds


def test_read_in_small_pieces_it_is_the_same(monkeypatch):
    rows = small()[2]
    whole = made(rows, dtype=torch.float64)
    monkeypatch.setattr(semi_nmf, "PIECE", 17)
    monkeypatch.setattr(semi_nmf, "HELD", 0)
    parts = made(rows, dtype=torch.float64)
    assert whole.report.diagnostics["rows in memory"]
    assert not parts.report.diagnostics["rows in memory"]
    assert float((whole.snmf.directions - parts.snmf.directions).abs().max()) < 1e-9
    assert float((whole.codes.dense() - parts.codes.dense()).abs().max()) < 1e-9


def test_a_store_gives_the_same_bits_as_memory(tmp_path):
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    store = act.capture(model, testing.texts(4), [SITE], to=tmp_path / "x.acts", progress=False)
    kept = store[SITE]
    live = Recording({SITE: Activations(kept.tensor.clone(), kept.axes, site=SITE, index=kept.index)}, store.rows, dict(store.provenance))
    here, there = (factorise(r, SITE, features=3, share=0.2, progress=False) for r in (live, store))
    assert torch.equal(here.snmf.directions, there.snmf.directions)
    assert torch.equal(here.codes.values, there.codes.values)
    assert here.snmf.origin.weight_hash == there.snmf.origin.weight_hash != ""


def test_a_seed_repeats_and_kinds_are_left_out():
    rows = small()[2]
    assert torch.equal(made(rows, init="random").snmf.directions, made(rows, init="random").snmf.directions)
    rows[0] *= 1e4
    kinds = ["bos", *["token"] * (len(rows) - 1)]
    found = factorise(testing.recording_of({SITE: rows}, kinds=kinds)[SITE], features=4, share=0.2, restarts=1, steps=40, progress=False)
    assert torch.equal(found.snmf.directions, made(rows[1:]).snmf.directions)
    assert found.rows.tolist() == list(range(1, 120))


def test_it_is_a_dictionary_that_can_be_kept(tmp_path):
    snmf = SNMF(torch.eye(3), Origin(site=SITE, exclude=("bos",)))
    again = SNMF.load(snmf.save(tmp_path / "factors.safetensors"))
    assert as_dictionary(again) is again
    assert torch.equal(again.directions, snmf.directions)
    assert again.origin == snmf.origin
    (tmp_path / "other").write_text("no")
    with pytest.raises(InputError, match=r"other holds no factors: .* Write them with snmf.save"):
        SNMF.load(tmp_path / "other")


# --- what they write


@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_residual_directions_are_what_the_model_adds(family):
    model = act.wrap(*testing.tiny(family), certify=False)
    inputs = testing.images(1) if family == "vit" else testing.texts(1)
    width = model.sites[SITE].shape[-1]
    snmf = SNMF(torch.randn(2, width, generator=torch.Generator().manual_seed(0)), Origin(site=SITE))
    plain = model.run(inputs, read="blocks.1.mlp.out")["blocks.1.mlp.out"].tensor
    moved = model.run(inputs, read="blocks.1.mlp.out", edits=[act.edits.Add(SITE, snmf.directions[1], 2.0)])["blocks.1.mlp.out"].tensor
    assert torch.allclose(moved - plain, 2 * residual_directions(snmf, model)[1].expand_as(plain), atol=1e-4)
    assert torch.equal(residual_directions(snmf, model, at="mlp.out"), residual_directions(snmf, model))


def test_behind_a_norm_the_direction_at_the_stream_is_that_of_the_norm():
    model = act.wrap(*testing.tiny("gemma2"), certify=False)
    width = model.sites[SITE].shape[-1]
    snmf = SNMF(torch.randn(2, width, generator=torch.Generator().manual_seed(0)), Origin(site=SITE))
    edit = act.edits.Set(SITE, snmf.directions[0])
    read = model.run(testing.texts(1), read=["blocks.1.mlp.proj", "blocks.1.mlp.out"], edits=[edit])
    for at in ("mlp.proj", "mlp.out"):
        assert torch.allclose(read[f"blocks.1.{at}"].tensor[2], residual_directions(snmf, model, at=at)[0], atol=1e-5)


def test_only_neurons_are_written_through_the_projection():
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    with pytest.raises(InputError, match=r"Only factors of neurons .* reads blocks.1.resid_post"):
        residual_directions(SNMF(torch.eye(32), Origin(site="blocks.1.resid_post")), model)
    with pytest.raises(InputError, match=r"at='stream' is not known; choose 'mlp.proj' or 'mlp.out'"):
        residual_directions(SNMF(torch.eye(3), Origin(site=SITE)), model, at="stream")
    with pytest.raises(InputError, match=r"reads \d+ neurons; the factors have 3"):
        residual_directions(SNMF(torch.eye(3), Origin(site=SITE)), model)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": 121}, r"120 rows; asked for 121 factors"),
        ({"share": 0.0}, r"share=0.0: each factor keeps a share"),
        ({"init": "pca"}, r"No start called 'pca'. Known: kmeans, random, svd"),
        ({"init": "svd", "features": 31}, r"30 of them; asked for 31 features"),
        ({"steps": 0}, r"steps=0 and restarts=1: at least one of each"),
        ({"dtype": torch.bfloat16}, r"computes in torch.float32 or torch.float64"),
    ],
)
def test_what_cannot_be_factorised_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        made(small()[2], **options)


def test_refusals_that_need_other_rows(monkeypatch):
    with pytest.raises(InputError, match=r"All 120 rows of blocks.1.mlp.post are zero"):
        made(torch.zeros(120, 30))
    with pytest.raises(InputError, match=r"a row for each of 4 features; 3 rows are not all zero"):
        made(torch.eye(30)[:3].repeat(2, 1).index_fill_(0, torch.tensor([3, 4, 5]), 0))
    rows = small()[2]
    rows[5, 1] = torch.nan
    with pytest.raises(NotFinite, match=r"Row 5 of blocks.1.mlp.post"):
        made(rows)
    recording = testing.recording_of({SITE: small()[2], "blocks.2.mlp.post": small()[2]})
    with pytest.raises(InputError, match=r"Which site\?"):
        factorise(recording, features=2)
    with pytest.raises(InputError, match=r"names several layers; factorise one site"):
        factorise(recording, "blocks.*.mlp.post", features=2)
    with pytest.raises(UnknownSite, match=r"blocks.9"):
        factorise(recording, "blocks.9.mlp.post", features=2)
    with pytest.raises(InputError, match=r"table 'feature d_in' of floats"):
        SNMF(torch.ones(3))
    with pytest.raises(InputError, match=r"A factor holds NaN"):
        SNMF(torch.full((2, 2), torch.nan))
    monkeypatch.setattr(semi_nmf, "CODES", 100)
    with pytest.raises(CapacityError, match=r"Coefficients of 120 rows and 4 features"):
        made(small()[2])
