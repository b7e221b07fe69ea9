"""feature_neighbours: angles by hand, planted groups and duplicates, correlation as numpy has it, the random control, refusals."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features.firing_together import coded, together
from activarium.analyses.features.geometry import close_groups, groups, nearest, pairs_above, random_directions, unit_directions
from activarium.dictionaries import SAE, Design, FeatureDictionary, Origin
from activarium.errors import InputError, NotFinite, UnknownSite
from activarium.testing import recording_of

feature_neighbours = act.analyses.feature_neighbours
SITE = "blocks.0.resid_post"


def dictionary(directions: torch.Tensor, encoder: torch.Tensor | None = None, bias: float = 0.0) -> SAE:
    read = directions if encoder is None else encoder
    weights = {
        "encoder": read.clone(),
        "W_dec": directions.clone(),
        "b_enc": torch.full((len(read),), bias),
        "b_dec": torch.zeros(read.shape[1]),
    }
    return SAE.of_weights(Design(read.shape[1], len(read)), weights, Origin(site=SITE))


def at_angles(*degrees: float) -> torch.Tensor:
    turned = torch.tensor(degrees).deg2rad()
    return torch.stack([turned.cos(), turned.sin()], 1)


def test_neighbours_by_hand():
    report = feature_neighbours(dictionary(3 * at_angles(0, 20, 90, 130)), threshold=0.9)
    found = report["nearest"].to_frame().sort_values("feature")
    assert found["neighbour"].tolist() == [1, 0, 3, 2]
    assert found["cosine"].to_numpy() == pytest.approx(np.cos(np.deg2rad([20, 20, 40, 40])), abs=1e-6)
    assert found["opposite"].to_numpy() == pytest.approx(np.cos(np.deg2rad([130, 110, 90, 130])), abs=1e-6)
    assert report["pairs"].names == ("0, 1",)
    assert report["clusters"].names == ("0, 1",)
    assert report["clusters"].columns["mean cosine"] == pytest.approx([np.cos(np.deg2rad(20))], abs=1e-6)
    assert not len(report["duplicates"].names)


def test_planted_groups_and_duplicates_are_found_exactly():
    generator = torch.Generator().manual_seed(0)
    base = torch.eye(40, 64)
    third = torch.nn.functional.normalize(base[3] + 0.4 * base[30], dim=0)
    planted = torch.cat([base[:20], 5 * base[:2], third[None], base[7:8], base[7:8] * 0.1])
    order = torch.randperm(len(planted), generator=generator)
    place = {int(old): new for new, old in enumerate(order.tolist())}
    report = feature_neighbours(dictionary(planted[order]), threshold=0.8, mapped=10)
    doubled = {tuple(sorted(place[i] for i in group)) for group in ((0, 20), (1, 21), (7, 23, 24))}
    near = doubled | {tuple(sorted(place[i] for i in (3, 22)))}
    read = {name: {tuple(map(int, n.split(", "))) for n in report[name].names} for name in ("duplicates", "clusters")}
    assert read == {"duplicates": doubled, "clusters": near}
    assert report["clusters"].values.tolist() == [3, 2, 2, 2]
    assert len(report["map"].names) == 10
    numbers = report["map"].diagnostics["cluster"]
    assert all(numbers[list(report["map"].diagnostics["feature"]).index(place[i])] == 0 for i in (7, 23, 24))


def test_nearest_is_a_plain_loop_and_equal_ones_come_in_order():
    rows = unit_directions(torch.randn(30, 6, generator=torch.Generator().manual_seed(1)))
    cosine, number = nearest(rows, count=4)
    table = (rows @ rows.T).numpy().copy()
    np.fill_diagonal(table, -np.inf)
    assert (number == np.argsort(-table, axis=1, kind="stable")[:, :4]).all()
    assert cosine == pytest.approx(-np.sort(-table, axis=1)[:, :4], abs=1e-6)
    same = torch.ones(5, 1)
    assert nearest(same, count=2)[1].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    first, second, size = pairs_above(rows, rows, 0.5)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {
        (i, j) for i in range(30) for j in range(30) if (rows @ rows.T)[i, j] >= 0.5
    }
    assert (size >= 0.5).all()


def test_blocks_do_not_change_what_is_nearest(monkeypatch):
    rows = random_directions(50, 8, 3)
    whole = nearest(rows, count=3)
    monkeypatch.setattr("activarium.analyses.features.geometry.AT_ONCE", 400)
    parts = nearest(rows, count=3)
    assert (whole[1] == parts[1]).all()
    assert whole[0] == pytest.approx(parts[0], abs=1e-6)


def test_groups_are_connected_components():
    assert [g.tolist() for g in groups(np.array([[4, 5], [1, 2], [2, 3]]), 7)] == [[1, 2, 3], [4, 5]]
    assert groups(np.empty((0, 2), int), 3) == []


def test_a_chain_is_no_close_group():
    """0°, 30°, 60°, 90°: every link is at cosine .87, the ends are at 0. By averages the chain falls into two pairs."""
    rows = at_angles(0, 29, 60, 89, 180)
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    found, whole = close_groups(rows, pairs, 0.8)
    assert [g.tolist() for g in found] == [[0, 1], [2, 3]]
    assert whole == 0
    assert [g.tolist() for g in close_groups(rows, pairs, 0.4)[0]] == [[0, 1, 2, 3]]


def test_correlation_is_that_of_numpy_also_over_pieces():
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(300, 10, generator=generator)
    made = dictionary(torch.randn(14, 10, generator=generator), bias=-0.7)
    recording = recording_of({SITE: rows}, kinds=["bos"] * 10 + ["token"] * 290)
    shared = together(coded([made], recording, exclude=("bos",))[0], rows=64)
    codes = made.encode(rows[10:]).double().numpy()
    assert shared.rows == 290
    assert shared.fires[0].tolist() == (codes != 0).sum(0).tolist()
    first, second = (x.ravel() for x in np.indices((14, 14)))
    assert shared.correlation(first, second).reshape(14, 14) == pytest.approx(np.corrcoef(codes.T), abs=1e-9)
    expected = np.corrcoef(codes.T)
    np.fill_diagonal(expected, -2)
    best, number = shared.strongest()
    assert (number == expected.argmax(1)).all()
    assert best == pytest.approx(expected.max(1), abs=1e-9)
    report = feature_neighbours(made, recording, exclude=("bos",))
    table = report["nearest"].to_frame().set_index("feature").sort_index()
    assert table["correlation"].to_numpy() == pytest.approx(
        [np.corrcoef(codes[:, i], codes[:, n])[0, 1] for i, n in enumerate(table["neighbour"])], abs=1e-9
    )


def test_features_that_never_change_have_no_correlation():
    made = dictionary(torch.eye(3))
    rows = torch.tensor([[1.0, 0.0, 2.0], [1, 0, 3], [1, 0, 4]])
    shared = together(coded([made], recording_of({SITE: rows}))[0])
    assert np.isnan(shared.correlation(np.array([0, 1]), np.array([2, 2]))).all()
    assert shared.strongest()[1].tolist() == [-1, -1, -1]


def test_random_directions_are_the_control():
    """A random dictionary looks like its control; planted directions that repel one another lie below it."""
    report = feature_neighbours(dictionary(random_directions(128, 32, 99)), mapped=0)
    curves = report["distribution"].curves
    middle = report["distribution"].x
    a, b = (float((curves[n] * middle).sum()) for n in ("directions", "random directions"))
    assert a == pytest.approx(b, abs=0.02)
    assert all(c.sum() == pytest.approx(1) for c in curves.values())
    assert len(report["clusters"].names) <= 2
    apart = feature_neighbours(dictionary(torch.eye(32)), mapped=0)
    assert float((apart["distribution"].curves["directions"] * middle).sum()) < a - 0.2


def test_directions_and_encoder_are_told_apart_and_a_dictionary_may_have_no_encoder():
    report = feature_neighbours(dictionary(at_angles(0, 10, 90), encoder=at_angles(0, 90, 180)))
    table = report["nearest"].to_frame().set_index("feature").sort_index()
    assert table["encoder cosine"].to_numpy()[:2] == pytest.approx([0, 0], abs=1e-6)

    class Bare(FeatureDictionary):
        origin, d_in = Origin(), 2
        directions = at_angles(0, 10, 90)

        def encode(self, x, features=None):
            return x @ self.directions.T

        def decode(self, feature_acts):
            return feature_acts @ self.directions

    bare = feature_neighbours(Bare())
    assert "encoder cosine" not in bare["nearest"].columns
    assert "encoder" not in bare["distribution"].curves


def test_a_zero_direction_is_near_nothing():
    report = feature_neighbours(dictionary(torch.tensor([[1.0, 0.0], [0, 0], [0.9, 0.1]])), threshold=0.5)
    assert report["clusters"].names == ("0, 2",)
    assert report.diagnostics["zero directions"] == 1


def test_the_same_seed_gives_the_same_map():
    made = dictionary(random_directions(40, 12, 7))
    one, two = (feature_neighbours(made, seed=3)["map"].points for _ in range(2))
    assert np.array_equal(one, two)
    assert np.isfinite(one).all()


def test_refusals():
    made = dictionary(at_angles(0, 10, 90))
    with pytest.raises(InputError, match="neighbours need two"):
        feature_neighbours(dictionary(at_angles(0)))
    with pytest.raises(InputError, match="threshold=1.5"):
        feature_neighbours(made, threshold=1.5)
    with pytest.raises(InputError, match="duplicate=0"):
        feature_neighbours(made, duplicate=0)
    with pytest.raises(NotFinite, match="Feature 1 has NaN"):
        unit_directions(torch.tensor([[1.0, 0], [torch.nan, 0]]))
    with pytest.raises(UnknownSite, match="site in this recording"):
        feature_neighbours(made, recording_of({"blocks.1.resid_post": torch.ones(3, 2)}))
    with pytest.raises(InputError, match="is no dictionary"):
        feature_neighbours(3)
    other = SAE.of_weights(made.design, dict(made.named_parameters()), Origin(site="blocks.1.resid_post"))
    with pytest.raises(InputError, match="of one site only"):
        coded([made, other], recording_of({SITE: torch.ones(3, 2)}))
