"""What is known about the curve of each layer, and the tables it is shown in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from activarium.analyses.massive.curve import DERIVED, PARAMETERS, Curve
from activarium.analyses.massive.curve_alternatives import aicc, alternatives
from activarium.analyses.massive.curve_fit import Fitted, Problem
from activarium.analyses.massive.curve_profile import condition_number, verdict
from activarium.results import Ranking, Series

MARGIN = 2.0  # a curve is preferred if its AICc is smaller by this much
FIVE = "five parameters"


@dataclass(frozen=True, eq=False)
class LayerDynamics:
    """One layer.

    Attributes:
        name: Which.
        steps: Where it was measured.
        values: What was measured.
        curve: The fit.
        ends: (5, 2) profile intervals, in the order of `PARAMETERS`.
        verdicts: One word each.
        again: Curves fitted to resampled noise.
        confidence: Of the intervals.
        left: Sum of squares that is left, of the data scaled to range 1.
        criteria: AICc of the five-parameter curve and of the alternatives.
        condition: Condition number of the covariance.
        together: Starts that came to this fit.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    curve: Curve
    ends: np.ndarray
    verdicts: tuple[str, ...]
    again: Sequence[Curve]
    confidence: float
    left: float
    criteria: dict[str, float]
    condition: float
    together: int

    @property
    def tails(self) -> list[float]:
        """Quantiles of the interval."""
        return [(1 - self.confidence) / 2, (1 + self.confidence) / 2]

    @property
    def residuals(self) -> np.ndarray:
        """Measured minus fitted."""
        return self.values - self.curve(self.steps)

    @property
    def r_squared(self) -> float:
        """Share of the variance over steps that the curve explains."""
        return float(1 - (self.residuals**2).sum() / ((self.values - self.values.mean()) ** 2).sum())

    @property
    def correlation(self) -> float:
        """Of neighbouring residuals; near 0 for independent noise, as all intervals assume."""
        r = self.residuals
        return float((r[1:] * r[:-1]).sum() / max((r**2).sum(), 1e-300))

    @property
    def shape(self) -> str:
        """What the curve does inside the series."""
        rising = self.curve.amplitude > 0
        if self.curve.observed_peak(self.steps[0], self.steps[-1]):
            return "peak" if rising else "trough"
        return "rise" if rising == (self.curve.peak_step > self.steps[-1]) else "fall"

    @property
    def preferred(self) -> str:
        """The curve of smallest AICc, the simpler one where they differ by less than 2."""
        fewer = min((n for n in self.criteria if n != FIVE), key=lambda n: self.criteria[n])
        return FIVE if self.criteria[FIVE] < self.criteria[fewer] - MARGIN else fewer

    def derived(self) -> tuple[np.ndarray, np.ndarray]:
        """(4,) numbers of `DERIVED` and (4, 2) their intervals over the resamples that have them."""
        span = float(self.steps[0]), float(self.steps[-1])
        drawn = np.array([c.derived(*span) for c in self.again]).reshape(-1, len(DERIVED))
        ends = [np.quantile(some, self.tails) if len(some := d[np.isfinite(d)]) else np.full(2, np.nan) for d in drawn.T]
        return self.curve.derived(*span), np.array(ends)

    def turning_share(self) -> float:
        """Share of the resamples that have a peak (or trough, as the fit has) inside the series; NaN without resamples."""
        span = float(self.steps[0]), float(self.steps[-1])
        alike = [c.observed_peak(*span) and (c.amplitude > 0) == (self.curve.amplitude > 0) for c in self.again]
        return float(np.mean(alike)) if alike else float("nan")


def layer_dynamics(
    names: Sequence[str], steps: np.ndarray, values: np.ndarray, problem: Problem, best: Fitted, ends: np.ndarray,
    again: Sequence[Sequence[Curve]], together: np.ndarray, confidence: float,
) -> list[LayerDynamics]:  # fmt: skip
    """Everything about each layer, on the scale of the data."""
    fewer = alternatives(problem.steps, problem.values)
    factors = np.array([1.0, 1.0, 1 / problem.last, 1.0, 1.0])
    told = []
    for i, name in enumerate(names):
        size = np.array([problem.ranges[i], 1, 1, 1, problem.ranges[i]]) * factors
        placed = ends[i] * size[:, None] + np.array([0, 0, 0, 0, problem.means[i]])[:, None]
        scaled = best.curve(i)
        words = tuple(verdict(n, v, low, high, 1.0) for n, v, (low, high) in zip(PARAMETERS, scaled.parameters, ends[i], strict=True))
        criteria = {FIVE: aicc(float(best.errors[i]), len(steps))} | {n: float(v[i]) for n, v in fewer.items()}
        condition = condition_number(scaled, problem.steps, 1.0)
        told.append(
            LayerDynamics(
                name, steps, values[i], problem.curve(best, i), placed, words, again[i], confidence,
                float(best.errors[i]), criteria, condition, int(together[i]),
            )
        )  # fmt: skip
    return told


