"""Expected calibration error: how far a model's confidence lies from how often it is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from activarium.analyses.changed_answers import Answers
from activarium.maths import bootstrap_interval

BINS = 15


@dataclass(frozen=True, eq=False)
class CalibrationError:
    """Confidence against accuracy in bins of equal width, over the answers of which it is known what is right.

    Attributes:
        error: Σ over bins of answers / all answers · |accuracy − mean confidence|; empty bins add nothing.
        low: Lower end of its interval over sequences.
        high: Upper end.
        counts: Answers in each bin.
    """

    error: float
    low: float
    high: float
    counts: np.ndarray


def calibration_error(
    answers: Answers, *, bins: int = BINS, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> CalibrationError:
    """The error of a model's answers, with its interval over sequences.

    Args:
        answers: Answers, some of which are known.
        bins: How many; a bin holds its upper end, so 1.0 is in the last one.
        confidence: Share of resampled sequence sets inside the interval.
        resamples: How many times the sequences are drawn again.
        seed: Draws the sequences.
    """
    place = bin_of(answers.confidence, bins)
    gap = answers.correct.astype(np.float64) - answers.confidence
    sums = [answers.sums(gap, answers.known & (place == b)) for b in range(bins)]
    # n_b / N · |acc_b − conf_b| = |Σ_b (correct − confidence)| / N, a ratio of sums like any other.
    above, counts = np.stack([s[0] for s in sums], 1), np.array([int(s[1].sum()) for s in sums])
    below = np.repeat(answers.sums(gap, answers.known)[1][:, None], bins, 1)
    total = counts.sum()
    if not total:
        return CalibrationError(float("nan"), float("nan"), float("nan"), counts)
    drawn = np.abs(bootstrap_interval(above, below, confidence=confidence, resamples=resamples, seed=seed)[2]).sum(1)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.nanquantile(drawn, tails) if len(drawn) else (np.nan, np.nan)
    return CalibrationError(float(np.abs(above.sum(0)).sum() / total), float(low), float(high), counts)


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each confidence: (0, 1/bins] is 0."""
    # Counted upper ends below, rather than ceil(c · bins) − 1, whose product may land on the wrong side of a whole number.
    return np.minimum(np.searchsorted(np.arange(1, bins) / bins, confidence, side="left"), bins - 1)
