"""Fits the five-parameter curve to many series at once: least squares in JAX, vectorised over series and starts."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from activarium.analyses.massive.curve import PARAMETERS, Curve

# Problems are padded to these sizes, so that one compiled program serves fits, profiles and resamples of any number of layers.
POINTS, LANES = 64, 64
MOST_STEPS = 150  # of one search: with 60, some profiles end too early; with 400 they end where they do with 150
A, LAMBDA, GAMMA, T0, K = range(len(PARAMETERS))
FREE = -1  # no parameter is held

# Searched are the logarithms of b = λγ, γ and τ = t0/γ on a series that ends at step 1: the curve is then
# A' · exp(−b t) · (log γ + log(t + τ)) + K, in which a logarithmic rise is b → 0 and no longer a narrow valley of λ, γ and t0.
# Beyond these bounds the curve hardly changes. Where a number is held, they are wider, so that the others can follow it.
LOWEST, HIGHEST = np.log([1e-9, 1e-6, 1e-9]), np.log([1e3, 1e6, 1e3])
WIDER, LARGEST_FALL = 10.0, np.log(300.0)  # λ t0 of a fit is at most 300: A = A' exp(λ t0) stays a number
STARTS_LOW, STARTS_HIGH = np.log([5e-3, 1.0, 0.2]), np.log([1.0, 1e3, 5.0])  # of λ, γ, t0


@dataclass(frozen=True, eq=False)
class Problem:
    """Series brought to the same scale: steps end at 1, values have mean 0 and range 1.

    Attributes:
        steps: (point,) from 0 to 1.
        values: (series, point).
        last: The step that became 1.
        means: (series,) what was taken off.
        ranges: (series,) what was divided by.
    """

    steps: np.ndarray
    values: np.ndarray
    last: float
    means: np.ndarray
    ranges: np.ndarray

    @classmethod
    def of(cls, steps: np.ndarray, values: np.ndarray) -> Problem:
        """Scale steps `(point,)` and values `(series, point)`."""
        means, ranges = values.mean(1), np.ptp(values, axis=1)
        return cls(steps / steps.max(), (values - means[:, None]) / ranges[:, None], float(steps.max()), means, ranges)

    def curve(self, found: Fitted, i: int) -> Curve:
        """A fit of series i on its own scale."""
        return self.back(found.curve(i), i)

    def back(self, curve: Curve, i: int) -> Curve:
        """A curve fitted to series i, on its own scale."""
        return curve.rescaled(self.last, float(self.ranges[i]), float(self.means[i]))


@dataclass(frozen=True, eq=False)
class Fitted:
    """Least-squares solutions, one per line.

    Attributes:
        searched: (line, 3) logarithms of b = λγ, γ and τ = t0/γ.
        linear: (line, 2) A' = A exp(−λ t0) and K, which follow from them.
        errors: (line,) sum of squares that is left; infinite where the search left the numbers.
    """

    searched: np.ndarray
    linear: np.ndarray
    errors: np.ndarray

    def take(self, lines: np.ndarray) -> Fitted:
        """Some of them."""
        return Fitted(self.searched[lines], self.linear[lines], self.errors[lines])

    def curve(self, i: int) -> Curve:
        """One as a curve."""
        amplitude, *searched, asymptote = self.at[i]
        decay, scale, offset = np.exp(searched).tolist()
        return Curve(float(self.sign[i] * np.exp(amplitude)), decay, scale, offset, float(asymptote))

    @property
    def at(self) -> np.ndarray:
        """(line, 5): log |A|, log λ, log γ, log t0, K."""
        fall, scale, shift = self.searched.T
        size = np.log(np.maximum(np.abs(self.linear[:, 0]), 1e-300)) + np.exp(fall + shift)
        return np.stack([size, fall - scale, scale, shift + scale, self.linear[:, 1]], 1)

    @property
    def sign(self) -> np.ndarray:
        """(line,) 1 where A is positive, else −1."""
        return np.where(self.linear[:, 0] < 0, -1.0, 1.0)

    @property
    def inside(self) -> np.ndarray:
        """(line,) does it lie within the bounds of a free fit?"""
        fall, _, shift = self.searched.T
        return ((self.searched >= LOWEST) & (self.searched <= HIGHEST)).all(1) & (fall + shift <= LARGEST_FALL)


def fit(problem: Problem, starts: int, seed: int) -> tuple[Fitted, np.ndarray]:
    """The best solution of each series, and how many starts came to it."""
    series = len(problem.values)
    drawn = np.random.default_rng(seed).uniform(STARTS_LOW, STARTS_HIGH, (starts - 1, 3))
    begin = searched_from(np.concatenate([published_start(problem)[None], drawn]))
    found = solve(problem.steps, np.repeat(problem.values, starts, 0), np.tile(begin, (series, 1)))
    errors = found.errors.reshape(series, starts)
    best = errors.argmin(1)
    together = (errors <= errors.min(1, keepdims=True) * 1.001 + 1e-12).sum(1)  # 1e-12: noise-free series differ by rounding alone
    found = found.take(np.arange(series) * starts + best)
    for _ in range(2):  # few starts are slow, so all of them are cut short and only the best go on
        found = solve(problem.steps, problem.values, found.searched)
    return found, together


def published_start(problem: Problem) -> np.ndarray:
    """Where the paper starts: λ = 1/std, γ = 1/range of the scaled steps, t0 = 1."""
    return np.log([1 / problem.steps.std(), 1 / np.ptp(problem.steps), 1.0])


def searched_from(logarithms: np.ndarray) -> np.ndarray:
    """(line, 3) logarithms of λ, γ, t0 as what is searched."""
    decay, scale, offset = logarithms.T
    return np.stack([decay + scale, scale, offset - scale], 1)


def solve(
    steps: np.ndarray,
    values: np.ndarray,
    start: np.ndarray,
    held: np.ndarray | None = None,
    at: np.ndarray | None = None,
    sign: np.ndarray | None = None,
) -> Fitted:
    """Least squares of each line from its start, if asked with one of the five parameters held.

    Args:
        steps: (point,).
        values: (line, point).
        start: (line, 3), see `Fitted.searched`.
        held: (line,) index into `PARAMETERS` of the number that is held, or `FREE`.
        at: (line,) its value: of K itself, of the others the logarithm.
        sign: (line,) sign of a held A.
    """
    lines, points = values.shape
    held = np.full(lines, FREE) if held is None else held
    at = np.zeros(lines) if at is None else at
    sign = np.ones(lines) if sign is None else sign
    more = -points % POINTS
    weights = np.pad(np.ones(points), (0, more))
    steps, values = np.pad(steps, (0, more)), np.pad(values, ((0, 0), (0, more)))
    # float64 inside this block only: the caller's setting of JAX is not touched.
    with jax.enable_x64(True):
        pieces = [_piece(steps, weights, (values, start, held, at, sign), i) for i in range(0, lines, LANES)]
    searched, linear, errors = (np.concatenate(p) for p in zip(*pieces, strict=True))
    lost = ~(np.isfinite(errors) & np.isfinite(linear).all(1) & np.isfinite(searched).all(1))
    return Fitted(searched, linear, np.where(lost, np.inf, errors))


def _piece(steps: np.ndarray, weights: np.ndarray, by_line: tuple[np.ndarray, ...], first: int) -> tuple[np.ndarray, ...]:
    last = len(by_line[0]) - 1
    lines = np.arange(first, first + LANES).clip(max=last)  # the last line again, until the piece is full
    answer = _solved(steps, weights, *(part[lines] for part in by_line))
    return tuple(np.asarray(part)[: last + 1 - first] for part in answer)


@jax.jit
def _solved(steps, weights, values, start, held, at, sign):
    solver = optimistix.LevenbergMarquardt(rtol=1e-10, atol=1e-13)

    def one(values, start, held, at, sign):
        args = (steps, weights, values, held, at, sign)
        done = optimistix.least_squares(_residual, solver, start, args=args, max_steps=MOST_STEPS, throw=False)
        searched, linear, left = _projected(done.value, args)
        return searched, linear, (left**2).sum()

    return jax.vmap(one)(values, start, held, at, sign)


def _residual(searched, args):
    return _projected(searched, args)[2]


def _projected(searched, args):
    """Variable projection: for given λ, γ, t0 the best A' and K follow from a linear equation."""
    steps, weights, values, held, at, sign = args
    margin = jnp.where(held == FREE, 0.0, WIDER)
    fall, scale, shift = jnp.clip(searched, LOWEST - margin, HIGHEST + margin)
    shift = jnp.where(held == FREE, jnp.minimum(shift, LARGEST_FALL - fall), shift)
    scale = jnp.where(held == GAMMA, at, scale)
    fall = jnp.where(held == LAMBDA, at + scale, fall)
    shift = jnp.where(held == T0, at - scale, shift)
    shape = weights * jnp.exp(-jnp.exp(fall) * steps) * (scale + jnp.log(steps + jnp.exp(shift)))
    points = weights.sum()
    centred = weights * (shape - shape.sum() / points)
    slope = (centred @ values) / (centred @ centred + 1e-300)
    slope = jnp.where(held == K, (shape @ (values - at)) / (shape @ shape + 1e-300), slope)
    slope = jnp.where(held == A, sign * jnp.exp(at - jnp.exp(fall + shift)), slope)
    level = jnp.where(held == K, at, (weights @ values - slope * shape.sum()) / points)
    return jnp.stack([fall, scale, shift]), jnp.stack([slope, level]), weights * (values - level) - slope * shape