def layers_table(told: Sequence[LayerDynamics]) -> Ranking:
    """One line per layer, the best described first."""
    order = sorted(told, key=lambda layer: -layer.r_squared)
    derived = [layer.derived() for layer in order]
    columns: dict[str, np.ndarray] = {"shape": np.array([layer.shape for layer in order], dtype=object)}
    for k, name in enumerate(DERIVED):
        columns[name] = np.array([values[k] for values, _ in derived])
        columns |= {f"{name} {end}": np.array([ends[k, j] for _, ends in derived]) for j, end in enumerate(("low", "high"))}
    columns["x at peak"] = np.array([layer.curve.x_peak for layer in order])
    columns["share with turn"] = np.array([layer.turning_share() for layer in order])
    columns["preferred"] = np.array([layer.preferred for layer in order], dtype=object)
    columns |= {f"AICc {name}": np.array([layer.criteria[name] for layer in order]) for name in order[0].criteria}
    columns["condition number"] = np.array([layer.condition for layer in order])
    columns["residual correlation"] = np.array([layer.correlation for layer in order])
    columns["starts together"] = np.array([layer.together for layer in order])
    columns["steps"] = np.array([len(layer.steps) for layer in order])
    r_squared = np.array([layer.r_squared for layer in order])
    return Ranking(tuple(layer.name for layer in order), r_squared, columns, title="Layers, the best described first", unit="R²")


def parameters_table(told: Sequence[LayerDynamics]) -> Ranking:
    """One line per layer and parameter, in the order of the layers."""
    columns = {
        "layer": np.array([layer.name for layer in told for _ in PARAMETERS], dtype=object),
        "parameter": np.array([name for _ in told for name in PARAMETERS], dtype=object),
        "low": np.concatenate([layer.ends[:, 0] for layer in told]),
        "high": np.concatenate([layer.ends[:, 1] for layer in told]),
        "verdict": np.array([word for layer in told for word in layer.verdicts], dtype=object),
    }
    names = tuple(f"{layer.name} {name}" for layer in told for name in PARAMETERS)
    values = np.concatenate([layer.curve.parameters for layer in told])
    return Ranking(names, values, columns, title="The five numbers of each layer and whether the data know them", unit="estimate")


def layer_series(layer: LayerDynamics) -> Series:
    """Measured and fitted values, with the band of the resampled fits."""
    bands = {}
    if layer.again:
        drawn = np.array([c(layer.steps) for c in layer.again])
        bands["fitted"] = np.quantile(drawn, layer.tails, axis=0)
    curves = {"measured": layer.values, "fitted": layer.curve(layer.steps)}
    title = f"{layer.name}: R² {layer.r_squared:.3f}"
    return Series(layer.steps, curves, "training step", bands, title=title, unit="times the median")


def dynamics_words(told: Sequence[LayerDynamics]) -> list[str]:
    """The finding in sentences, also where the curve does not fit."""
    fits = [layer.r_squared for layer in told]
    words = [
        f"{len(told)} layers at {len(told[0].steps)} steps up to {told[0].steps[-1]:g}: the five-parameter curve explains "
        f"{min(fits):.3f} to {max(fits):.3f} of the variance (R²), {np.mean(fits):.3f} on average."
    ]
    words += [_layer_words(layer) for layer in told[:12]]
    simpler = {layer.name: layer.preferred for layer in told if layer.preferred != FIVE}
    if simpler:
        listed = ", ".join(f"{name} ({curve})" for name, curve in list(simpler.items())[:12])
        words.append(f"In {len(simpler)} of {len(told)} layers a curve of three numbers does as well or better by AICc: {listed}.")
    uneven = [layer.name for layer in told if layer.correlation > 2 / np.sqrt(len(layer.steps))]
    if uneven:
        words.append(
            f"Neighbouring residuals agree in {', '.join(uneven[:12])}: what is left is no independent noise, so the intervals "
            "there are too narrow and the curve misses part of the course."
        )
    return words


def _layer_words(layer: LayerDynamics) -> str:
    values, ends = layer.derived()
    turn = f"no turn inside the series, a {layer.shape}"
    if layer.shape in ("peak", "trough"):
        turn = f"a {layer.shape} of {values[1]:.3g} at step {values[0]:,.0f}{_interval(ends[0])}"
        if layer.turning_share() < layer.confidence:
            turn += f" in only {layer.turning_share():.0%} of the resamples"
    known = {word: [n for n, v in zip(PARAMETERS, layer.verdicts, strict=True) if v == word] for word in dict.fromkeys(layer.verdicts)}
    verdicts = "; ".join(f"{word}: {', '.join(names)}" for word, names in sorted(known.items()))
    return f"{layer.name}: R² {layer.r_squared:.3f}, {turn}, at the end {values[2]:.3g}{_interval(ends[2])}. {verdicts[0].upper()}{verdicts[1:]}."


def _interval(ends: np.ndarray) -> str:
    return f" ({ends[0]:,.3g} to {ends[1]:,.3g})" if np.isfinite(ends).all() else ""
