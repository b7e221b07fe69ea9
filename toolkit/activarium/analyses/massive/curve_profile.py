"""How well are the five numbers known? Profile intervals, refits of resampled noise, condition number, verdicts in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from activarium.analyses.massive.curve import PARAMETERS, Curve
from activarium.analyses.massive.curve_fit import GAMMA, LAMBDA, Fitted, Problem, solve

IDENTIFIED, LOOSE, UNIDENTIFIED = "identified", "loose", "not identified"
WITHIN = 1.5  # identified: the interval ends within this factor of the estimate (A, λ, γ, t0)
SHARE = 0.25  # … or within this share of the range of the data (K)

# How far from the estimate a number is held: as a factor (logarithm here), of K as a share of the range of the data.
FACTORS = np.geomspace(np.log(1.005), np.log(100), 16)
SHIFTS = np.geomspace(0.002, 100, 16)


def profile_ends(problem: Problem, best: Fitted, confidence: float, advance: Callable[..., None]) -> tuple[np.ndarray, Fitted]:
    """(series, 5, 2) lower and upper ends for scaled data, and the fit, better where a profile came upon a better one.

    One number is held further and further from its estimate while the other four are fitted again, each time from the
    last solution. The interval ends where the sum of squares leaves its likelihood bound; an end that is never found
    within a factor of 100 (K: 100 ranges) is infinite (or 0): the profile is flat.
    """
    for _ in range(3):
        distances, excess, found = _profiles(problem, best, advance)
        better = found.errors < best.errors * (1 - 1e-4) - 1e-20
        if not better.any():
            break
        best = found
    bound = _bound(problem.values.shape[1], confidence)
    ends = np.array([[[_crossing(d, e, bound) for e in sides] for d, sides in zip(distances, series, strict=True)] for series in excess])
    return _placed(best, ends), best


def _bound(points: int, confidence: float) -> float:
    """How much larger, as a share, the sum of squares may get: F distribution with one number held."""
    from scipy.stats import f

    return float(f.ppf(confidence, 1, points - len(PARAMETERS))) / (points - len(PARAMETERS))


def _profiles(problem: Problem, best: Fitted, advance: Callable[..., None]) -> tuple[np.ndarray, np.ndarray, Fitted]:
    """Distances `(5, place)`, excess of the sum of squares `(series, 5, side, place)`, and the best solution met."""
    series, numbers = len(best.errors), len(PARAMETERS)
    distances = np.stack([SHIFTS if name == "K" else FACTORS for name in PARAMETERS])
    line = np.repeat(np.arange(series), 2 * numbers)
    held = np.tile(np.repeat(np.arange(numbers), 2), series)
    side = np.tile([-1.0, 1.0], series * numbers)
    centre, values, sign = best.at[line, held], problem.values[line], best.sign[line]
    twice = np.concatenate([np.arange(len(line)), np.flatnonzero(np.isin(held, (LAMBDA, GAMMA)))])  # those have two starts
    last, excess, seen, before = best.take(line), [], best, np.zeros(len(line))
    for place in range(distances.shape[1]):
        away = side * distances[held, place]
        at, start = centre + away, _starts(last, held, away - before)
        both = solve(problem.steps, values[twice], start, held[twice], at[twice], sign[twice])
        last, before = _better_way(both, twice), away
        excess.append(last.errors / np.maximum(best.errors[line], 1e-25) - 1)
        seen = _met(seen, last, line)
        advance(1)
    return distances, np.stack(excess, -1).reshape(series, numbers, 2, -1), seen


def _starts(last: Fitted, held: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Where the others start: from the last solution, and where λ or γ moves also with b and t0 left as they are."""
    follow = last.searched.copy()
    follow[held == LAMBDA] += moved[held == LAMBDA, None] * [0, -1, 1]  # λ = b/γ, t0 = τγ
    follow[held == GAMMA, 2] -= moved[held == GAMMA]
    return np.concatenate([last.searched, follow[np.isin(held, (LAMBDA, GAMMA))]])


