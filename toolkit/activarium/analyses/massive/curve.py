"""The five-parameter curve of massive activations during training, and the numbers that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PARAMETERS: tuple[str, ...] = ("A", "lambda", "gamma", "t0", "K")
DERIVED = ("peak step", "peak value", "last value", "half-rise step")


@dataclass(frozen=True)
class Curve:
    """f(t) = A · exp(−λ x) · log x + K, with x = γ t + t0.

    Attributes:
        amplitude: A, in the unit of the values.
        decay: λ > 0, how soon the rise turns into a fall; near 0 the curve is a logarithm.
        scale: γ > 0, per step.
        offset: t0 > 0, x at step 0.
        asymptote: K, where the curve ends, in the unit of the values.
    """

    amplitude: float
    decay: float
    scale: float
    offset: float
    asymptote: float

    def __call__(self, steps: np.ndarray) -> np.ndarray:
        x = self.scale * np.asarray(steps, dtype=np.float64) + self.offset
        return self.amplitude * np.exp(-self.decay * x) * np.log(x) + self.asymptote

    @property
    def parameters(self) -> np.ndarray:
        """The five numbers in the order of `PARAMETERS`."""
        return np.array([self.amplitude, self.decay, self.scale, self.offset, self.asymptote])

    @property
    def x_peak(self) -> float:
        """Where the slope is zero: x log x = 1/λ, so x = exp(W(1/λ)); infinite for λ = 0."""
        from scipy.special import lambertw

        return float(np.exp(lambertw(1 / self.decay).real)) if self.decay else float("inf")

    @property
    def peak_step(self) -> float:
        """The step of the peak (of the lowest point, if A < 0); negative if it lies before step 0."""
        return (self.x_peak - self.offset) / self.scale

    def observed_peak(self, first: float, last: float) -> bool:
        """Does the peak lie strictly inside the series?"""
        return first < self.peak_step < last

    def jacobian(self, steps: np.ndarray) -> np.ndarray:
        """Derivatives `step parameter` after the five numbers."""
        t = np.asarray(steps, dtype=np.float64)
        x = self.scale * t + self.offset
        fall, rise = np.exp(-self.decay * x), np.log(x)
        slope = self.amplitude * fall * (1 / x - self.decay * rise)
        return np.stack([fall * rise, -self.amplitude * x * fall * rise, t * slope, slope, np.ones_like(t)], 1)

    def rescaled(self, steps: float, values: float, shift: float) -> Curve:
        """The same curve where steps count `steps` times as much, and values are `values` times as large and then shifted."""
        return Curve(self.amplitude * values, self.decay, self.scale / steps, self.offset, self.asymptote * values + shift)

    def derived(self, first: float, last: float) -> np.ndarray:
        """The numbers of `DERIVED`, which stay put where single parameters do not; NaN for a peak outside the series."""
        seen = self.observed_peak(first, last)
        peak = self.peak_step if seen else np.nan
        height = float(self(np.array(peak))) if seen else np.nan
        return np.array([peak, height, float(self(np.array(last))), self._half_rise(first, last)])

    def _half_rise(self, first: float, last: float) -> float:
        """The step half way up the stretch on which the curve rises; NaN where it only falls."""
        from scipy.optimize import brentq

        turn = [self.peak_step] if self.observed_peak(first, last) else []
        edges = [first, *turn, last]
        values = self(np.array(edges))
        rising = int(np.diff(values).argmax())
        low, high = values[rising], values[rising + 1]
        if not high > low:
            return float("nan")
        middle = (low + high) / 2
        return float(brentq(lambda t: float(self(np.array(t))) - middle, edges[rising], edges[rising + 1]))  # pyright: ignore[reportArgumentType]
