"""One layer's tokens: their norms, which of them have a high one, and which hold a massive number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, refuse_strange
from activarium.analyses.massive.norm_split import Split, split
from activarium.maths import lower_median


@dataclass(frozen=True, eq=False)
class TokenSizes:
    """Norms of the rows of one layer.

    Attributes:
        norms: L2 norm per row, float64.
        plain: The rows whose norms set the measure: patches or tokens, no class, register or special ones.
        massive: Rows that hold a massive number by Sun's rule.
        mean: Mean norm of the plain rows.
        std: Standard deviation of the norms of the plain rows (divided by their number).
        split: Two groups fitted to the plain rows.
        given: A threshold that was asked for, or None.
    """

    norms: np.ndarray
    plain: np.ndarray
    massive: np.ndarray
    mean: float
    std: float
    split: Split
    given: float | None

    @property
    def three(self) -> float:
        """Mean plus three standard deviations of the plain rows."""
        return self.mean + 3 * self.std

    @property
    def rule(self) -> str:
        """What the threshold is."""
        return "given" if self.given is not None else "split" if self.split.clear else "mean + 3 std"

    @property
    def threshold(self) -> float:
        """Norm above which a row counts as high."""
        return {"given": self.given or 0.0, "split": self.split.at, "mean + 3 std": self.three}[self.rule]

    @property
    def high(self) -> np.ndarray:
        """Rows above the threshold, of any kind."""
        return self.norms > self.threshold

    def share(self, which: np.ndarray) -> float:
        """Share of the plain rows, in percent."""
        return float(100 * which[self.plain].mean())


def token_sizes(
    activations: Activations, plain: np.ndarray, threshold: float | None, absolute: float, ratio: float, seed: int
) -> TokenSizes:
    """Measure the rows of one site, example by example.

    Args:
        activations: A site `row d_model`.
        plain: Rows whose norms set the measure; at least one.
        threshold: Norm above which a row is high, or None to find one.
        absolute: Sun's rule: exclusive lower bound of |h|.
        ratio: Sun's rule: inclusive lower bound of the multiple of the median of the example's plain rows.
        seed: Of the fit of two groups.

    Raises:
        NotFinite: NaN or infinite numbers.
    """
    refuse_strange(activations, "Such a row has no norm.")
    norms, massive = np.zeros(len(activations)), np.zeros(len(activations), bool)
    for _, first, values in by_example(activations):
        here = slice(first, first + len(values))
        size = values.detach().double().abs().cpu()  # float64: squares of float16 overflow above 255.9
        norms[here] = (size * size).sum(1).sqrt().numpy()
        if plain[here].any():
            median = float(lower_median(size[plain[here]]))
            massive[here] = ((size > absolute) & (size >= ratio * median)).any(1).numpy()
    chosen = norms[plain]
    return TokenSizes(norms, plain, massive, float(chosen.mean()), float(chosen.std()), split(chosen, seed), threshold)
