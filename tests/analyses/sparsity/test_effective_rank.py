"""effective_rank: planted spectra, one massive row that hides them, three sources with one answer, and its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.activations import Activations
from activarium.errors import AxisError, InputError, NotFinite, UnknownSite
from activarium.results import Report
from activarium.summaries import Gram, Moments

from .recorded import cut, recording, site, table

effective_rank = act.analyses.effective_rank
TEXTS = ["the cat sat on the mat", "Anna saw a dog", "the dog ran to the house", "a book and a cat"]


def planted(sizes: list[float], rows: int = 64, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Rows with exactly these singular values and the mean zero."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, len(sizes), generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(width, len(sizes), generator=generator, dtype=torch.float64)).Q
    return left @ torch.diag(torch.tensor(sizes, dtype=torch.float64)) @ right.T


def numbers(report: Report, rows: str = "all rows") -> list[float]:
    return [report[m].curves[rows][0] for m in ("effective rank", "effective rank, centred", "participation ratio", "top direction")]


def resid(values: torch.Tensor, examples: list[int] | np.ndarray, kinds: list[str] | None = None) -> act.Recording:
    return recording([values], table(examples, kinds), "resid_post")


@pytest.mark.parametrize("count", [1, 3, 12])
def test_equal_directions_are_counted(count: int):
    report = effective_rank(resid(planted([2.0] * count), np.repeat(np.arange(8), 8)))
    assert numbers(report) == pytest.approx([count, count, count, 1 / count], rel=1e-5)


def test_unequal_ones_by_the_formulas():
    sizes = np.array([5.0, 3.0, 1.0, 0.5])
    report = effective_rank(resid(planted(sizes.tolist()), np.repeat(np.arange(8), 8)))
    share = sizes / sizes.sum()
    rank = np.exp(-(share * np.log(share)).sum())
    assert numbers(report) == pytest.approx([rank, rank, (sizes**2).sum() ** 2 / (sizes**4).sum(), 25 / (sizes**2).sum()], rel=1e-5)
    assert report["spectrum"].values[0, :4] == pytest.approx(sizes**2 / (sizes**2).sum())


def test_a_common_offset_is_a_direction_unless_centred():
    values = planted([1.0, 1.0, 1.0]) + 50.0
    rank, centred, ratio, top = numbers(effective_rank(resid(values, np.repeat(np.arange(8), 8))))
    assert rank < 1.1 and top > 0.999
    assert (centred, ratio) == pytest.approx((3, 3), rel=1e-4)


def test_one_massive_row_hides_all_and_is_left_out_with_the_first_rows():
    values = planted([1.0] * 6)
    values[0, 3] = 5000.0
    report = effective_rank(resid(values, np.repeat(np.arange(8), 8)), without=[3])
    assert numbers(report) == pytest.approx([1, 1, 1, 1], abs=0.02)
    assert report["effective rank"].curves["without first and special rows"][0] > 5.5
    assert report["participation ratio"].curves["all rows, without features"][0] > 4.5
    calm = planted([1.0] * 6)[np.arange(64) % 8 != 0]
    sizes = torch.linalg.svdvals(calm)
    share = sizes / sizes.sum()
    assert report["effective rank"].curves["without first and special rows"][0] == pytest.approx(
        float((-torch.special.xlogy(share, share)).sum().exp()), rel=1e-4
    )


def test_special_rows_are_left_out_wherever_they_stand():
    values = planted([1.0] * 6)
    values[5] = 1e4
    kinds = ["special" if i == 5 else "token" for i in range(64)]
    report = effective_rank(resid(values, np.repeat(np.arange(8), 8), kinds))
    assert report.diagnostics["rows"] == {"all rows": 64, "without first and special rows": 55}
    assert report["effective rank"].curves["without first and special rows"][0] > 5.5 > 1.1 > report["effective rank"].curves["all rows"][0]


def test_a_real_model_by_its_singular_values():
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    recorded = model.run(TEXTS, read="blocks.*.resid_post")
    report = effective_rank(recorded)
    for i, activations in enumerate(recorded["blocks.*.resid_post"].layers().values()):
        x = activations.tensor.double()
        for name, matrix in (("effective rank", x), ("effective rank, centred", x - x.mean(0))):
            sizes = torch.linalg.svdvals(matrix)
            share = sizes[sizes > 1e-9] / sizes.sum()
            assert report[name].curves["all rows"][i] == pytest.approx(float((-share * share.log()).sum().exp()), rel=1e-3)
        covariance = torch.cov(x.T)
        assert report["participation ratio"].curves["all rows"][i] == pytest.approx(
            float(covariance.trace() ** 2 / covariance.square().sum())
        )


def test_live_stored_and_surveyed_rows_give_one_answer(tmp_path: Path):
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    sites = ["blocks.*.resid_post"]
    here = effective_rank(act.capture(model, TEXTS, sites, progress=False), without=[2])
    act.capture(model, TEXTS, sites, to=tmp_path / "a.acts", progress=False)
    assert act.identical(here, effective_rank(act.open(tmp_path / "a.acts"), without=[2]))
    survey = act.survey(model, {"blocks.*.resid_post": [Gram()]}, TEXTS, progress=False)
    there = effective_rank(survey, without=[2])
    for measure in ("effective rank", "participation ratio", "top direction"):
        for name, curve in there[measure].curves.items():
            assert curve == pytest.approx(here[measure].curves[name], rel=1e-9)
    assert there.diagnostics["excluded by the survey"] == ()
    merged = act.survey(model, {"blocks.*.resid_post": [Gram()]}, TEXTS[:2], progress=False)
    merged.merge(act.survey(model, {"blocks.*.resid_post": [Gram()]}, TEXTS[2:], progress=False))
    assert effective_rank(merged)["effective rank"].curves["all rows"] == pytest.approx(here["effective rank"].curves["all rows"], rel=1e-5)


def test_the_same_bits_in_pieces():
    whole = resid(torch.randn(3000, 7, generator=torch.Generator().manual_seed(0)), np.repeat(np.arange(30), 100))
    assert act.identical(effective_rank(whole), effective_rank(cut(whole, [1, 30, 1500])))


def test_any_site_of_rows_will_do():
    values = planted([1.0, 1.0])
    assert effective_rank(site(values, table([0] * 64), "blocks.4.mlp.post"))["effective rank"].x.tolist() == [4]
    assert effective_rank(recording([values], table([0] * 64), "mlp.post"), site="mlp.post").diagnostics["site"] == "mlp.post"


def test_patches_of_images():
    model = act.wrap(*testing.tiny("vit"), certify=False)
    report = effective_rank(model.run(testing.images(), read="blocks.*.resid_post"))
    assert report.diagnostics["rows"]["without first and special rows"] < report.diagnostics["rows"]["all rows"]


def test_few_rows_are_said():
    report = effective_rank(resid(torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), [0, 0, 1, 1]))
    assert "all rows: only 4 rows for 9 features; no rank can be above 4." in report.words


def test_what_cannot_be_answered_is_refused():
    whole = resid(planted([1.0, 1.0]), [0] * 64)
    with pytest.raises(InputError, match=r"without= names feature 12; blocks.0.resid_post has features 0 to 11"):
        effective_rank(whole, without=[12])
    with pytest.raises(InputError, match="1 rows and 3 features.*at least two of each"):
        effective_rank(resid(torch.ones(1, 3), [0]))
    with pytest.raises(NotFinite, match="holds 1 NaN.*It has no singular values"):
        effective_rank(resid(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), [0, 0]))
    with pytest.raises(UnknownSite, match=r"no site 'blocks.\*.resid_post'"):
        effective_rank(recording([torch.ones(2, 2)], table([0, 1]), "mlp.post"))
    with pytest.raises(AxisError, match="needs axes 'row d_head'"):
        effective_rank(Activations(torch.ones(2, 2, 2), "row head d_head", site="blocks.0.attn.z"))
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    survey = act.survey(model, {"blocks.*.resid_post": [Moments()]}, TEXTS, progress=False)
    with pytest.raises(UnknownSite, match=r"no Gram at blocks.\*.resid_post; it has blocks.0.resid_post"):
        effective_rank(survey)
