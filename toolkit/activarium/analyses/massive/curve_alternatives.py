"""Three curves with fewer numbers, to ask whether the five-parameter curve is needed: compared by AICc."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from activarium.analyses.massive.curve import PARAMETERS

FEWER = 3  # numbers of each alternative: A, K and a time

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _logarithm(steps: np.ndarray, time: np.ndarray) -> np.ndarray:
    return np.log(steps + time)


def _saturating(steps: np.ndarray, time: np.ndarray) -> np.ndarray:
    return -np.exp(-steps / time)


def _second_order(steps: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Step response of a critically damped system of second order."""
    return -(1 + steps / time) * np.exp(-steps / time)


SHAPES: Mapping[str, Shape] = {"logarithm": _logarithm, "saturating exponential": _saturating, "second-order step": _second_order}


def alternatives(steps: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    """Name → AICc per series of the best A · shape(t; time) + K.

    Args:
        steps: (point,) scaled so that the last is 1.
        values: (series, point).
    """
    return {name: np.array([aicc(_least(shape, steps, v), len(steps), FEWER) for v in values]) for name, shape in SHAPES.items()}


def _least(shape: Shape, steps: np.ndarray, values: np.ndarray) -> float:
    """Smallest sum of squares over the time; A and K follow linearly."""
    from scipy.optimize import minimize_scalar

    times = np.linspace(np.log(1e-6), np.log(1e3), 400)
    i = int(_left(shape, steps, values, times).argmin())
    around = times[max(i - 1, 0)], times[min(i + 1, len(times) - 1)]
    found = minimize_scalar(
        lambda t: _left(shape, steps, values, np.array([t]))[0], bounds=around, method="bounded", options={"xatol": 1e-8}
    )
    return float(found.fun)  # pyright: ignore[reportAttributeAccessIssue]


def _left(shape: Shape, steps: np.ndarray, values: np.ndarray, times: np.ndarray) -> np.ndarray:
    drawn = shape(steps, np.exp(times)[:, None])
    drawn = drawn - drawn.mean(1, keepdims=True)
    centred = values - values.mean()
    slope = (drawn @ centred) / np.maximum((drawn**2).sum(1), 1e-300)
    return ((centred - slope[:, None] * drawn) ** 2).sum(1)


def aicc(left: float, points: int, numbers: int = len(PARAMETERS)) -> float:
    """Akaike's criterion for few points, of a least-squares fit; the size of the noise counts as one number more."""
    k = numbers + 1
    return points * np.log(max(left, 1e-300) / points) + 2 * k + 2 * k * (k + 1) / (points - k - 1)
