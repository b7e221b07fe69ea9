"""What the weights that read a site say beside its channels: overlap, cost of quantising them, what scaling saves."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from torch import Tensor

from activarium.analyses.massive.channel_states import Channels
from activarium.analyses.massive.quantiser import difficulty, kept, output_error, quantised, scale_search, smooth_factor
from activarium.errors import InputError

KEPT = ("nothing", "activation", "weight", "random")


@dataclass(frozen=True, eq=False)
class Weighed:
    """One weight matrix beside its inputs.

    Attributes:
        overlap: Jaccard overlap of the salient channels with those of the largest weight norm.
        errors: Relative output error with the channels of `KEPT` kept whole.
        search: The same with nothing kept, over the exponents of AWQ's scale.
        smooth: SmoothQuant's factor of each channel.
        after: Largest over median channel of the inputs after SmoothQuant.
        weight_before: The same of the weights, before.
        weight_after: And after.
    """

    overlap: float
    errors: np.ndarray
    search: np.ndarray
    smooth: Tensor
    after: float
    weight_before: float
    weight_after: float


def weigh(
    site: str,
    channels: Channels,
    weight: Tensor,
    share: float,
    bits: int,
    group: int,
    strength: float,
    draws: int,
    random: np.random.Generator,
) -> Weighed:
    """Quantise one weight, `in out`, by simulation.

    Raises:
        InputError: It has another number of inputs than the site has channels.
    """
    if channels.gram is None or len(weight) != len(channels.salience):
        raise InputError(
            f"{site} has {len(channels.salience)} channels, but the weights that read it {len(weight)}. Pass the model of this recording."
        )
    products = channels.gram.state["gram"]
    salient, heavy = top(channels.salience, share), top(weight.norm(dim=1).numpy(), share)
    rounded = quantised(weight, bits, group)
    sets = [random.choice(len(weight), len(salient), replace=False) for _ in range(draws)]
    errors = [output_error(weight, kept(weight, rounded, c), products) for c in ([], salient, heavy, *sets)]
    smooth = smooth_factor(channels.largest, weight, strength)
    most = weight.abs().amax(1)
    return Weighed(
        overlap=jaccard(salient, heavy),
        errors=np.array([*errors[:3], np.mean(errors[3:])]),
        search=scale_search(weight, products, channels.whole.mean_magnitude, bits, group),
        smooth=smooth,
        after=difficulty(channels.largest / smooth),
        weight_before=difficulty(most),
        weight_after=difficulty(most * smooth),
    )


def top(values: np.ndarray, share: float) -> np.ndarray:
    """The channels of the largest values: this share of them, rounded up."""
    return np.argsort(-values, kind="stable")[: ceil(share * len(values))]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Members that two sets share, over those of both."""
    return len(np.intersect1d(a, b)) / len(np.union1d(a, b))
