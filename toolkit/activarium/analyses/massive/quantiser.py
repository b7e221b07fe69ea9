"""A simulated weight quantiser, and what it costs a linear layer: by groups, with kept channels, with scaled channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

EXPONENTS = tuple(i / 20 for i in range(20))  # 0, 0.05, …, 0.95


def quantised(weight: Tensor, bits: int, group: int) -> Tensor:
    """Rounded to `2^bits` evenly spaced values between the least and the largest of each group, and back.

    Args:
        weight: `in out`, float64.
        bits: Of one number.
        group: Consecutive input channels that share least and largest, for one output.
    """
    levels = 2**bits - 1
    made = []
    for part in weight.split(group):
        # Zero is always one of the values, as with an integer zero point.
        low, high = part.amin(0).clamp_max(0), part.amax(0).clamp_min(0)
        step = ((high - low) / levels).clamp_min(torch.finfo(weight.dtype).tiny)
        zero = (-low / step).round()
        made.append((((part / step).round() + zero).clamp(0, levels) - zero) * step)
    return torch.cat(made)


def kept(weight: Tensor, rounded: Tensor, channels: Sequence[int] | np.ndarray) -> Tensor:
    """The rounded weight with the rows of some input channels as they were."""
    made = rounded.clone()
    index = torch.as_tensor(np.asarray(channels), dtype=torch.long)
    made[index] = weight[index]
    return made


def output_error(weight: Tensor, changed: Tensor, gram: Tensor) -> float:
    """‖X changed − X weight‖² / ‖X weight‖², from XᵀX alone: no input has to be kept."""
    gap = changed - weight
    whole = float((weight * (gram @ weight)).sum())
    return float((gap * (gram @ gap)).sum()) / whole if whole > 0 else float("nan")


def awq_scale(mean_magnitude: Tensor, exponent: float) -> Tensor:
    """Factor of each input channel: its mean |x| to the power `exponent`, at least 1e-4, divided by √(largest · least)."""
    scale = (mean_magnitude**exponent).clamp_min(1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


def scale_search(weight: Tensor, gram: Tensor, mean_magnitude: Tensor, bits: int, group: int) -> np.ndarray:
    """Output error of `Q(W s) / s` for each of `EXPONENTS`; the first one is no scaling."""
    scales = [awq_scale(mean_magnitude, r)[:, None] for r in EXPONENTS]
    return np.array([output_error(weight, quantised(weight * s, bits, group) / s, gram) for s in scales])


def smooth_factor(largest: Tensor, weight: Tensor, strength: float = 0.5) -> Tensor:
    """SmoothQuant's factor of each input channel, `max|X|^a / max|W|^(1−a)`, at least 1e-5: inputs are divided by it, weights multiplied."""
    most = weight.abs().amax(1).clamp_min(1e-5)
    return (largest**strength / most ** (1 - strength)).clamp_min(1e-5)


def difficulty(sizes: Tensor | np.ndarray) -> float:
    """Largest over median of the channels' largest sizes: 1 where all channels are alike."""
    values = np.asarray(sizes, dtype=np.float64)
    median = float(np.median(values))
    return float(values.max() / median) if median > 0 else float("inf")
