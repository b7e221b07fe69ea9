"""Running lists against brute force: any pieces end in the same list, one entry of a group, ties by the lower row."""

import numpy as np
import pytest

from activarium.dashboards import running
from activarium.dashboards.octaves import BINS, Octaves, band_of
from activarium.dashboards.running import Running, drawn, largest_first


def entries(count=20_000, features=30, seed=0):
    random = np.random.default_rng(seed)
    feature = random.integers(0, features, count)
    size = np.round(random.gamma(1.0, 2.0, count), 1).astype(np.float32) + np.float32(0.1)  # rounded: many are equal
    return feature, size, np.arange(count) * 2 + 1


def by_hand(feature, size, row, group, most):
    found = {}
    for f in np.unique(feature):
        taken, seen = [], set()
        for i in sorted(np.flatnonzero(feature == f), key=lambda i: (-size[i], row[i])):
            if group is None or group[row[i]] not in seen:
                seen.add(None if group is None else group[row[i]])
                taken.append((float(size[i]), int(row[i])))
        found[int(f)] = taken[:most]
    return found


@pytest.mark.parametrize("piece", [1_000, 7_777, 20_000])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_largest_of_every_feature(piece, grouped, monkeypatch):
    monkeypatch.setattr(running, "PENDING", 900)
    feature, size, row = entries()
    group = np.arange(row.max() + 1) // 25 if grouped else None
    made = Running(30, 12, group)
    for start in range(0, len(row), piece):
        here = slice(start, start + piece)
        made.add(feature[here], largest_first(size[here]), row[here], size[here])
    made.settle()
    wanted = by_hand(feature, size, row, group, 12)
    for f in range(30):
        at = made.feature == f
        assert list(zip(made.value[at].tolist(), made.row[at].tolist(), strict=True)) == wanted[f]


def test_draws_are_even_and_differ_by_seed_row_and_feature():
    row = np.arange(100_000)
    order = drawn(0, row, 3).astype(np.float64) / 2**32
    assert abs(order.mean() - 0.5) < 0.01 and abs((order < 0.1).mean() - 0.1) < 0.005
    others = [drawn(1, row, 3), drawn(0, row, 4), drawn(0, row + 1, 3)]
    for other in others:
        assert abs(np.corrcoef(order, other.astype(np.float64))[0, 1]) < 0.02
    assert np.array_equal(drawn(0, row[5:7], 3), drawn(0, row, 3)[5:7])


@pytest.mark.parametrize("piece", [1, 333, 5_000])
def test_counts_of_sizes_do_not_depend_on_order_or_pieces(piece):
    random = np.random.default_rng(1)
    size = np.exp2(random.uniform(-25, 10, 5_000)).astype(np.float32)  # more octaves than there are counters
    feature = random.integers(0, 4, 5_000)
    whole, pieces = Octaves(4), Octaves(4)
    whole.add(feature, size)
    order = random.permutation(5_000)
    for start in range(0, 5_000, piece):
        here = order[start : start + piece]
        pieces.add(feature[here], size[here])
    assert np.array_equal(whole.counts, pieces.counts) and np.array_equal(whole.base, pieces.base)
    assert whole.counts.sum(1).tolist() == np.bincount(feature).tolist()
    assert whole.counts.shape == (4, BINS)


def test_edges_lie_near_the_true_quantiles_and_inside_the_ends():
    random = np.random.default_rng(2)
    values = {0: random.gamma(2, 1, 30_000), 1: np.full(100, 3.5), 2: random.uniform(1.0, 1.01, 9_000)}
    feature = np.concatenate([np.full(len(v), f) for f, v in values.items()])
    size = np.concatenate(list(values.values())).astype(np.float32)
    made = Octaves(4)
    made.add(feature, size)
    least, most = (np.array([fun(size[feature == f]) if f < 3 else 0.0 for f in range(4)], float) for fun in (np.min, np.max))
    edges = made.edges(10, least, most)
    for f in range(3):
        true = np.quantile(size[feature == f], np.linspace(0, 1, 11))
        assert np.all(np.abs(edges[f] / true - 1) < 1 / 16)
        assert np.all(np.diff(edges[f]) >= 0)
    for f in (0, 2):  # the second lies within a single counter
        shares = np.bincount(band_of(size[feature == f], feature[feature == f], edges), minlength=10) / (feature == f).sum()
        assert np.all(np.abs(shares - 0.1) < 0.03)
    assert edges[3].tolist() == [0.0] * 11
