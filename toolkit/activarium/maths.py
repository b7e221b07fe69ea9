"""Numerics that several analyses share: the lower median and the bootstrap interval."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError


def lower_median(values: Tensor) -> Tensor:
    """The middle value, and for an even count the lower of the two middle ones (numpy averages them).

    16-bit floats are compared as float32, which holds them exactly, so the answer is one of the values.

    Args:
        values: Any shape, at least one number, no NaN.

    Returns:
        A tensor without axes, in the type of `values`.
    """
    flat = values.detach().flatten()
    if not flat.numel():
        raise InputError("The median of no values is not defined; found an empty tensor. Choose at least one row.")
    exact = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    return exact.median().to(values.dtype)


def bootstrap_interval(
    above: np.ndarray, below: np.ndarray, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Between which bounds does a ratio of sums lie when whole sequences are drawn again?

    Tokens of one sequence resemble one another, so the sequence is what is resampled; the same draws serve every
    column, which keeps averages over columns honest.

    Args:
        above: Numerators, `(sequence, column)`.
        below: Denominators of the same shape.
        confidence: Share of the resamples inside the interval.
        resamples: How many times the sequences are drawn again.
        seed: Draws the sequences; the same seed gives the same interval.

    Returns:
        Lower ends and upper ends per column, and the resampled ratios `(resample, column)`. With fewer than two
        sequences nothing can be resampled: the ends are NaN.

    Source:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile interval).
    """
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    sequences, columns = above.shape
    if sequences < 2:
        empty = np.full(columns, np.nan)
        return empty, empty.copy(), np.full((0, columns), np.nan)
    generator = np.random.default_rng(seed)
    chosen = np.empty((resamples, columns))
    at_once = max(1, 4_000_000 // sequences)  # keeps the table of draws near 32 MB
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        draws = generator.multinomial(sequences, np.full(sequences, 1 / sequences), size=count).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            chosen[start : start + count] = (draws @ above) / (draws @ below)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(chosen, [tail, 1 - tail], axis=0)
    return low, high, chosen
