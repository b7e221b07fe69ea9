"""Quantiles and TopRows: which rows are kept, by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activarium.activations import Activations
from activarium.errors import InputError
from activarium.rows import Rows
from activarium.summaries import Quantiles, TopRows


def site(values: torch.Tensor, names: np.ndarray | None = None) -> Activations:
    names = np.stack([np.arange(len(values)) // 7, np.arange(len(values)) % 7], 1) if names is None else names
    return Activations(values, "row d_mlp", site="blocks.0.mlp.post", index=Rows({"example": names[:, 0], "position": names[:, 1]}))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_top_rows_by_brute_force(data: st.DataObject):
    rows, count = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 5))
    magnitude = data.draw(st.booleans())
    numbers = st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.0, 2.0, float("nan"), float("inf"), 1e-45])
    values = torch.tensor(data.draw(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=rows, max_size=rows)))
    made, names = TopRows(count, magnitude), np.stack([np.arange(rows) // 7, np.arange(rows) % 7], 1)
    order = data.draw(st.permutations(sorted(set(names[:, 0].tolist()))))
    for example in order:  # one example at a time, in any order
        here = np.flatnonzero(names[:, 0] == example)
        made.update(site(values[torch.as_tensor(here)], names[here]))
    for feature in range(2):
        scores = values[:, feature].abs() if magnitude else values[:, feature]
        listed = [(-float(s), *n) for s, n in zip(scores, names.tolist(), strict=True) if float(s) > 0]
        assert [(-s, e, p) for s, e, p in made.of(feature)] == sorted(listed)[:count]


def test_nan_hides_nothing():
    values = torch.tensor([[1.0, -4.0], [float("nan"), 2.0], [3.0, float("nan")], [2.0, 1.0]])
    for made in (TopRows(1), TopRows(1, magnitude=True)):
        made.update(site(values)).update(site(values + 1, np.array([[9, p] for p in range(4)])))
        assert made.of(0) == [(4.0, 9, 2)]
    assert made.of(1) == [(4.0, 0, 0)]


def test_top_rows_in_context():
    words = np.array("Anna gave Tom the old book .".split(), dtype=object)
    rows = Rows({"example": np.zeros(7, int), "position": np.arange(7), "text": words})
    values = torch.tensor([[0.0, -1.0], [5.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 9.0], [0.0, 0.0]])
    made = TopRows(count=2).update(Activations(values, "row d_mlp", site="blocks.0.mlp.post", index=rows))
    ranking = made.result(rows)
    assert ranking.names == ("1", "0", "0")
    assert ranking.values.tolist() == [9.0, 5.0, 1.0]
    assert ranking.columns["context"][1] == "Anna [gave] Tom the old book ."
    assert made.examples == [0]
    with pytest.raises(InputError, match="has features 0 to 1; found 2"):
        made.of(2)


def test_quantiles_are_exact_while_every_row_is_kept():
    values = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    made = Quantiles(keep=100).update(site(values))
    assert made.rank_error == 0.0
    assert torch.equal(made.quantile(0.5), values.median(0).values)
    assert torch.equal(made.quantile([0.01, 1.0])[1], values.amax(0))


def test_the_sample_is_uniform_and_the_bound_holds():
    # Values that grow with position and example: a sample that preferred early rows would be off at once.
    total, inside = 6000, 0
    values = torch.arange(float(total))[:, None]
    for seed in range(40):
        made = Quantiles(keep=256, seed=seed)
        for start in range(0, total, 700):
            names = np.stack([np.arange(start, min(start + 700, total)) // 7, np.arange(start, min(start + 700, total)) % 7], 1)
            made.update(site(values[start : start + 700], names))
        kept = np.sort(made.state["values"][:, 0].numpy()) / total
        gap = np.abs(kept - (np.arange(256) + 0.5) / 256).max()  # Kolmogorov's distance to the uniform law
        inside += gap <= made.rank_error
    assert made.rank_error == pytest.approx(0.0849, abs=1e-4)
    assert inside >= 36  # 95 % promised, and the bound is loose; the seeds are fixed


def test_settings_that_make_no_sense_are_refused():
    for wrong in (lambda: Quantiles(keep=0), lambda: TopRows(count=0), lambda: Quantiles().update(site(torch.ones(2, 1))).quantile(2.0)):
        with pytest.raises(InputError, match="wanted at least one|lies between 0 and 1"):
            wrong()
