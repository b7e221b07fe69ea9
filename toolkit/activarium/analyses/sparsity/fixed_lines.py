"""Sparsity by lines that need no calibration: exact zeros, fixed thresholds, shares of a row's energy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import layer_number
from activarium.analyses.sparsity.cost_of_dropping import Intervals
from activarium.analyses.sparsity.definitions import energy_below, share_of_largest, size
from activarium.analyses.sparsity.dropped import count_rows
from activarium.results import Result, Series

ENERGIES = (0.9, 0.99, 0.999)


def fixed_lines(sites: Sequence[Activations], absolute: float, relative: float, exclude: Sequence[str], draw: Intervals) -> Series:
    """What needs no calibration, over all rows."""
    names = [
        "below zero",
        "exactly zero",
        f"|a| < {absolute:g}",
        f"|a| < {relative:g} of the largest",
        *[f"outside {100 * q:g} % of energy" for q in ENERGIES],
    ]

    def marks(values: Tensor) -> Iterator[Tensor]:
        sizes = size(values)
        yield values < 0
        yield sizes == 0
        yield sizes < absolute
        yield share_of_largest(values) < relative
        below = energy_below(values)
        for q in ENERGIES:
            yield below <= 1 - q + 1e-12  # 1 − 0.9 is a little less than 0.1

    found = [count_rows(a, marks, len(names), exclude) for a in sites]
    curves = {name: np.array([f.share[i] for f in found]) for i, name in enumerate(names)}
    ends = [draw.ends(f.dropped, np.repeat(f.seen[:, None], len(names), 1)) for f in found]
    bands = {name: np.stack([e[:, i] for e in ends], 1) for i, name in enumerate(names)}
    numbers = np.array([layer_number(a.site, i) for i, a in enumerate(sites)])
    return Series(numbers, curves, "layer", bands, title="Share of neurons called inactive, no calibration", unit="share")


def fixed_words(fixed: Result) -> list[str]:
    """The means over layers, and what the zeros of a smooth activation are."""
    assert isinstance(fixed, Series)
    means = {name: 100 * float(curve.mean()) for name, curve in fixed.curves.items()}
    said = [f"of all neurons in a row, mean over layers: {', '.join(f'{name} {mean:.1f} %' for name, mean in means.items())}."]
    smooth = means["below zero"] > 0 and means["exactly zero"] > 0
    return [*said, "values below zero: the activation is smooth, and its exact zeros are rounding, no sparsity."] if smooth else said
