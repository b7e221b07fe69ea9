"""The contrast that blind tokens and encoder outliers share: by hand, at its ends, and its cut-off."""

import math

import numpy as np
import pytest
import torch

from activarium.analyses.massive.contrast import Contrast, contrasted, divergence, hidden, others_at_random, refuse_settings, sweep
from activarium.errors import InputError

PLAIN = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64))
BIASED = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1]], dtype=torch.float64))


def test_by_hand():
    made = contrasted(PLAIN, BIASED, 1.0, 0.0)
    assert made.softmax(1)[0].tolist() == pytest.approx(
        (np.array([0.25 / 0.7, 0.9, 0.225, 0.025]) / (0.25 / 0.7 + 0.9 + 0.225 + 0.025)).tolist()
    )
    assert made.argmax() == 1


@pytest.mark.parametrize(("beta", "left"), [(0.0, 4), (0.09, 4), (0.11, 3), (0.31, 2), (0.61, 1), (1.0, 1)])
def test_the_cut_off_goes_by_the_plain_answer(beta: float, left: int):
    made = contrasted(PLAIN, BIASED, 3.0, beta)
    assert int(made.isfinite().sum()) == left
    assert made.isfinite()[0, :left].all()


def test_without_alpha_the_plain_answer_stays_and_without_a_bias_it_grows_sharper():
    assert torch.equal(contrasted(PLAIN, BIASED, 0.0, 0.0), PLAIN)
    assert torch.equal(contrasted(PLAIN, BIASED, 5.0, 1.0).argmax(1), PLAIN.argmax(1))
    assert torch.allclose(contrasted(PLAIN, PLAIN, 2.0, 0.0), PLAIN)


def test_divergence_of_what_is_cut_off():
    assert divergence(PLAIN, PLAIN).tolist() == [0.0]
    assert divergence(contrasted(PLAIN, BIASED, 0.0, 1.0), PLAIN)[0] == pytest.approx(math.log(2))  # all of it on an answer of one half


def test_the_sweep_starts_at_the_plain_answer():
    found = sweep(Contrast((0,), PLAIN, BIASED, PLAIN), 0.1)
    assert found.curves["changed answers"].tolist()[:3] == [0.0, 100.0, 100.0]
    assert found.curves["with random tokens"].tolist() == [0.0] * 7


def test_hidden_and_random_tokens_are_of_the_same_image():
    positions = {0: np.array([1, 2, 3, 4]), 5: np.array([7, 8, 9])}
    chosen = {0: (2, 3), 5: ()}
    assert hidden(chosen, positions) == {0: (1, 4), 5: (7, 8, 9)}
    drawn = others_at_random(chosen, positions, 0)
    assert {e: len(t) for e, t in drawn.items()} == {0: 2, 5: 0}
    assert set(drawn[0]) <= {1, 2, 3, 4}


def test_settings_without_meaning():
    with pytest.raises(InputError, match="alpha=-1, beta=0.1: alpha is 0 or more"):
        refuse_settings(-1, 0.1)
    with pytest.raises(InputError, match="alpha=1, beta=2: alpha is 0 or more, beta from 0"):
        refuse_settings(1, 2)
