"""Everything a recording says of each block, as sums per sequence, and how far measures agree on the order of the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from activarium.activations import Activations
from activarium.analyses.layers.block_ends import block_ends
from activarium.analyses.layers.intervals import Intervals
from activarium.analyses.layers.norm_progress import states_of, tally
from activarium.analyses.layers.redundancy import MEASURES, spans, sums
from activarium.analyses.layers.similarity import linear_cka
from activarium.maths import bootstrap_interval
from activarium.recording import Recording

Sums = tuple[np.ndarray, np.ndarray]  # above and below, `(sequence, block)`
USAGE, DISTANCE, ANGLE = "layer usage", "CKA distance", "angle"
UNITS = {USAGE: "share of rows", "influence": "1 − cosine", ANGLE: "share of 180°", DISTANCE: "share"}  # the others: share of the input


@dataclass(frozen=True, eq=False)
class Measured:
    """The measures of one stack.

    Attributes:
        names: Its blocks.
        sums: Measure → sums over the rows of each sequence.
        distance: 1 − linear CKA of each block's input and output, which is no mean over rows.
    """

    names: list[str]
    sums: dict[str, Sums]
    distance: np.ndarray

    def values(self, draw: Intervals) -> dict[str, np.ndarray]:
        """Measure → its value for each block."""
        return {name: draw(*pair)[0] for name, pair in self.sums.items()} | {DISTANCE: self.distance}


def measured(recording: Recording, stack: str, sites: Mapping[str, Activations], alpha: float, exclude: Sequence[int]) -> Measured:
    """All rows count.

    Raises:
        InputError: Blocks are missing, or a dimension that is left out.
        NotFinite: NaN or infinite numbers.
    """
    states = list(states_of(recording, stack, sites, exclude).values())
    every = {"all rows": np.ones(len(states[0]), bool)}
    counted = tally(states, every, alpha, (alpha,), exclude, -1)
    blocks = block_ends(recording, stack, sites)
    found = [sums((x, (y,), False), every, exclude) for x, y in blocks.values()]
    above, below = np.stack([f.above[:, 0] for f in found], 1), np.stack([f.below[:, 0] for f in found], 1)
    turned = spans([x for x, _ in blocks.values()], [y for _, y in blocks.values()], exclude, longest=1)[0][:, :, 0]
    made: dict[str, Sums] = {USAGE: (counted.active[:, 0].astype(np.float64), np.broadcast_to(counted.rows, above.shape[:2]))}
    made |= {name: (above[:, :, m], below) for m, name in enumerate(MEASURES)}
    made[ANGLE] = np.nan_to_num(turned), np.isfinite(turned).astype(np.float64)
    return Measured(list(blocks), made, 1 - np.array([linear_cka(x, y, exclude) for x, y in blocks.values()]))


def rank_correlations(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Spearman's correlation of every two measures over the blocks, ties sharing their rank; NaN where one is the same for all."""
    return pandas.DataFrame(dict(values)).corr("spearman").to_numpy()


def correlation_interval(one: Sums, other: Sums, options: Mapping[str, Any]) -> tuple[float, float]:
    """Between which bounds the rank correlation lies when sequences are drawn again, the same ones for both if they are as many."""
    drawn = [bootstrap_interval(*(np.broadcast_to(part, pair[0].shape) for part in pair), **options)[2] for pair in (one, other)]
    ranks = [pandas.DataFrame(d).rank(axis=1).to_numpy() for d in drawn]
    ranks = [r - r.mean(1, keepdims=True) for r in ranks]
    scale = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    known = scale > 0
    if not known.any():
        return float("nan"), float("nan")
    found = (ranks[0] * ranks[1]).sum(1)[known] / scale[known]
    tail = (1 - options["confidence"]) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)
