"""How the sizes of every feature's codes are spread: sixteen counters for each doubling, below the largest one so far."""

from __future__ import annotations

import numpy as np

STEPS = 16  # counters for each doubling: no wider than 1/16 of their lower end
OCTAVES = 16  # doublings below the largest size; what is smaller than 2^-15 of it is counted together
BINS = STEPS * OCTAVES
_SHIFT = 19  # a float32 without its last 19 bits: exponent and 4 bits, which order sizes


class Octaves:
    """Counts of sizes per feature, whole numbers; any pieces in any order end in the same counts.

    Attributes:
        counts: `feature bin`, int32.
        base: Bit pattern of each feature's lowest counter; it rises with the largest size, and what falls below goes into the lowest.
    """

    def __init__(self, features: int) -> None:
        self.counts = np.zeros((features, BINS), np.int32)
        self.base = np.full(features, -BINS, np.int64)

    def add(self, feature: np.ndarray, size: np.ndarray) -> None:
        """Count sizes (float32, above zero)."""
        code = (np.ascontiguousarray(size, np.float32).view(np.uint32) >> np.uint32(_SHIFT)).astype(np.int64)
        base = self.base.copy()
        np.maximum.at(base, feature, code // STEPS * STEPS - (BINS - STEPS))
        self._raise(base)
        place = np.maximum(code - base[feature], 0)
        np.add.at(self.counts.reshape(-1), feature * BINS + place, np.int32(1))

    def _raise(self, base: np.ndarray) -> None:
        up = np.flatnonzero(base > self.base)
        seen = up[self.counts[up].any(1)]
        for rise in np.unique(base[seen] - self.base[seen]):
            here = seen[base[seen] - self.base[seen] == rise]
            old, moved = self.counts[here], int(min(rise, BINS))
            new = np.zeros_like(old)
            new[:, : BINS - moved] = old[:, moved:]
            new[:, 0] += old[:, :moved].sum(1, dtype=np.int32)
            self.counts[here] = new
        self.base[up] = base[up]

    def edges(self, bands: int, least: np.ndarray, most: np.ndarray) -> np.ndarray:
        """Sizes that divide each feature's codes into bands of about equal number, `feature band + 1`, float64, ascending.

        Within a counter sizes are taken to be spread evenly, so an edge lies at most a counter from the true quantile.

        Args:
            bands: How many.
            least: Smallest size of each feature.
            most: Largest size of each feature.
        """
        made = np.zeros((len(self.counts), bands + 1))
        reached = self.counts.cumsum(1, dtype=np.int64)
        total = reached[:, -1]
        line = np.arange(len(made))
        for band in range(1, bands):
            wanted = total * band / bands
            at = np.minimum((reached < wanted[:, None]).sum(1), BINS - 1)
            inside = self.counts[line, at]
            before = reached[line, at] - inside
            low = np.where(at == 0, least, np.maximum(_size(self.base + at), least))
            high = np.minimum(_size(self.base + at + 1), most)
            share = np.divide(wanted - before, inside, out=np.zeros(len(made)), where=inside > 0)
            made[:, band] = low + (high - low) * share
        made[:, 0], made[:, -1] = least, most
        return np.maximum.accumulate(np.minimum(made, most[:, None]), axis=1)


def _size(code: np.ndarray) -> np.ndarray:
    bits = np.clip(code, 0, 0x7F80 >> 3).astype(np.uint32) << np.uint32(_SHIFT)
    return bits.view(np.float32).astype(np.float64)


def band_of(size: np.ndarray, feature: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The band of each size; one that is an edge belongs to the band above it, the largest to the last."""
    band = np.zeros(len(size), np.int64)
    wide = size.astype(np.float64)
    for inner in edges[:, 1:-1].T:
        band += wide >= inner[feature]
    return band
