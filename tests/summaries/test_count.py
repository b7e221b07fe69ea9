"""Count: whole numbers that one can check on paper, and that no type can make overflow."""

import numpy as np
import torch

from activarium.activations import Activations
from activarium.rows import Rows
from activarium.summaries import CoActivation, Count


def site(values: torch.Tensor, examples: list[int] | None = None) -> Activations:
    examples = examples or [0] * len(values)
    position = np.concatenate([np.arange(examples.count(e)) for e in dict.fromkeys(examples)])
    return Activations(values, "row d_mlp", site="blocks.0.mlp.act", index=Rows({"example": np.array(examples), "position": position}))


def test_two_rows_by_hand():
    counts = Count().update(site(torch.tensor([[0.0, 2.0, -0.0, -1.0], [0.0, 1.0, 3.0, 0.0]]), [4, 7]))
    assert counts.fires.tolist() == [0, 2, 1, 1]
    assert counts.histogram.tolist() == [0, 0, 2, 0, 0]
    assert counts.per_sequence.tolist() == [[2, 1], [2, 1]]
    assert counts.state["sequences"][:, 0].tolist() == [4, 7]
    assert (counts.percent, counts.dead, counts.always_on, int(counts.state["negative"])) == (50.0, 1, 1, 1)
    result = counts.result()
    assert result.values.tolist() == [0.0, 1.0, 0.5, 0.5]
    assert result.diagnostics["percent"] == 50.0


def test_nan_and_infinity_are_counted_apart():
    counts = Count().update(site(torch.tensor([[float("nan"), 1.0], [float("inf"), -float("inf")]])))
    assert [int(counts.state[k]) for k in ("nan", "infinite", "negative")] == [1, 2, 1]


def test_a_bfloat16_counter_would_have_stopped_at_256():
    values = torch.ones(3000, 2, dtype=torch.bfloat16)
    assert Count().update(site(values)).fires.tolist() == [3000, 3000]


def test_pairs_by_hand():
    values = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, -5.0], [2.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    pairs = CoActivation().update(site(values))
    assert pairs.state["pairs"].tolist() == [[3, 2, 0], [2, 2, 0], [0, 0, 0]]
    assert pairs.overlap[0, 1] == 2 / 3
    assert pairs.lift[0, 1] == 2 * 4 / (3 * 2)
    ranking = pairs.result()
    assert ranking.names[0] == "0 and 1"
    assert ranking.columns["rows with both"].tolist() == [2, 0, 0]
    assert CoActivation(threshold=1.5).update(site(values)).state["pairs"].diagonal().tolist() == [1, 1, 0]
