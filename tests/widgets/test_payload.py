"""Bytes, pooling, ranges: numbers one can work out on paper."""

import numpy as np
import pytest

from activarium import pictures
from activarium.widgets import payload


def test_pack_and_unpack_are_inverse():
    arrays = {"a": np.array([1, 2, 3], np.uint8), "b": np.array([[0.5]]), "c": np.array([np.nan, -0.0, np.inf], np.float32)}
    found = payload.unpack(*payload.pack(arrays))
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_a_view_that_is_not_contiguous_packs_in_reading_order():
    values = np.arange(6.0).reshape(2, 3).T
    assert payload.unpack(*payload.pack({"v": values}))["v"].tolist() == values.tolist()


def test_pool_keeps_the_extreme_with_its_sign():
    values = np.array([[1, -5, 0, 2], [3, 4, np.nan, 1], [np.nan, np.nan, 7, -7]])
    pooled = payload.pool(values, (2, 2))
    assert pooled[0].tolist() == [-5, 2]
    assert np.isnan(pooled[1, 0])
    assert pooled[1, 1] == 7


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (13, 64), (100, 3)])
def test_pool_agrees_with_looking_at_every_block(shape):
    values = np.random.default_rng(1).normal(size=shape).astype("f4")
    steps = (3, 4)
    blocks = [[values[y : y + 3, x : x + 4].ravel() for x in range(0, shape[1], 4)] for y in range(0, shape[0], 3)]
    slow = [[block[np.abs(block).argmax()] for block in line] for line in blocks]
    assert np.array_equal(payload.pool(values, steps), np.array(slow))


def test_quantise_puts_zero_in_the_middle():
    codes = payload.quantise(np.array([-9, -1, 0, 1, 9, np.nan, np.inf]), (-1.0, 1.0))
    assert codes.tolist() == [0, 0, 127, 254, 254, 255, 254]


def test_ranges_name_what_differs():
    assert payload.ranges(np.array([0.0, 1.0])) == {"full": (0.0, 1.0)}
    assert payload.ranges(np.array([2.0, 4.0])) == {"full": (0.0, 4.0), "tight": (2.0, 4.0)}
    values = np.random.default_rng(0).normal(size=10_000)
    values[17] = 1000
    found = payload.ranges(values)
    assert found["full"] == (-1000.0, 1000.0)
    assert 2 < found["robust"][1] < 4


@pytest.mark.parametrize("values", [[np.nan, np.nan], [np.inf, -np.inf], [], [0.0, 0.0]])
def test_ranges_of_nothing_are_still_ranges(values):
    assert payload.ranges(np.array(values, float)) == {"full": (0.0, 1.0)}


def test_colour_range_is_that_of_the_static_picture():
    values = np.random.default_rng(0).normal(size=50)
    assert payload.ranges(values)["full"] == pictures.colour_range(values)


def test_floats_are_no_wider_than_needed():
    kinds = {"float16": "float32", "float32": "float32", "float64": "float64", "bool": "float32", "int16": "float32", "int32": "float64"}
    assert {k: payload.floats(np.zeros(1, k)).dtype.name for k in kinds} == kinds
