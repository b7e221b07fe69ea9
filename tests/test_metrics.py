"""Metrics: numbers by hand, several positions, columns, selections, and every refusal in words."""

import math

import numpy as np
import pytest
import torch

import activarium as act
from activarium.errors import InputError
from activarium.metrics import Metric, class_logit, kl, log_probability, logit_difference

LOGITS = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, 3.0]])


def test_logit_difference_and_class_logit_by_hand() -> None:
    assert logit_difference([2, 0], [0, 1]).of(LOGITS).tolist() == [3.0, 1.0]
    assert class_logit([1, 2]).of(LOGITS).tolist() == [2.0, 3.0]


def test_log_probability_by_hand() -> None:
    found = log_probability([2, 0]).of(LOGITS.double())
    wanted = [4 - math.log(sum(map(math.exp, (1, 2, 4)))), -math.log(sum(map(math.exp, (0, -1, 3))))]
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)


def test_kl_by_hand_and_zero_of_itself() -> None:
    reference, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])  # (1/2, 1/2) and (1/4, 3/4)
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl(reference).of(other).item() == pytest.approx(wanted, abs=1e-7)
    assert kl(LOGITS).of(LOGITS).abs().max() == 0
    assert kl(LOGITS).unit == "nats"


def test_only_the_declared_columns_reach_the_function() -> None:
    metric = logit_difference([2, 0], [0, 1])
    assert metric.wanted([1]).tolist() == [[0, 1]]
    assert metric.of(LOGITS[1:].gather(1, metric.wanted([1])), [1], picked=True).tolist() == [1.0]


def test_a_selection_keeps_each_answer_with_its_example() -> None:
    metric = logit_difference([2, 0], [0, 1], position=np.array([5, 7]))
    chosen = metric.select([1])
    assert chosen.of(LOGITS[1:]).tolist() == [1.0]
    assert chosen.places([9]).tolist() == [[7]]
    assert metric.select([1, 0]).select([1]).of(LOGITS[:1]).tolist() == [3.0]
    reference = kl(LOGITS).select([1])
    assert reference.of(LOGITS[1:]).item() == 0
    assert reference.of(LOGITS[:1]).item() > 0


def test_positions_count_from_the_last_real_row() -> None:
    metric = Metric(lambda logits: logits[:, 0], position=-2)
    assert metric.places([3, 5]).tolist() == [[1], [3]]
    assert Metric(lambda logits: logits[:, 0, 0], position=(0, -1)).places([3, 5]).tolist() == [[0, 2], [0, 4]]


def test_several_positions_are_read_in_the_model() -> None:
    model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
    texts = ["the cat sat on the house .", "who ?"]
    metric = Metric(lambda logits: logits[:, 0, 7] - logits[:, 1, 8], position=(0, -1), name="first minus last")
    run = model.run(texts, metrics=metric)
    for e in range(2):
        logits = run.logits.example(e).tensor
        assert run.metric["first minus last"][e] == logits[0, 7] - logits[-1, 8]


def test_a_metric_that_reads_positions_it_did_not_declare_is_refused() -> None:
    model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
    metric = Metric(lambda logits: logits[:, -1, 7] - logits[:, -2, 7], name="two rows")
    with pytest.raises(InputError, match=r"'two rows' failed on logits of shape \(1, 100\).*declare them: Metric\(read, position="):
        model.run(["the cat sat"], metrics=metric)


def test_a_metric_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(InputError, match=r"'whole' gave \(2, 3\) for 2 examples; wanted one number for each, shape \(2,\)"):
        Metric(lambda logits: logits, name="whole").of(LOGITS)
    with pytest.raises(InputError, match=r"gave float for 2 examples"):
        Metric(lambda logits: float(logits.sum())).of(LOGITS)
    with pytest.raises(InputError, match=r"gave \(\) for 2 examples"):
        Metric(lambda logits: logits.mean()).of(LOGITS)


def test_a_position_outside_of_an_example_is_named() -> None:
    with pytest.raises(InputError, match="reads position -4; example 1 has 3 rows"):
        Metric(lambda logits: logits[:, 0], position=-4).places([5, 3])


def test_more_examples_than_answers_are_refused() -> None:
    with pytest.raises(InputError, match="'logit_difference' knows 2 examples; it was asked for number 3"):
        logit_difference([2, 0], [0, 1]).of(torch.cat([LOGITS, LOGITS]))
    with pytest.raises(InputError, match="2 answers were given for at least 4 examples"):
        log_probability([2, 0]).of(torch.cat([LOGITS, LOGITS]))


def test_a_column_outside_of_the_vocabulary_is_named() -> None:
    with pytest.raises(InputError, match="reads logit 3; the model has 3"):
        class_logit([1, 3]).of(LOGITS)
