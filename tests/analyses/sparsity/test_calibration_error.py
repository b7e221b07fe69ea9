"""calibration_error: on paper, at the edges of the bins, and drawn again by brute force."""

import numpy as np
import pytest

from activarium.analyses.changed_answers import Answers
from activarium.analyses.sparsity.calibration_error import bin_of, calibration_error


def answers(confidence: list[float], correct: list[bool], known: list[bool] | None = None, example: list[int] | None = None) -> Answers:
    count = len(confidence)
    known_ = np.ones(count, bool) if known is None else np.array(known)
    nothing = np.zeros(count)
    return Answers(
        np.arange(count) if example is None else np.array(example), nothing.astype(int), nothing, nothing > 0, known_, nothing, nothing,
        np.array(correct) & known_, np.array(confidence), nothing > 0,
    )  # fmt: skip


def test_four_answers_on_paper():
    found = calibration_error(answers([0.95, 0.97, 0.55, 0.35], [True, False, True, False]))
    # last bin: 2/4 · |1/2 − 0.96|, bin of 0.55: 1/4 · |1 − 0.55|, bin of 0.35: 1/4 · |0 − 0.35|
    assert found.error == pytest.approx(0.5 * 0.46 + 0.25 * 0.45 + 0.25 * 0.35)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 2]


def test_right_and_wrong_in_one_bin_make_up_for_one_another():
    assert calibration_error(answers([0.5, 0.5], [True, False])).error == 0.0
    assert calibration_error(answers([1.0, 1.0], [True, True])).error == 0.0
    assert calibration_error(answers([1.0, 1.0], [False, False])).error == 1.0


def test_a_bin_holds_its_upper_end():
    assert bin_of(np.array([0.0, 1 / 15, 1 / 15 + 1e-12, 3 / 15, 6 / 15, 14 / 15, 1.0]), 15).tolist() == [0, 0, 1, 2, 5, 13, 14]
    assert bin_of(np.arange(1, 16) / 15, 15).tolist() == list(range(15))


def test_what_is_not_known_does_not_count():
    found = calibration_error(answers([0.9, 0.2], [True, True], known=[True, False]))
    assert found.error == pytest.approx(0.1)
    assert found.counts.sum() == 1
    assert np.isnan(calibration_error(answers([0.9], [True], known=[False])).error)


def test_the_interval_is_that_of_whole_sequences_drawn_again():
    generator = np.random.default_rng(0)
    confidence, example = generator.random(120), np.repeat(np.arange(12), 10)
    correct = generator.random(120) < confidence**2
    found = calibration_error(answers(confidence.tolist(), correct.tolist(), example=example.tolist()), resamples=4000)
    drawn = []
    for _ in range(2000):
        chosen = np.concatenate([np.flatnonzero(example == e) for e in generator.integers(0, 12, 12)])
        place = np.clip(np.ceil(confidence[chosen] * 15) - 1, 0, 14)
        gaps = [
            (place == b).mean() * abs(correct[chosen][place == b].mean() - confidence[chosen][place == b].mean())
            for b in range(15)
            if (place == b).any()
        ]
        drawn.append(sum(gaps))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.01)
