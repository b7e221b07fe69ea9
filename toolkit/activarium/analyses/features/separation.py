"""How well a score tells two groups apart: AUROC and the false positive rate at 95 %, with intervals that draw both groups again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ACCEPTED = 0.95  # share of the known that the threshold of FPR95 accepts


@dataclass(frozen=True, eq=False)
class Draws:
    """Resamples of both groups; the same draws serve every score, so that differences are paired.

    Attributes:
        known: Index of each drawn known example, `resample known`.
        outside: The same of those outside.
    """

    known: np.ndarray
    outside: np.ndarray

    @staticmethod
    def of(known: int, outside: int, resamples: int, seed: int) -> Draws:
        """Draw them."""
        generator = np.random.default_rng(seed)
        return Draws(generator.integers(known, size=(resamples, known)), generator.integers(outside, size=(resamples, outside)))


def auroc(known: np.ndarray, outside: np.ndarray) -> float:
    """Chance that an outside example scores above a known one; equal scores count half."""
    return float(_wins(known, outside).mean())


def false_positive_rate(known: np.ndarray, outside: np.ndarray) -> float:
    """Share of the outside examples that pass as known where the threshold lets at least 95 % of the known pass."""
    return float((outside <= np.sort(known)[_place(len(known))]).mean())


def auroc_draws(known: np.ndarray, outside: np.ndarray, draws: Draws) -> np.ndarray:
    """`auroc` of each resample."""
    weights = np.stack([np.bincount(d, minlength=len(known)) for d in draws.known]) / len(known)
    others = np.stack([np.bincount(d, minlength=len(outside)) for d in draws.outside]) / len(outside)
    return ((weights @ _wins(known, outside)) * others).sum(1)


def false_positive_draws(known: np.ndarray, outside: np.ndarray, draws: Draws) -> np.ndarray:
    """`false_positive_rate` of each resample."""
    lines = np.sort(known[draws.known], axis=1)[:, _place(len(known))]
    return (outside[draws.outside] <= lines[:, None]).mean(1)


def shuffled_auroc(known: np.ndarray, outside: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """`auroc` where it is drawn by lot who is outside: what no difference looks like with so many examples."""
    from scipy.stats import rankdata

    ranks, count = rankdata(np.concatenate([known, outside])), len(outside)
    generator = np.random.default_rng([seed, 1])
    found = np.array([ranks[generator.permutation(len(ranks))[:count]].sum() for _ in range(resamples)])
    return (found - count * (count + 1) / 2) / (count * len(known))


def _wins(known: np.ndarray, outside: np.ndarray) -> np.ndarray:
    return (outside[None] > known[:, None]) + 0.5 * (outside[None] == known[:, None])


def _place(count: int) -> int:
    return int(np.ceil(ACCEPTED * count - 1e-9)) - 1
