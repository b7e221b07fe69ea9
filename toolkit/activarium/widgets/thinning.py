"""Which points of long curves travel: those that a reader would miss."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

POINTS = 5000  # up to here every point travels
LEAST_STRETCHES = 500


def kept(lines: Sequence[np.ndarray]) -> np.ndarray:
    """Places that stay, ascending: of each stretch the lowest and highest number of every line and the first missing one.

    Stretches are even along the places, and additionally in their logarithm, so that a logarithmic x shows its beginning too.
    """
    count = len(lines[0])
    if count <= POINTS:
        return np.arange(count)
    stretches = max(LEAST_STRETCHES, POINTS // (4 * len(lines)))
    ends = np.unique(np.r_[np.linspace(0, count, stretches + 1), np.geomspace(1, count, stretches + 1)].astype(int))
    stays = {0, count - 1}
    for start, stop in pairwise(ends.tolist()):
        for line in lines:
            stays.update(start + at for at in _extremes(line[start:stop]))
    return np.array(sorted(stays))


def _extremes(piece: np.ndarray) -> list[int]:
    missing = np.isnan(piece)
    if missing.all():
        return [0]
    found = [int(np.nanargmin(piece)), int(np.nanargmax(piece))]
    return [*found, int(missing.argmax())] if missing.any() else found
