"""Supervised dictionaries: planted additive attributes come back exactly, edits are the true counterfactuals, dependence is refused."""

import numpy as np
import pytest
import torch

from activarium.dictionaries import Codes, Origin, SupervisedDictionary
from activarium.dictionaries.attributes import dependence
from activarium.errors import InputError, NotFinite, UnknownName

VALUES = {"io": ("Anna", "Ben", "Clara"), "order": (False, True), "place": (1, 2, 3, 4)}


def planted(seed: int = 0, copies: int = 1, width: int = 16):
    """Every combination of values, `copies` times: attributes are exactly independent. Directions are centred within attributes."""
    random = torch.Generator().manual_seed(seed)
    shifts = {a: torch.randn(len(v), width, generator=random, dtype=torch.float64) for a, v in VALUES.items()}
    shifts = {a: s - s.mean(0) for a, s in shifts.items()}
    mean = torch.randn(width, generator=random, dtype=torch.float64)
    index = np.array([(i, j, k) for i in range(3) for j in range(2) for k in range(4)] * copies)
    attributes = {a: [VALUES[a][i] for i in index[:, n]] for n, a in enumerate(VALUES)}
    rows = mean + sum(shifts[a][torch.as_tensor(index[:, n])] for n, a in enumerate(VALUES))
    return rows, attributes, mean, torch.cat(list(shifts.values()))


@pytest.mark.parametrize("method", ["mean", "mse"])
def test_planted_attributes_come_back_exactly(method):
    rows, attributes, mean, shifts = planted()
    made = SupervisedDictionary.of_rows(rows, attributes, method)
    assert made.names[:4] == ("io=Anna", "io=Ben", "io=Clara", "order=False")
    assert torch.allclose(made.mean, mean, atol=1e-12)
    assert torch.allclose(made.directions, shifts, atol=1e-12)
    assert torch.allclose(made.decode(made.of_values(attributes)), rows, atol=1e-12)
    assert made.counts == (8, 8, 8, 12, 12, 6, 6, 6, 6)


def test_least_squares_are_exact_where_attributes_depend_and_means_are_not():
    rows, attributes, _, _ = planted(copies=4)
    # Ben is mostly False: the two attributes tell about one another, and no combination is missing.
    kept = [i for i in range(len(rows)) if not (i >= 24 and (attributes["io"][i] == "Ben") == attributes["order"][i])]
    few, known = rows[kept], {a: [v[i] for i in kept] for a, v in attributes.items()}
    exact = SupervisedDictionary.of_rows(few, known, "mse")
    assert torch.allclose(exact.decode(exact.of_values(known)), few, atol=1e-12)
    assert torch.allclose(exact.mean, few.mean(0), atol=1e-12)
    means = SupervisedDictionary.of_rows(few, known, "mean", allow_dependent=True)
    assert not torch.allclose(means.decode(means.of_values(known)), few, atol=0.1)
    assert means.dependence["io and order"] > 0.3 > means.dependence["io and place"]
    with pytest.raises(InputError, match=r"io and order tell about one another \(Cramér's V 0\.\d+\).*Use method='mse'"):
        SupervisedDictionary.of_rows(few, known)


def test_means_by_hand():
    rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    made = SupervisedDictionary.of_rows(rows, {"x": ["a", "b", "a", "b"], "y": [0, 0, 1, 1]})
    assert made.mean.tolist() == [1, 2]
    assert made.directions.tolist() == [[-1, 0], [1, 0], [0, -2], [0, 2]]
    assert made.encode(torch.tensor([[1.9, 0.2]])).tolist() == [[0, 1, 1, 0]]
    assert made.forward(torch.tensor([[1.9, 0.2]])).tolist() == [[2, 0]]
    assert made.codes(rows).features.tolist() == [0, 2, 1, 2, 0, 3, 1, 3]
    assert torch.equal(made.decode(Codes.of_dense(made.encode(rows))), rows)
    assert made.encode(rows, [3, 0]).tolist() == [[0, 1], [0, 0], [1, 1], [1, 0]]
    assert (made.d_in, made.d_out, made.width, made.transcoder) == (2, 2, 4, False)


def test_small_attributes_are_read_off_beside_large_ones():
    random = np.random.default_rng(0)
    big, low = random.integers(0, 3, 200), random.integers(0, 2, 200)
    rows = 4 * torch.eye(6)[big] + 0.5 * torch.eye(6)[3 + low]
    made = SupervisedDictionary.of_rows(rows, {"low": low.tolist(), "big": big.tolist()})
    assert torch.equal(made.encode(rows), made.of_values({"low": low.tolist(), "big": big.tolist()}))
    alone = SupervisedDictionary.of_rows(rows, {"low": low.tolist()})
    assert (alone.encode(rows).argmax(1).numpy() == low).mean() < 0.9, "by itself it is drowned"


