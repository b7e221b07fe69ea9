"""Distances between classes, trees of them, and how well they agree with an ontology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np

from activarium.errors import InputError
from activarium.results import Graph

AT_ONCE = 1 << 22  # distances that are permuted together, 32 MB
Ontology = Mapping[str, Sequence[str]] | np.ndarray


def cosine_distances(profiles: np.ndarray) -> np.ndarray:
    """1 − cosine of every two rows of `class feature`; a row of zeros is at 1 from all others."""
    length = np.linalg.norm(profiles, axis=1, keepdims=True)
    unit = profiles / np.where(length > 0, length, 1.0)
    apart = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(apart, 0.0)
    return apart


def jaccard_distances(profiles: np.ndarray, top: int) -> np.ndarray:
    """1 − shared over all of the `top` largest features of every two rows; of equal ones the lower feature; zeros never count."""
    order = np.argsort(-profiles, axis=1, kind="stable")[:, :top]
    chosen = np.zeros(profiles.shape)
    np.put_along_axis(chosen, order, 1.0, axis=1)
    chosen *= profiles > 0
    shared = chosen @ chosen.T
    union = chosen.sum(1)[:, None] + chosen.sum(1)[None] - shared
    apart = 1 - np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    np.fill_diagonal(apart, 0.0)
    return apart


def ontology_distances(ontology: Ontology, classes: Sequence[str], nested: bool) -> np.ndarray:
    """Distances that an ontology says, `class class`.

    Raises:
        InputError: A class is missing, paths have different lengths, or a matrix that is not one of distances.
    """
    if isinstance(ontology, Mapping):
        missing = [c for c in classes if c not in ontology]
        if missing:
            raise InputError(f"The ontology says nothing of {', '.join(missing[:5])}. Give a path for each of the {len(classes)} classes.")
        paths = [tuple(str(w) for w in ontology[c]) for c in classes]
        if len({len(p) for p in paths}) != 1 or not paths[0]:
            raise InputError(
                f"Paths of the ontology have {sorted({len(p) for p in paths})} words; give every class the same number, at least one."
            )
        same = np.array([[[a == b for a, b in zip(one, other, strict=True)] for other in paths] for one in paths])
        shared = same.cumprod(2) if nested else same
        return np.asarray(len(paths[0]) - shared.sum(2), dtype=np.float64)
    found = np.asarray(ontology, dtype=np.float64)
    wanted = (len(classes), len(classes))
    if found.shape != wanted or not np.allclose(found, found.T) or np.diagonal(found).any() or not (found >= 0).all():
        raise InputError(
            f"An ontology as distances is symmetric, at least 0, and 0 on its diagonal, of shape {wanted} in the order of "
            f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}; found shape {found.shape}."
        )
    return found


def upper(distances: np.ndarray) -> np.ndarray:
    """Each pair once."""
    return distances[np.triu_indices(len(distances), 1)]


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two lists of distances; NaN where one of them is constant."""
    a, b = one - one.mean(), other - other.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 * len(a) else float("nan")


@dataclass(frozen=True)
class Permuted:
    """Correlation of two distance matrices, and what it is when the classes of one are permuted (Mantel 1967).

    Attributes:
        value: The correlation.
        chance: Share of the permutations with a correlation at least as large, the given order counted among them.
        null: Correlation of each permutation.
        exact: All permutations were looked at.
    """

    value: float
    chance: float
    null: np.ndarray
    exact: bool


def mantel(one: np.ndarray, other: np.ndarray, count: int, seed: int) -> Permuted:
    """The permutation test of two distance matrices; all permutations where there are no more than `count`."""
    classes, value = len(one), pearson(upper(one), upper(other))
    exact = factorial(classes) <= count
    generator = np.random.default_rng(seed)
    orders = np.array(list(permutations(range(classes))) if exact else [generator.permutation(classes) for _ in range(count)])
    if not np.isfinite(value):
        return Permuted(value, float("nan"), np.full(len(orders), np.nan), exact)
    rows, columns = np.triu_indices(classes, 1)
    # A permutation keeps the distances and so their mean and spread: one product gives the correlation.
    a, b = upper(one) - upper(one).mean(), upper(other) - upper(other).mean()
    fixed = b / np.sqrt((a @ a) * (b @ b))
    at_once = max(1, AT_ONCE // len(rows))
    null = np.concatenate([one[p[:, rows], p[:, columns]] @ fixed for p in np.split(orders, range(at_once, len(orders), at_once))])
    beyond = int((null >= value - 1e-9).sum())
    return Permuted(value, beyond / len(null) if exact else (1 + beyond) / (1 + count), null, exact)


def tree(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average-linkage tree (scipy's linkage table), and the cophenetic distance of every two classes."""
    from scipy.cluster.hierarchy import average, cophenet
    from scipy.spatial.distance import squareform

    links = average(upper(distances))
    return links, squareform(cophenet(links))


def clades(distances: np.ndarray) -> set[frozenset[int]]:
    """Groups of classes that an ultrametric keeps together: at each height, those nearer to one another than that; not all, not one."""
    found = set()
    for height in np.unique(upper(distances)):
        for row in distances <= height * (1 + 1e-9):
            group = frozenset(np.flatnonzero(row).tolist())
            if 1 < len(group) < len(distances):
                found.add(group)
    return found


def tree_graph(links: np.ndarray, classes: Sequence[str]) -> Graph:
    """The tree as a graph: classes at the bottom, an edge from each group to its two parts, as long as its branch."""
    count = len(classes)
    heights = np.r_[np.zeros(count), links[:, 2]]
    layers, sizes = np.zeros(count + len(links), int), np.r_[np.ones(count, int), links[:, 3].astype(int)]
    edges, lengths = [], []
    for i, (a, b, height, _) in enumerate(links):
        group = count + i
        layers[group] = 1 + max(layers[int(a)], layers[int(b)])
        for part in (int(a), int(b)):
            edges.append((group, part))
            lengths.append(height - heights[part])
    names = (*classes, *(f"group {i}" for i in range(len(links))))
    columns = {"layer": layers, "height": heights, "classes": sizes}
    return Graph(names, np.array(edges), np.array(lengths), heights, columns, title="Tree of the classes", unit="branch length")
