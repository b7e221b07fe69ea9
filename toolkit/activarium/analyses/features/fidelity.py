"""How well a dictionary gives rows back, and how its features fire: sums over one pass, and the figures they make."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from activarium.analyses.features.spread import Spread
from activarium.dictionaries import FeatureDictionary
from activarium.maths import bootstrap_interval

TWIN = 0.99
DENSE = (0.1, 0.5)
BLOCK = 2048  # directions that are compared at a time

DEFINITIONS: Mapping[str, str] = {
    "FVU": "Σ‖x − x̂‖² / Σ‖x − mean‖² over all rows, the mean being that of these rows (of the target, for a transcoder)",
    "explained variance": "1 − FVU",
    "FVU by number": "mean over the row's numbers of Σ(x − x̂)² / Σ(x − mean)²; those that never vary are left out",
    "codes per row": "mean number of codes that are not 0 (L0); p5, p50, p95 over rows",
    "cosine": "mean over rows of cos(x, x̂); rows of length 0 are left out",
    "norm ratio": "mean over rows of ‖x̂‖ / ‖x‖",
    "bias": "Σ‖x̂‖² / Σ⟨x, x̂⟩: 1 where nothing is shrunk, below 1 where it is",
    "constant error": "share of Σ‖x − x̂‖² that is the same vector in every row",
    "dead": "features with no code other than 0 in any of the rows",
    "dense > 0.1": "features active in more than a tenth of the rows",
    "dense > 0.5": "features active in more than half of the rows",
    "duplicates": f"features whose direction has a cosine above {TWIN} with that of an earlier feature",
}


class Fidelity:
    """Sums over rows for one dictionary; error and codes are kept by group of examples.

    Attributes:
        fires: Rows in which each feature is active, `feature`.
        counts: How many rows have 0, 1, 2, … codes.
    """

    def __init__(self, dictionary: FeatureDictionary, groups: int) -> None:
        self.dictionary = dictionary
        self.fires = np.zeros(dictionary.width, np.int64)
        self.counts = np.zeros(1, np.int64)
        width = dictionary.d_out
        self._errors, self._codes = np.zeros(groups), np.zeros(groups)
        self._by_number, self._total = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        self._sums = np.zeros(5)  # Σ‖x̂‖², Σ⟨x, x̂⟩, Σ cos, Σ ‖x̂‖/‖x‖, rows that are not 0

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, owner: np.ndarray) -> None:
        """More rows: what is read, what should be written, and the group of each."""
        there = self.dictionary.directions.device
        codes = self.dictionary.codes(x.to(there))
        made, wide = self.dictionary.forward(x.to(there)).double().cpu(), y.double().cpu()
        error = wide - made
        groups = len(self._errors)
        self._errors += np.bincount(owner, error.square().sum(1).numpy(), groups)
        self._by_number += error.square().sum(0)
        self._total += error.sum(0)
        lengths, sizes, along = wide.norm(dim=1), made.norm(dim=1), (wide * made).sum(1)
        some = lengths > 0
        cosines = along / (lengths * sizes).clamp_min(1e-300)
        self._sums += np.array([sizes.square().sum(), along.sum(), cosines[some].sum(), (sizes / lengths)[some].sum(), some.sum()])
        active = codes.active.cpu().numpy()
        self.fires += codes.fires.cpu().numpy()
        self._codes += np.bincount(owner, active, groups)
        found = np.bincount(active)
        most = max(len(found), len(self.counts))
        self.counts = np.pad(self.counts, (0, most - len(self.counts))) + np.pad(found, (0, most - len(found)))

    def quantile(self, share: float) -> int:
        """The smallest number of codes that this share of the rows has at most."""
        return int(np.searchsorted(self.counts.cumsum(), share * self.counts.sum() - 1e-9))

    def figures(self, spread: Spread, confidence: float, resamples: int, seed: int) -> dict[str, float]:
        """All figures, each under the name that `DEFINITIONS` explains, with intervals over examples for the first two.

        Args:
            spread: Of the same rows of what should be written.
            confidence: Share of the draws inside an interval.
            resamples: How many times examples are drawn again.
            seed: Of the draws.
        """
        rows, whole = int(spread.rows.sum()), spread.about_mean()
        here = spread.rows.numpy() > 0
        above, below = np.stack([self._errors, self._codes], 1)[here], np.stack([whole, spread.rows.numpy()], 1)[here]
        low, high, _ = bootstrap_interval(above, below, confidence=confidence, resamples=resamples, seed=seed)
        error, variance = self._errors.sum(), spread.by_number()
        varies = variance > 1e-12 * max(variance.max(), 1e-300)
        made, along, cosine, ratio, some = self._sums
        fvu = _over(error, whole.sum())
        return {
            "FVU": fvu,
            "FVU low": float(low[0]),
            "FVU high": float(high[0]),
            "explained variance": 1 - fvu,
            "FVU by number": float((self._by_number.numpy()[varies] / variance[varies]).mean()) if varies.any() else float("nan"),
            "codes per row": float(self._codes.sum() / rows),
            "codes low": float(low[1]),
            "codes high": float(high[1]),
            **{f"codes p{round(100 * q)}": self.quantile(q) for q in (0.05, 0.5, 0.95)},
            "cosine": _over(cosine, some),
            "norm ratio": _over(ratio, some),
            "bias": _over(made, along),
            "constant error": _over(float(self._total.square().sum()) / rows, error),
            "dead": int((self.fires == 0).sum()),
            **{f"dense > {share}": int((self.fires > share * rows).sum()) for share in DENSE},
            "duplicates": duplicates(self.dictionary.directions),
            "features": self.dictionary.width,
        }


def duplicates(directions: Tensor) -> int:
    """How many features write along an earlier one."""
    unit = normalize(directions.detach().float(), dim=1)
    found = 0
    for first in range(0, len(unit), BLOCK):
        here = unit[first : first + BLOCK]
        twins = torch.zeros(len(here), dtype=torch.bool, device=unit.device)
        for start in range(0, first + 1, BLOCK):
            near = here @ unit[start : start + BLOCK].T > TWIN
            twins |= (near.tril(-1) if start == first else near).any(1)
        found += int(twins.sum())
    return found


def _over(above: float, below: float) -> float:
    return float(above / below) if below else float("nan")
