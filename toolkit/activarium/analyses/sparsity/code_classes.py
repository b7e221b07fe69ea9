"""Do codes of one class lie together? Clusters, neighbours and separating planes, fitted on one split and asked on another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from activarium.analyses.sparsity.codes import Codes, hamming
from activarium.errors import CapacityError, MissingExtra

MOST_BYTES = 4 << 30  # of unpacked bits, as scikit-learn wants them
BINS = 50


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What one pass over all pairs of a test and a train item gives.

    Attributes:
        guesses: (item,) class by vote of the nearest train codes.
        same: (bin,) pairs of one class by share of differing bits.
        other: (bin,) pairs of two classes.
        same_mean: Mean share of differing bits within a class.
        other_mean: The same between classes.
    """

    guesses: np.ndarray
    same: np.ndarray
    other: np.ndarray
    same_mean: float
    other_mean: float


def neighbours(train: Codes, truth: np.ndarray, test: Codes, wanted: np.ndarray, k: int) -> Neighbours:
    """The vote of the k nearest train codes of each test code, and all distances by whether the classes agree.

    Of equally near codes the earlier ones vote; of classes with as many votes the first in order wins.

    Args:
        train: Codes with their classes `truth`, whole numbers from 0.
        truth: (train item,).
        test: Codes to be classified.
        wanted: (test item,) their classes; only for the distances.
        k: How many vote.
    """
    classes, start, guesses = int(truth.max()) + 1, 0, []
    counts, sums = np.zeros((2, BINS + 1), np.int64), np.zeros(2)
    for distance in hamming(test, train):
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
        votes = (truth[nearest][..., None] == np.arange(classes)).sum(1)
        guesses.append(votes.argmax(1))
        alike = wanted[start : start + len(distance), None] == truth
        for i, chosen in enumerate((alike, ~alike)):
            counts[i] += np.bincount(distance[chosen] * BINS // max(train.bits, 1), minlength=BINS + 1)
            sums[i] += distance[chosen].sum()
        start += len(distance)
    pairs = counts.sum(1)
    means = [float(s / n / max(train.bits, 1)) if n else float("nan") for s, n in zip(sums, pairs, strict=True)]
    counts[:, -2] += counts[:, -1]  # codes that differ everywhere
    return Neighbours(np.concatenate(guesses), counts[0, :-1], counts[1, :-1], *means)


def clusters(train: Codes, truth: np.ndarray, test: Codes, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """K-Means with as many clusters as classes, found without them: (item,) guesses for the test codes, in two ways.

    The first gives each cluster one class of its own, so that most train items are right (assignment problem). In the second,
    which measures purity, each cluster takes its most frequent class, and two may take the same.
    """
    with _needed():
        from scipy.optimize import linear_sum_assignment
        from sklearn.cluster import KMeans

    classes = int(truth.max()) + 1
    found = KMeans(classes, n_init=10, random_state=seed).fit(_dense(train))  # pyright: ignore[reportArgumentType] (its stub says str)
    members = np.zeros((classes, classes), np.int64)
    np.add.at(members, (found.predict(_dense(train)), truth), 1)
    own = np.zeros(classes, np.int64)
    cluster, given = linear_sum_assignment(-members)
    own[cluster] = given
    at = found.predict(_dense(test))
    return own[at], members.argmax(1)[at]


def planes(train: Codes, truth: np.ndarray, test: Codes) -> np.ndarray:
    """One logistic regression per pair of classes, and a vote."""
    with _needed():
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsOneClassifier

    return OneVsOneClassifier(LogisticRegression(max_iter=2000)).fit(_dense(train), truth).predict(_dense(test))


def _dense(codes: Codes) -> np.ndarray:
    """(item, bit) float32."""
    size = 4 * len(codes) * codes.bits
    if size > MOST_BYTES:
        raise CapacityError(
            f"{len(codes):,} codes of {codes.bits:,} bits take {size / 2**30:.1f} GiB when unpacked; at most {MOST_BYTES >> 30} are allowed. "
            "Choose fewer layers, recording['blocks.{2,3}.mlp.act'], or fewer items."
        )
    return np.concatenate([part.astype(np.float32) for part in codes.unpacked()])


@contextmanager
def _needed() -> Iterator[None]:
    """Says what to install where scikit-learn or SciPy is missing."""
    try:
        yield
    except ImportError as reason:
        raise MissingExtra(f"Classes of codes need scikit-learn and SciPy ({reason}). pip install 'activarium[vision]'") from reason
