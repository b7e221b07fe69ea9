"""How alike the directions of two dictionaries are: each feature's nearest twin, and the best matching of all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

LARGEST = 1 << 25  # cosines that are held and matched at once: 268 MB, and about a minute
BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Twins:
    """Cosines between two sets of directions.

    Attributes:
        forth: For each feature of the first, its largest cosine with one of the second.
        nearest: Which one that is, the lowest of equal ones.
        back: For each feature of the second, its largest cosine with one of the first.
        matched: `(pair, 2)`: the one-to-one matching of largest total cosine, with as many pairs as the smaller has features. None
            where there are too many to match.
        cosines: Cosine of each matched pair, or None.
    """

    forth: np.ndarray
    nearest: np.ndarray
    back: np.ndarray
    matched: np.ndarray | None
    cosines: np.ndarray | None


def twins(first: Tensor, second: Tensor) -> Twins:
    """Compare directions `feature d_out` with others by cosine; opposite directions are no twins, and one of length 0 has none."""
    a, b = (normalize(d.detach().double().cpu(), dim=1) for d in (first, second))
    whole = len(a) * len(b) <= LARGEST
    forth, nearest, kept, back = [], [], [], np.full(len(b), -np.inf)
    for start in range(0, len(a), BLOCK):
        likeness = (a[start : start + BLOCK] @ b.T).numpy().clip(-1, 1)
        nearest.append(likeness.argmax(1))
        forth.append(likeness.max(1))
        back = np.maximum(back, likeness.max(0))
        kept += [likeness] if whole else []
    found = np.concatenate(forth), np.concatenate(nearest), back
    if not whole:
        return Twins(*found, None, None)
    likeness = np.concatenate(kept)
    matched = _matched(likeness)
    return Twins(*found, matched, likeness[matched[:, 0], matched[:, 1]])


def _matched(likeness: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    return np.stack(linear_sum_assignment(likeness, maximize=True), 1)
