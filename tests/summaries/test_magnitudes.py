"""Magnitudes: exact for 16-bit floats, within its stated width for the others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activarium.activations import Activations
from activarium.errors import InputError
from activarium.summaries import Magnitudes


def site(values: torch.Tensor) -> Activations:
    return Activations(values, "row d_mlp", site="blocks.0.mlp.post")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_every_quantile_is_exact_for_16_bit_floats(dtype: torch.dtype, data: st.DataObject):
    numbers = st.floats(-6e4, 6e4, width=16)
    values = torch.tensor(data.draw(st.lists(numbers, min_size=1, max_size=40))).to(dtype)[:, None]
    made, ordered = Magnitudes().update(site(values)), values.abs().double().flatten().sort().values.tolist()
    assert made.exact
    for i, value in enumerate(ordered):
        assert made.quantile((i + 1) / len(ordered)) == (value, value)
    assert made.median == float(values.abs().float().median())
    assert made.zeros == int((values == 0).sum())
    threshold = data.draw(st.sampled_from(ordered))
    share = sum(v < threshold for v in ordered) / len(ordered)
    assert made.share_below(threshold) == (share, share)


def test_float32_lies_in_its_bin_and_the_bin_is_as_narrow_as_stated():
    values = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * 100
    made, ordered = Magnitudes().update(site(values)), values.abs().double().flatten().sort().values.numpy()
    assert not made.exact
    for share in (0.001, 0.1, 0.5, 0.9, 0.999, 1.0):
        low, high = made.quantile(share)
        truth = ordered[max(int(np.ceil(share * len(ordered))) - 1, 0)]
        assert low <= truth < high
        assert (high - low) / low <= 2**-7
    least, most = made.share_below(50.0)
    assert least <= (ordered < 50).mean() <= most
    assert most - least < 0.01


def test_infinity_and_nan_have_bins_of_their_own():
    values = torch.tensor([[1.0, float("inf")], [float("nan"), -float("inf")]], dtype=torch.float16)
    made = Magnitudes().update(site(values))
    assert (made.infinite, made.nan, made.zeros) == (2, 1, 0)
    assert made.quantile(1 / 3) == (1.0, 1.0)
    assert made.largest == float("inf")
    notes = made.result().diagnostics
    assert (notes["infinite"], notes["nan"]) == (2, 1)


def test_layouts_do_not_mix():
    a, b = (Magnitudes().update(site(torch.ones(2, 2, dtype=d))) for d in (torch.float16, torch.bfloat16))
    with pytest.raises(InputError, match="Run both in one dtype"):
        a.merge(b)
    mixed = Magnitudes().update(site(torch.ones(2, 2))).merge(b)
    assert not mixed.exact  # one half was cut to the bins


def test_more_numbers_than_a_float32_counter_can_hold():
    made = Magnitudes()
    block = site(torch.ones(1 << 12, 1 << 10, dtype=torch.bfloat16))
    for _ in range(5):
        made.update(block)
    assert int(made.counts.sum()) == 5 << 22 > 1 << 24


def test_the_picture_ends_at_one():
    curve = Magnitudes().update(site(torch.tensor([[0.0, 1.0, 2.0, 4.0]]))).result()
    assert curve.x.tolist() == [0.0, 1.0, 2.0, 4.0]
    assert curve.curves["share of numbers up to here"].tolist() == [0.25, 0.5, 0.75, 1.0]


def test_a_share_outside_is_refused():
    with pytest.raises(InputError, match=r"lies between 0 and 1; found 50"):
        Magnitudes().update(site(torch.ones(2, 2))).quantile(50)