def test_edits_are_the_true_counterfactuals():
    rows, attributes, _, _ = planted(copies=1)
    made = SupervisedDictionary.of_rows(rows.float(), attributes)
    order = {(a, b, c): i for i, (a, b, c) in enumerate(zip(*attributes.values(), strict=True))}
    wanted = {
        **attributes,
        "io": ["Ben" if v == "Anna" else "Anna" for v in attributes["io"]],
        "place": [5 - v for v in attributes["place"]],
    }
    true = rows[[order[key] for key in zip(*wanted.values(), strict=True)]].float()
    assert (made.edit(rows.float(), attributes, wanted) - true).abs().max() < 1e-5
    assert torch.equal(made.edit(rows.float(), attributes, attributes), rows.float())


def test_projecting_out_takes_all_along_the_direction_away():
    rows = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [3.0, 4.0], [-3.0, 4.0]])
    known = {"x": ["a", "b", "a", "b"], "y": [0, 0, 1, 1]}
    made = SupervisedDictionary.of_rows(rows, known)
    odd = torch.tensor([[5.0, 0.0]])  # further along u than its mean: subtracting u leaves 2, projecting leaves nothing
    before, after = {"x": ["a"], "y": [0]}, {"x": ["b"], "y": [0]}
    assert made.edit(odd, before, after).tolist() == [[-1, 0]]
    assert made.edit(odd, before, after, project=True).tolist() == [[-3, 0]]
    assert made.edit(odd, before, before, project=True).tolist() == [[5, 0]]


def test_a_round_trip_through_a_file(tmp_path):
    rows, attributes, _, _ = planted()
    made = SupervisedDictionary.of_rows(rows.float(), attributes, "mse", origin=Origin(site="blocks.2.resid_post", model="scribe"))
    again = SupervisedDictionary.load(made.save(tmp_path / "ioi.safetensors"))
    assert torch.equal(again.directions, made.directions) and torch.equal(again.mean, made.mean)
    assert (again.table, again.method, again.counts, again.dependence) == (made.table, made.method, made.counts, made.dependence)
    assert again.origin == made.origin
    assert torch.equal(again.of_values(attributes), made.of_values(attributes)), "values keep their types"
    Codes.of_dense(torch.eye(2)).save(tmp_path / "codes.safetensors")
    with pytest.raises(InputError, match=r"codes\.safetensors holds no supervised dictionary"):
        SupervisedDictionary.load(tmp_path / "codes.safetensors")


def test_dependence_is_zero_by_chance_and_one_where_one_follows_from_the_other():
    random = np.random.default_rng(0)
    one, other = random.integers(0, 4, 2000).tolist(), random.integers(0, 3, 2000).tolist()
    told = dependence({"a": one, "b": other, "c": [v + 1 for v in one]})
    assert told["a and b"] < 0.05
    assert told["a and c"] == pytest.approx(1, abs=1e-3)


def test_what_is_wrong_is_said():
    rows = torch.eye(3)
    with pytest.raises(InputError, match="Attribute 'a' has 2 values for 3 rows"):
        SupervisedDictionary.of_rows(rows, {"a": [1, 2]})
    with pytest.raises(InputError, match="No attribute is given"):
        SupervisedDictionary.of_rows(rows, {})
    with pytest.raises(InputError, match="a value of type list"):
        SupervisedDictionary.of_rows(rows, {"a": [[1], [2], [3]]})
    with pytest.raises(NotFinite, match="NaN or infinity"):
        SupervisedDictionary.of_rows(rows / 0, {"a": [1, 2, 3]})
    with pytest.raises(InputError, match="cannot be told apart: 3 numbers are asked for and the rows hold 2"):
        SupervisedDictionary.of_rows(rows, {"a": [1, 2, 1], "b": [5, 6, 5]}, "mse")
    with pytest.raises(UnknownName, match="way to make supervised features"):
        SupervisedDictionary.of_rows(rows, {"a": [1, 2, 3]}, "median")  # type: ignore[arg-type]
    made = SupervisedDictionary.of_rows(rows, {"a": [1, 2, 3]})
    with pytest.raises(InputError, match="a = 4 was not among the rows of this dictionary; it knows 1, 2, 3"):
        made.of_values({"a": [4]})
    with pytest.raises(InputError, match="Attribute 'a' is not given"):
        made.of_values({"b": [4]})
    with pytest.raises(UnknownName, match="attribute of this dictionary"):
        made.span("b")
