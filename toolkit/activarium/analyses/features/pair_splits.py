"""Splits of pairs into parts that share no prompt and no conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from activarium.errors import InputError

PARTS = ("train", "validation", "test")


def components(groups: Sequence[Any], pairs: int) -> np.ndarray:
    """Number of the connected component of each pair: pairs that share any id belong together, also through others.

    Args:
        groups: An id for each pair, or several lists of ids (prompts, conversations).
        pairs: How many pairs there are.

    Raises:
        InputError: A list of ids is not one per pair.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    several = len(groups) != pairs or (len(groups) > 0 and not isinstance(groups[0], (str, bytes)) and np.ndim(groups[0]) == 1)
    lists = [np.asarray(g).astype(str) for g in groups] if several else [np.asarray(groups).astype(str)]
    odd = next((g for g in lists if g.shape != (pairs,)), None)
    if odd is not None or not lists:
        found = "none" if odd is None else str(odd.shape)
        raise InputError(f"groups holds ids of shape {found} for {pairs} pairs; give one id for each pair, or several such lists.")
    rows, columns, first = [], [], pairs
    for ids in lists:
        names, number = np.unique(ids, return_inverse=True)
        rows.append(np.arange(pairs))
        columns.append(first + number)
        first += len(names)
    joined = coo_matrix((np.ones(pairs * len(lists)), (np.concatenate(rows), np.concatenate(columns))), (first, first))
    _, found = connected_components(joined, directed=False)
    _, number = np.unique(found[:pairs], return_inverse=True)
    return number


def split(component: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Part of each pair, 0 train, 1 validation, 2 test; whole components, in an order drawn by lot; very large ones train.

    Raises:
        InputError: The shares are no shares, or components are too large for three parts.
    """
    if len(shares) != len(PARTS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"shares={tuple(shares)} are those of {', '.join(PARTS)}: three numbers above 0 that add up to 1.")
    sizes = np.bincount(component)
    order = np.random.default_rng(seed).permutation(len(sizes))
    # A component that would fill a part by itself goes to where most pairs are.
    order = order[np.argsort(sizes[order] <= min(shares) * len(component), kind="stable")]
    begins = np.cumsum(sizes[order]) - sizes[order]
    part = np.empty(len(sizes), int)
    part[order] = np.searchsorted(np.cumsum(shares)[:2] * len(component), begins, side="right")
    empty = [name for i, name in enumerate(PARTS) if not (part == i).any()]
    if empty:
        raise InputError(
            f"{', '.join(empty)} would be empty: the {len(component)} pairs hang together in {len(sizes)} components, the largest of {sizes.max()}. "
            "Pairs that share a prompt cannot be split; record more prompts, or drop an id that joins all."
        )
    return part[component]
