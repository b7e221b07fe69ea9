"""The stopwatch itself: turns are fair, ratios are of medians, a row says what it measured."""

from pathlib import Path

import pytest

from activarium.bench import Row, interleaved, ratio
from activarium.bench._patterns import REFS, patterns
from activarium.bench._timing import beyond, disk_speed, medians


def test_calls_take_turns_and_every_second_round_runs_backwards() -> None:
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(v) for v in times.values()] == [3, 3]


def test_ratio_of_medians_by_hand() -> None:
    times = {"read": [(2.0, 1.0), (3.0, 1.1), (40.0, 1.2)], "plain": [(1.0, 1.0), (2.0, 1.0), (2.0, 1.0)]}
    row = ratio("reading", times, "read", "plain", "≤ 1.03")
    assert row.value == 1.5
    assert row.processor == pytest.approx(1.1)
    assert row.spread == (1.5, 20.0)
    assert medians(times)["read"] == (3.0, 1.1)
    assert "1.500 ×" in str(row)
    assert "goal ≤ 1.03" in str(row)


def test_a_fixed_cost_is_a_difference_in_milliseconds() -> None:
    row = beyond("a run", (0.0009, 0.0008), (0.0006, 0.0006), "≤ 0.3")
    assert (row.value, row.processor) == (pytest.approx(0.3), pytest.approx(0.2))
    assert Row("x", 1.0, "ms").note == ""


def test_disk_speed_leaves_nothing_behind(tmp_path: Path) -> None:
    assert disk_speed(tmp_path, 8 << 20) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not REFS.exists(), reason="only Linux can forget an earlier peak of memory")
def test_reading_a_pattern_by_tiles_takes_the_memory_of_a_tile() -> None:
    (row,) = patterns(3072)
    assert row.value < 0.25
    assert "3072 tokens" in row.what
    assert "MiB tiles" in row.note
