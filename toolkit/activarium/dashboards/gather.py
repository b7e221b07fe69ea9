"""The second pass over the codes: exact histograms between known ends, and the codes around the rows that were chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from activarium.dashboards.contexts import BANDS, Contexts
from activarium.dashboards.octaves import band_of
from activarium.dashboards.scan import Scan, flat
from activarium.dictionaries.coded import CodedRows
from activarium.dictionaries.codes import Codes
from activarium.errors import InputError
from activarium.progress import progress_bar

BARS = 50


@dataclass(frozen=True, eq=False)
class Gathered:
    """What the second pass brings.

    Attributes:
        histogram: Codes in each of fifty bins of equal width, `feature bin`, int64: they sum to the firings.
        ends: Lower and upper end of the histogram of each feature, `feature 2`, float64.
        bands: Codes in each band, `feature band`, int64.
        values: Codes of the rows of all contexts, one after the other; 0 where the feature is silent.
    """

    histogram: np.ndarray
    ends: np.ndarray
    bands: np.ndarray
    values: np.ndarray


def gather(coded: CodedRows, found: Scan, edges: np.ndarray, contexts: Contexts, *, rows: int, progress: bool) -> Gathered:
    """The second pass.

    Raises:
        InputError: The codes are others than in the first pass.
    """
    ends = bar_ends(found.least, found.most)
    histogram, bands = np.zeros((len(ends), BARS), np.int64), np.zeros((len(ends), BANDS), np.int64)
    windows, bars = _Windows(contexts), bar_edges(ends)
    with progress_bar(progress, "Reading around them,", len(coded.chosen), "rows") as advance:
        for index, codes in coded.pieces(rows):
            codes_here = flat(index, codes)
            np.add.at(histogram.reshape(-1), codes_here.feature * BARS + bar_of(codes_here.value, codes_here.feature, bars), 1)
            np.add.at(bands.reshape(-1), codes_here.feature * BANDS + band_of(codes_here.size, codes_here.feature, edges), 1)
            windows.fill(index, codes)
            advance(len(index))
    if not np.array_equal(histogram.sum(1), found.fires):
        feature = int(np.flatnonzero(histogram.sum(1) != found.fires)[0])
        raise InputError(
            f"Feature {feature} fired {found.fires[feature]:,} times in the first pass and {histogram[feature].sum():,} in the second: "
            "the codes changed in between. Keep the dictionary and the recording as they are while pages are built."
        )
    return Gathered(histogram, ends, bands, windows.values)


def bar_ends(least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Ends of the histograms: from the smallest to the largest code; from 0, where all are the same."""
    low, high = least.astype(np.float64), most.astype(np.float64)
    same = low == high
    return np.stack([np.where(same, np.minimum(low, 0), low), np.where(same, np.maximum(high, 0), high)], 1)


def bar_edges(ends: np.ndarray) -> np.ndarray:
    """Edges of the bins, `… bin + 1`."""
    return np.linspace(ends[..., 0], ends[..., 1], BARS + 1, axis=-1)


def bar_of(value: np.ndarray, feature: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each code, as its edges `feature bin + 1` say; the largest code is in the last."""
    flat_edges, start = edges.reshape(-1), feature * (BARS + 1)
    low, wide = flat_edges[start], value.astype(np.float64)
    width = np.maximum(flat_edges[start + BARS] - low, np.finfo(np.float64).tiny)
    bar = np.clip(((wide - low) / width * BARS).astype(np.int64), 0, BARS - 1)
    # The division rounds: the edges decide.
    down = wide < flat_edges[start + bar]
    up = (wide >= flat_edges[start + bar + 1]) & (bar < BARS - 1)
    return bar - down + up


class _Windows:
    """The rows of all contexts, filled while pieces come past."""

    def __init__(self, contexts: Contexts) -> None:
        self.values = np.zeros(int(contexts.place[-1]), np.float32)
        order = np.argsort(contexts.first, kind="stable")
        self._feature, self._first = contexts.feature[order], contexts.first[order]
        self._length, self._place = contexts.length[order], contexts.place[:-1][order]
        self._longest = int(self._length.max(initial=0))

    def fill(self, index: np.ndarray, codes: Codes) -> None:
        """Write the codes of this piece to where contexts show them."""
        low, high = np.searchsorted(self._first, [index[0] - self._longest, index[-1] + 1])
        if low == high:
            return
        here = slice(low, high)
        start, stop = np.searchsorted(index, self._first[here]), np.searchsorted(index, self._first[here] + self._length[here])
        local, value, bounds = _by_feature(len(index), codes)
        # Within a feature its rows are ascending, so a context's codes follow one another.
        key = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)) * len(index) + local
        begin = np.searchsorted(key, self._feature[here] * len(index) + start)
        count = np.searchsorted(key, self._feature[here] * len(index) + stop) - begin
        window = np.repeat(np.arange(low, high), count)
        entry = np.arange(len(window)) - np.repeat(count.cumsum() - count, count) + np.repeat(begin, count)
        self.values[self._place[window] + index[local[entry]] - self._first[window]] = value[entry]


def _by_feature(rows: int, codes: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes feature by feature: place of the row in the piece, code, and where each feature begins."""
    from scipy.sparse import csr_array

    parts = (codes.values.float().numpy(), codes.features.numpy(), codes.starts.numpy())
    turned = csr_array(parts, shape=(rows, codes.width)).tocsc()
    return turned.indices.astype(np.int64), turned.data, turned.indptr
