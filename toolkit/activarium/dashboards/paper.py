"""The pages themselves, some hundred features to a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from activarium.dashboards.contexts import Contexts, Examples
from activarium.dashboards.folder import GROUP
from activarium.dashboards.gather import Gathered
from activarium.dashboards.pages import group_file
from activarium.rows import Rows

DEFINITIONS = {
    "fires": "rows in which the code is not zero",
    "density": "fires over all rows that were looked at",
    "mean": "mean of the codes that are not zero; deviation likewise",
    "histogram": "codes that are not zero in fifty bins of equal width from the smallest to the largest; whole counts that sum to fires",
    "contexts": (
        "top: the largest codes by size, one of each example, ties by the earlier row; the others: drawn evenly from ten bands of about "
        "equal number between quantiles of the feature's own sizes, from a sample of 256 codes, at most one of each example in a band"
    ),
    "bands": "edges lie within 1/16 of their size of the true quantile; the counts of the bands are exact",
    "values": "codes of the rows around it; 0 where the feature is silent or the row was left out",
    "together": (
        "pointwise mutual information in nats, log of how often both fire over the product of their frequencies, over rows drawn evenly; "
        "pairs that fire together in at least five of those rows, and more often than chance"
    ),
    "correlated": "Pearson's r of codes over the same rows, zeros included",
    "sources": (
        "head by position: the feature's value before its nonlinearity as a sum over attention from each position through each head, "
        "without biases; pattern and values as the model computed them"
    ),
}


def groups(
    given: Any,
    contexts: Contexts,
    gathered: Gathered,
    edges: np.ndarray,
    lists: Mapping[str, tuple[Tensor, Tensor]],
    index: Rows | None,
    examples: Examples,
    shares: Any,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Name and arrays of every file of pages."""
    features = np.asarray(given.features, np.int64)
    position = np.asarray(index["position"]) if index is not None and "position" in index else None
    for first in np.unique(features // GROUP) * GROUP:
        low, high = np.searchsorted(features, [first, first + GROUP])
        arrays: dict[str, np.ndarray] = {"feature": features[low:high], "histogram": gathered.histogram[low:high]}
        arrays |= {"ends": gathered.ends[low:high], "band_edges": edges[low:high], "band_counts": gathered.bands[low:high]}
        arrays |= _listed(lists, slice(low, high))
        arrays |= _contexts(contexts, gathered, low, high, position, examples)
        if shares is not None:
            arrays |= shares.part(*np.searchsorted(contexts.feature, [low, high]))
        yield group_file(int(first)), arrays


def _listed(lists: Mapping[str, tuple[Tensor, Tensor]], here: slice) -> dict[str, np.ndarray]:
    made = {}
    for name, (number, figure) in lists.items():
        made[name] = number[here].numpy().astype(np.int32)
        made[f"{name}_logit" if name in ("promoted", "suppressed") else f"{name}_figure"] = figure[here].numpy().astype(np.float32)
    return made


def _contexts(
    contexts: Contexts, gathered: Gathered, low: int, high: int, position: np.ndarray | None, examples: Examples
) -> dict[str, np.ndarray]:
    """The contexts of the features from `low` to `high`, and the codes they show."""
    starts = np.searchsorted(contexts.feature, np.arange(low, high + 1))
    here = slice(starts[0], starts[-1])
    row, place = contexts.row[here], contexts.place[starts[0] : starts[-1] + 1]
    return {
        "contexts": starts - starts[0],
        "band": contexts.band[here],
        "row": row,
        "value": contexts.value[here].astype(np.float32),
        "example": examples.number[row],
        "position": (row if position is None else position[row]).astype(np.int32),
        "first": contexts.first[here],
        "length": contexts.length[here].astype(np.int32),
        "place": place - place[0],
        "values": gathered.values[place[0] : place[-1]],
    }
