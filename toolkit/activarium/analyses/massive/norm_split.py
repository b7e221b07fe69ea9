"""Do the norms of a layer's tokens fall into two groups, and where between them is the cut?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium.errors import MissingExtra

FEWEST = 10  # tokens; fewer tell nothing about groups
MOST = 100_000  # norms that are fitted; of more, evenly spaced ones in order of size
APART, TIMES, EVIDENCE = 2.0, 2.0, 10.0
FEW = 0.2  # share of the tokens that outliers may be: two halves of a layer are two kinds of tokens


@dataclass(frozen=True)
class Split:
    """Two Gaussians fitted to log norms, beside one.

    Attributes:
        at: Norm between the two at which both explain a token equally well; NaN where there is none.
        low: Typical norm of the lower group.
        high: Typical norm of the higher group.
        share: Share of the tokens in the higher group.
        apart: Ashman's D: distance of the means in units of both spreads; above 2 they are clearly apart.
        evidence: By how much two groups beat one, in BIC; above 10 is called very strong.
    """

    at: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    share: float = float("nan")
    apart: float = float("nan")
    evidence: float = float("nan")

    @property
    def clear(self) -> bool:
        """Is there a second group above: apart, with evidence, few, and with at least twice the norm?"""
        return self.at > 0 and self.apart > APART and self.evidence > EVIDENCE and self.share < FEW and self.high >= TIMES * self.low


def split(norms: np.ndarray, seed: int = 0) -> Split:
    """Fit one and two Gaussians to the logarithms of positive norms; NaN throughout where there is nothing to fit.

    Args:
        norms: One norm per token, in model units; zeros are left out.
        seed: Of the k-means that starts one of the fits.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    sizes = np.sort(norms[norms > 0])  # sorted: the fit cannot depend on the order of the rows
    logs = np.log(sizes[:: max(1, -(-len(sizes) // MOST))])[:, None]
    if len(np.unique(logs)) < FEWEST:
        return Split()
    one, two = _fits(logs, seed)
    means, variances = two.means_[:, 0], two.covariances_[:, 0, 0]
    low, high = np.argsort(means)
    between = np.linspace(means[low], means[high], 1001)
    passed = two.predict_proba(between[:, None])[:, high] >= 0.5
    divided = passed[-1] and not passed[0]  # else one group outweighs the other even at the other's own mean: there is no cut
    return Split(
        at=float(np.exp(between[int(passed.argmax())])) if divided else float("nan"),
        low=float(np.exp(means[low])),
        high=float(np.exp(means[high])),
        share=float(two.weights_[high]),
        apart=float((means[high] - means[low]) * np.sqrt(2 / variances.sum())),
        evidence=float(one.bic(logs) - two.bic(logs)),
    )


def _fits(logs: np.ndarray, seed: int) -> tuple[Any, Any]:
    """One Gaussian, and the better of two fits of two."""
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as reason:
        raise MissingExtra(
            "Splitting norms into two groups needs scikit-learn. Install it with: pip install 'activarium[vision]'"
        ) from reason

    # A group of one token could be infinitely narrow: no spread may be below a twentieth of the whole.
    options: dict[str, Any] = {"reg_covar": float(logs.var()) / 400, "max_iter": 1000, "random_state": seed}
    fits = [GaussianMixture(2, **options, **start).fit(logs) for start in ({}, *_tail_start(logs))]
    return GaussianMixture(1, **options).fit(logs), max(fits, key=lambda fit: float(fit.lower_bound_))


def _tail_start(logs: np.ndarray) -> list[dict[str, Any]]:
    """A start at the far tail: k-means cuts the bulk in two where the higher group is very small."""
    tail = logs[:, 0] > logs.mean() + 3 * logs.std()
    if not tail.any():
        return []
    means = np.array([logs[~tail].mean(), logs[tail].mean()])[:, None]
    precision = 1 / np.array([logs[~tail].var(), max(logs[tail].var(), logs[~tail].var())])
    return [{"means_init": means, "weights_init": np.array([1 - tail.mean(), tail.mean()]), "precisions_init": precision[:, None, None]}]