def _better_way(both: Fitted, line: np.ndarray) -> Fitted:
    """Of the solutions of each line the one that leaves less."""
    order = np.lexsort((both.errors, line))
    return both.take(order[np.unique(line[order], return_index=True)[1]])


def _smaller(a: Fitted, b: Fitted) -> Fitted:
    """Line by line the one that leaves less."""
    first = a.errors <= b.errors
    return Fitted(
        np.where(first[:, None], a.searched, b.searched), np.where(first[:, None], a.linear, b.linear), np.minimum(a.errors, b.errors)
    )


def _met(best: Fitted, found: Fitted, line: np.ndarray) -> Fitted:
    """For each series the better of what was known and what was met within the bounds of a fit."""
    allowed = Fitted(found.searched, found.linear, np.where(found.inside, found.errors, np.inf))
    return _smaller(best, _better_way(allowed, line))


def _crossing(distance: np.ndarray, excess: np.ndarray, bound: float) -> float:
    """The distance at which the profile passes the bound; infinite if it does not."""
    over = excess > bound
    if not over.any():
        return float("inf")
    i = int(over.argmax())
    # The root of the excess is near a straight line, so interpolate there.
    high, low = np.sqrt(excess[i]), np.sqrt(max(excess[i - 1], 0.0)) if i else 0.0
    before = distance[i - 1] if i else 0.0
    return float(before + (distance[i] - before) * (np.sqrt(bound) - low) / (high - low)) if np.isfinite(high) else float(distance[i])


def _placed(best: Fitted, ends: np.ndarray) -> np.ndarray:
    """Distances as ends on the scale of each number."""
    placed = best.at[..., None] + ends * [-1, 1]
    with np.errstate(over="ignore"):
        placed[:, :-1] = np.exp(placed[:, :-1])
    placed[:, 0] = np.sort(placed[:, 0] * best.sign[:, None], axis=1)
    return placed


def verdict(name: str, value: float, low: float, high: float, data_range: float) -> str:
    """`identified`, `loose` (an interval, but a wide one) or `not identified` (the profile is flat on a side).

    A flat profile of K ends where log γ, which K merges with, ends; so K is not identified if it may lie further from the
    estimate than the whole range of the data.

    Args:
        name: One of `PARAMETERS`.
        value: The estimate.
        low: Lower end of its profile interval.
        high: Upper end.
        data_range: Largest minus smallest value of the data, in the same unit; used for K.
    """
    if name == "K":
        away = max(value - low, high - value) / data_range
        open_end, wide = not away <= 1, away > SHARE
    else:
        small, large = sorted(np.abs([low, high]))
        open_end, wide = small == 0 or not np.isfinite(large), small * WITHIN < abs(value) or large > WITHIN * abs(value)
    return UNIDENTIFIED if open_end else LOOSE if wide else IDENTIFIED


def resampled(problem: Problem, best: Fitted, resamples: int, seed: int) -> list[list[Curve]]:
    """For each series, curves fitted again to the fitted values plus fresh Gaussian noise of the size of what was left."""
    curves: list[list[Curve]] = [[] for _ in best.errors]
    if not resamples:
        return curves
    noise = np.random.default_rng(seed).normal(size=(resamples, *problem.values.shape))
    size = np.sqrt(best.errors / (len(problem.steps) - len(PARAMETERS)))
    fitted = np.stack([best.curve(i)(problem.steps) for i in range(len(size))])
    line = np.tile(np.arange(len(size)), resamples)
    again = (fitted + size[:, None] * noise).reshape(-1, len(problem.steps))
    found = solve(problem.steps, again, best.searched[line])
    for k in np.flatnonzero(np.isfinite(found.errors)).tolist():
        curves[line[k]].append(problem.back(found.curve(k), line[k]))
    return curves


def condition_number(curve: Curve, steps: np.ndarray, data_range: float) -> float:
    """Largest over smallest variance among directions of (log A, log λ, log γ, log t0, K / range of the data)."""
    units = np.array([curve.amplitude, curve.decay, curve.scale, curve.offset, data_range])
    singular = np.linalg.svd(curve.jacobian(steps) * units, compute_uv=False)
    return float((singular[0] / singular[-1]) ** 2) if singular[-1] else float("inf")
