"""Angles between feature directions: nearest ones, those above a threshold, groups, and what random directions would give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.dictionaries.sae import top_mask
from activarium.errors import InputError, NotFinite

AT_ONCE = 1 << 25  # cosines that exist at a time, 128 MB in float32
LINKED = 6000  # members of a component that are linked by averages: 18 million distances, 144 MB


def unit_directions(directions: Tensor, name: str = "directions") -> Tensor:
    """Rows of length 1 in float32; a zero row stays zero and is at cosine 0 from everything.

    Raises:
        NotFinite: NaN or infinity among them.
    """
    found = directions.detach().cpu().double()
    if not bool(found.isfinite().all()):
        row = int((~found.isfinite()).any(1).nonzero()[0])
        raise NotFinite(f"Feature {row} has NaN or infinity in its {name}: no angle can be taken. Read or train the dictionary again.")
    return torch.nn.functional.normalize(found, dim=1, eps=1e-300).float()


def encoder_directions(dictionary: FeatureDictionary) -> Tensor | None:
    """What each feature reads along, `feature d_in`, where the dictionary says; None for others."""
    found: Any = getattr(dictionary, "encoder", None)
    fits = isinstance(found, Tensor) and tuple(found.shape) == (dictionary.width, dictionary.d_in)
    return unit_directions(found, "encoder") if fits else None


def cosine_blocks(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First row and cosines with all of `b`, some rows of `a` at a time."""
    step = max(1, AT_ONCE // max(1, len(b)))
    for first in range(0, len(a), step):
        yield first, a[first : first + step] @ b.T


def nearest(a: Tensor, b: Tensor | None = None, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and numbers of the nearest rows of `b`, the nearest first, `row count`; of equal ones the lower number.

    Args:
        a: Unit rows.
        b: Unit rows; None looks among the other rows of `a`.
        count: How many.
    """
    other = a if b is None else b
    count = min(count, len(other) - (b is None))
    cosines, numbers = [np.empty((0, count))], [np.empty((0, count), np.int64)]
    for first, found in cosine_blocks(a, other):
        if b is None:
            found[torch.arange(len(found)), first + torch.arange(len(found))] = -torch.inf
        if count:
            number = top_mask(found, count).nonzero()[:, 1].reshape(len(found), count)
            values, order = found.gather(1, number).sort(dim=1, descending=True, stable=True)
            cosines.append(values.double().clamp(-1, 1).numpy())
            numbers.append(number.gather(1, order).numpy())
    return np.concatenate(cosines), np.concatenate(numbers)


def pairs_above(a: Tensor, b: Tensor, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row of `a`, row of `b` and cosine of every pair at `threshold` or above, in the order of the rows."""
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for first, found in cosine_blocks(a, b):
        row, column = (found >= threshold).nonzero(as_tuple=True)
        parts.append((row.numpy() + first, column.numpy(), found[row, column].double().numpy()))
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))  # type: ignore[return-value]


def random_directions(rows: int, width: int, seed: int) -> Tensor:
    """Unit rows that point anywhere with equal chance."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


def groups(pairs: np.ndarray, count: int) -> list[np.ndarray]:
    """Members of each group that pairs `(n, 2)` join, larger groups first; those that stand alone are left out."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    joined = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    label = connected_components(joined, directed=False)[1]
    members = [np.flatnonzero(label == number) for number in np.flatnonzero(np.bincount(label, minlength=1) > 1)]
    return sorted(members, key=lambda m: (-len(m), int(m[0])))


def close_groups(directions: Tensor, pairs: np.ndarray, threshold: float) -> tuple[list[np.ndarray], int]:
    """Groups by average linkage: two are joined while the mean cosine between their members is at least `threshold`.

    Such a join needs one pair at the threshold, so each component of `pairs` is linked alone, which gives the same groups.

    Returns:
        The groups, and how many components were too large for it and stay joined pair by pair.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    found, whole = [], 0
    for members in groups(pairs, len(directions)):
        if len(members) > LINKED:
            found.append(members)
            whole += 1
            continue
        inside = directions[members].double()
        upper = np.triu_indices(len(members), 1)
        apart = (1 - (inside @ inside.T).clamp(-1, 1)).numpy()[upper]
        label = fcluster(linkage(apart, "average"), 1 - threshold + 1e-7, "distance")
        found += [part for number in np.unique(label) if len(part := members[label == number]) > 1]
    return sorted(found, key=lambda m: (-len(m), int(m[0]))), whole


def check_share(name: str, value: float) -> None:
    """Refuse what is no cosine or share above 0.

    Raises:
        InputError: With the name and the value.
    """
    if not 0 < value <= 1:
        raise InputError(f"{name}={value} is compared with cosines or shares: give a number above 0 and at most 1.")
