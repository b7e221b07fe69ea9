"""Circuits out of edge scores: the largest edges, or those reached from the logits; dead ends cut off."""

from __future__ import annotations

import heapq

import numpy as np

from activarium.analyses.patching.wiring import Wiring
from activarium.errors import InputError

SELECT = ("top", "greedy")


def select(wiring: Wiring, scores: np.ndarray, count: int, how: str) -> np.ndarray:
    """Boolean `reader writer`: the edges of a circuit, before dead ends are cut off.

    Args:
        wiring: All edges.
        scores: One number per edge, `reader writer`; edges with NaN are never chosen.
        count: How many edges; fewer where there are not so many.
        how: `top` takes the largest by size, `greedy` the largest that lead into what was taken, from the logits down.

    Raises:
        InputError: Another `how`.
    """
    if how not in SELECT:
        raise InputError(f"select={how!r} is not known; choose {' or '.join(SELECT)}.")
    sizes = np.where(wiring.edges & ~np.isnan(scores), np.abs(scores), -1.0)
    return _greedy(wiring, sizes, count) if how == "greedy" else _top(sizes, count)


def _top(sizes: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(sizes.size, dtype=bool)
    chosen[np.argsort(-sizes, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(sizes.shape) & (sizes >= 0)


def _greedy(wiring: Wiring, sizes: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(sizes.shape, dtype=bool)
    waiting: list[tuple[float, int, int]] = []
    open_readers: set[int] = set()

    def reach(readers: np.ndarray) -> None:
        for r in set(readers.tolist()) - open_readers:
            open_readers.add(r)
            for w in np.flatnonzero(sizes[r] >= 0):
                heapq.heappush(waiting, (-sizes[r, w], r, int(w)))

    reach(np.array([len(wiring.readers) - 1]))
    for _ in range(count):
        if not waiting:
            break
        _, r, w = heapq.heappop(waiting)
        chosen[r, w] = True
        reach(np.flatnonzero(wiring.serves[:, w]))
    return chosen


def prune(wiring: Wiring, chosen: np.ndarray) -> np.ndarray:
    """The edges that lie on a way from the embedding to the logits. The others change nothing: what they leave is as in the source run, or nobody reads it."""
    fed = _closed(np.arange(len(wiring.writers)) == 0, lambda w: (wiring.serves & (chosen & w).any(1)[:, None]).any(0))
    read = _closed(
        np.arange(len(wiring.readers)) == len(wiring.readers) - 1, lambda r: (wiring.serves & (chosen & r[:, None]).any(0)).any(1)
    )
    return chosen & fed & read[:, None]


def _closed(found: np.ndarray, step) -> np.ndarray:
    while True:
        more = found | step(found)
        if (more == found).all():
            return found
        found = more
