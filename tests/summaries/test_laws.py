"""What every summary promises: any split, order and merging of the same rows ends in the same state."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activarium.activations import Activations
from activarium.errors import AxisError, CapacityError, InputError
from activarium.rows import Rows
from activarium.summaries import CoActivation, Count, Gram, Magnitudes, Moments, Quantiles, Summary, TopRows

WIDTH = 4
KINDS = [Count(), Moments(), Magnitudes(), Quantiles(keep=5), TopRows(count=3), TopRows(count=2, magnitude=True), Gram(), CoActivation()]
SUMS = (Moments, Gram)  # sums in float64: equal to rounding; all others to the bit
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def site(values: torch.Tensor, names: np.ndarray | None = None, axes: str = "row d_mlp") -> Activations:
    """Rows with example and position; by default all of example 0."""
    names = np.stack([np.zeros(len(values), int), np.arange(len(values))], 1) if names is None else names
    return Activations(values, axes, site="blocks.0.mlp.post", index=Rows({"example": names[:, 0], "position": names[:, 1]}))


@st.composite
def tables(draw: st.DrawFn) -> tuple[torch.Tensor, np.ndarray]:
    """Values with many ties, zeros of both signs and large steps; rows of several examples."""
    rows = draw(st.integers(1, 24))
    numbers = st.sampled_from([0.0, -0.0, 1.0, 1.0, 0.5, -2.0, 3.0, 1e-3, 2000.0, 0.1])
    values = draw(st.lists(st.lists(numbers, min_size=WIDTH, max_size=WIDTH), min_size=rows, max_size=rows))
    lengths = draw(st.lists(st.integers(1, 6), min_size=rows, max_size=rows))
    names = np.array([(e, p) for e, n in enumerate(lengths) for p in range(n)])[:rows]
    return torch.tensor(values).to(draw(st.sampled_from(DTYPES))), names


def close(a: Summary, b: Summary) -> bool:
    """Equal to the rounding of float64, at the scale of the numbers that were added up."""
    if type(a) not in SUMS:
        return a == b
    assert a.state.keys() == b.state.keys()
    scale = 2000.0
    powers = {"mean": 1, "total": 1, "magnitude": 1, "m2": 2, "gram": 2, "m3": 3, "m4": 4}
    return all(
        torch.equal(a.state[k], b.state[k])
        if k not in powers
        else torch.allclose(a.state[k], b.state[k], rtol=1e-12, atol=1e-12 * a.rows * scale ** powers[k])
        for k in a.state
    )


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@settings(max_examples=30, deadline=None)
@given(table=tables(), data=st.data())
def test_any_split_any_order_and_any_tree_of_merges(kind: Summary, table: tuple[torch.Tensor, np.ndarray], data: st.DataObject):
    values, names = table
    whole = kind.fresh().update(site(values, names))
    # Whole examples move, as they do between batches.
    examples = data.draw(st.permutations(sorted(set(names[:, 0].tolist()))))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(examples)), max_size=4)))
    parts = []
    for low, high in zip([0, *cuts], [*cuts, len(examples)], strict=True):
        order = np.concatenate([np.flatnonzero(names[:, 0] == e) for e in examples[low:high]] or [np.empty(0, int)])
        worker = kind.fresh()
        for at in np.array_split(order, data.draw(st.integers(1, 3))):
            worker.update(site(values[torch.as_tensor(at)], names[at]))
        parts.append(worker)
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [parts[i].merge(parts[i + 1])]
    assert close(parts[0], whole)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_merging_leaves_the_other_as_it_was(kind: Summary):
    values = torch.arange(24.0).reshape(6, WIDTH)
    names = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])
    a, b = kind.fresh().update(site(values[:3], names[:3])), kind.fresh().update(site(values[3:], names[3:]))
    before = {k: v.clone() for k, v in b.state.items()}
    a.merge(b)
    a.update(site(values[:3] * 2, names[:3] + np.array([5, 0])))
    assert b.state.keys() == before.keys()
    assert all(torch.equal(b.state[k], before[k]) for k in before)
    empty = kind.fresh().merge(b)
    empty.update(site(values[:3], names[:3]))
    assert all(torch.equal(b.state[k], before[k]) for k in before)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_an_empty_summary_changes_nothing_and_says_so(kind: Summary):
    values = torch.ones(2, WIDTH)
    full = kind.fresh().update(site(values))
    assert full.merge(kind.fresh()) == kind.fresh().update(site(values))
    assert kind.fresh().merge(full) == full
    with pytest.raises(InputError, match=r"has seen no row yet\. Update it first"):
        kind.fresh().result()


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_heads_are_counted_flat_and_shown_in_their_axes(kind: Summary):
    values = torch.arange(1.0, 13.0).reshape(2, 3, 2)
    made = kind.fresh().update(site(values, axes="row head d_head"))
    assert (made.width, made.shape, made.axes) == (6, (3, 2), ("head", "d_head"))
    flat = kind.fresh().update(site(values.reshape(2, 6)))
    assert all(torch.equal(made.state[key], flat.state[key]) for key in flat.state)
    result = made.result()
    if isinstance(made, (Count, Moments, Quantiles)):
        assert result.axes[-2:] == ("head", "d_head")


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_other_widths_are_refused(kind: Summary):
    made = kind.fresh().update(site(torch.ones(2, WIDTH)))
    with pytest.raises(AxisError, match=r"counts rows of shape \(4,\); found \(5,\).*Summarise each width on its own"):
        made.update(site(torch.ones(2, WIDTH + 1)))
    with pytest.raises(AxisError, match=r"counts rows of shape \(4,\); found \(5,\)"):
        made.merge(kind.fresh().update(site(torch.ones(2, WIDTH + 1))))
    with pytest.raises(AxisError, match="are different summaries"):
        made.merge(Moments() if not isinstance(made, Moments) else Gram())


def test_other_settings_are_refused():
    with pytest.raises(InputError, match="Merge only those made alike"):
        TopRows(count=3).merge(TopRows(count=4))


def test_sites_without_rows_are_refused():
    pattern = Activations(torch.ones(2, 3, 3), "head query key", site="blocks.0.attn.pattern")
    with pytest.raises(AxisError, match="a summary goes over rows"):
        Moments().update(pattern)


@pytest.mark.parametrize("kind", [Quantiles(), TopRows(), Count()], ids=repr)
def test_summaries_that_name_rows_need_a_table(kind: Summary):
    with pytest.raises(InputError, match="names examples and positions"):
        kind.fresh().update(Activations(torch.ones(2, 3), "row d_mlp"))


def test_a_state_that_would_not_fit_is_refused_before_it_is_made():
    with pytest.raises(CapacityError, match=r"Gram of wide with 100,000 numbers a row takes 160,000,000,000 bytes"):
        Gram().update(Activations(torch.zeros(1, 100_000), "row vocab", site="wide"))
