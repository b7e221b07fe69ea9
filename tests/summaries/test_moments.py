"""Moments and Gram against scipy and numpy, on numbers where a careless sum fails."""

import numpy as np
import pytest
import torch
from scipy import stats

from activarium.activations import Activations
from activarium.errors import NotFinite
from activarium.summaries import Gram, Moments


def site(values: torch.Tensor) -> Activations:
    return Activations(values, "row d_mlp", site="blocks.0.mlp.post")


def test_against_scipy_in_uneven_pieces():
    generator = np.random.default_rng(0)
    values = generator.gamma(2.0, size=(1000, 7)) * np.array([1, 1e3, 1e-3, 1, 1, 1, 5]) + np.array([0, 0, 0, 1e4, -3, 0, 0])
    made = Moments()
    for piece in np.split(values, [1, 2, 300, 301, 980]):
        made.update(site(torch.from_numpy(piece)))
    assert np.allclose(made.mean.numpy(), values.mean(0), rtol=1e-13)
    assert np.allclose(made.variance.numpy(), values.var(0), rtol=1e-10)
    assert np.allclose(made.skewness.numpy(), stats.skew(values), rtol=1e-9)
    assert np.allclose(made.kurtosis.numpy(), stats.kurtosis(values, fisher=False), rtol=1e-9)
    assert np.allclose(made.mean_magnitude.numpy(), np.abs(values).mean(0), rtol=1e-13)
    assert np.allclose(made.mean_square.numpy(), (values**2).mean(0), rtol=1e-12)
    grid = made.result()
    assert grid.axes == ("quantity", "d_mlp")
    assert grid.values[-2].tolist() == values.min(0).tolist()
    assert grid.values[-1].tolist() == values.max(0).tolist()


def test_a_small_spread_on_a_large_offset_is_not_lost():
    # The textbook sum of squares in float32 gives a variance of zero, or a negative one.
    values = torch.tensor([[10000.0], [10000.5], [10001.0]])
    made = Moments().update(site(values[:1])).update(site(values[1:]))
    assert made.variance.item() == pytest.approx(1 / 6, rel=1e-12)


def test_wide_batches_are_summed_in_slices_with_the_same_answer():
    values = torch.randn(3000, 40, generator=torch.Generator().manual_seed(0))  # more rows than one slice takes
    made = Moments().update(site(values))
    assert torch.allclose(made.variance, values.double().var(0, correction=0), rtol=1e-12)


def test_what_never_varies_has_no_shape():
    made = Moments().update(site(torch.full((5, 2), 0.1)))
    assert made.variance.tolist() == [0.0, 0.0]
    assert made.kurtosis.isnan().all()


def test_overflow_is_refused_by_name():
    values = torch.tensor([[65504.0, 1.0]], dtype=torch.float16) * 2
    with pytest.raises(NotFinite, match=r"Moments of blocks\.0\.mlp\.post met 0 NaN and 1 infinite numbers.*float16 ends at 65504"):
        Moments().update(site(values))
    with pytest.raises(NotFinite, match="met 1 NaN"):
        Gram().update(site(torch.tensor([[float("nan"), 1.0]])))


def test_large_finite_numbers_are_no_overflow():
    assert Moments().update(site(torch.full((4, 2), 1e308, dtype=torch.float64))).state["least"].tolist() == [1e308, 1e308]


def test_gram_against_numpy():
    values = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) + 3
    made = Gram().update(site(values[:50])).update(site(values[50:]))
    expected = np.cov(values.double().numpy().T, bias=True)
    assert np.allclose(made.covariance().numpy(), expected, rtol=1e-11)
    assert np.allclose(made.spectrum(), np.linalg.eigvalsh(expected)[::-1], rtol=1e-10)
    assert np.allclose(made.covariance(without=[2]).numpy(), np.delete(np.delete(expected, 2, 0), 2, 1), rtol=1e-11)


def test_ranks_of_planted_directions():
    flat = torch.zeros(8, 5)
    flat[torch.arange(4), torch.arange(4)], flat[torch.arange(4, 8), torch.arange(4)] = 1.0, -1.0
    made = Gram().update(site(flat))  # four directions with equal variance, mean zero
    assert made.participation_ratio() == pytest.approx(4)
    assert made.effective_rank() == pytest.approx(4)
    flat[0, 4], flat[1, 4] = 1000.0, -1000.0  # one massive pair
    spiked = Gram().update(site(flat))
    assert spiked.participation_ratio() < 1.01
    assert spiked.participation_ratio(without=[4]) == pytest.approx(4)
    assert np.isnan(Gram().update(site(torch.ones(3, 2))).effective_rank())
