"""Massive activations during training: a five-parameter curve per layer, and which of its numbers the data know."""

from __future__ import annotations

import numpy as np

from activarium.analyses.massive.recorded_series import Given, recorded_series
from activarium.errors import InputError, MissingExtra
from activarium.progress import progress_bar
from activarium.results import Report, Result

MANY = 8  # layers from which on it takes long enough for a bar


def massive_dynamics(
    series: Given, *, starts: int = 12, resamples: int = 200, confidence: float = 0.95, seed: int = 0, progress: bool = True
) -> Report:
    """How do massive activations grow and decay in training, and how well is that known?

    Per layer the curve f(t) = A · exp(−λx) · log x + K, x = γt + t0, is fitted to the ratio max/median by least squares:
    λ near 0 is a logarithmic rise, a larger λ an early peak with a decay towards K. A good fit does not mean that its five
    numbers are known, since very different ones draw nearly the same curve. So each gets a profile interval and a verdict:
    `identified` (the interval ends within a factor of 1.5, for K within a quarter of the data's range), `loose` (wider), or
    `not identified` (flat on a side for a factor of 100; K: wider than the data). Peak, last value and half-rise step
    are known better; their intervals come from refits of resampled noise.

    Args:
        series: The ratios: a Series (steps on x, one curve per layer), as `massive_series` gives; a mapping step → one ratio
            per layer; the path of a `massive_series.json`; or a bundled model, `"scribe"`.
        starts: Points from which the search begins, first the paper's own, the others random.
        resamples: Refits for the intervals of peak, last value and half-rise step, and for the bands; 0 for none.
        confidence: Of all intervals.
        seed: Draws the starts and the noise.
        progress: Show a bar.

    Returns:
        A report with `layers` (ranking by R²: shape, derived numbers with intervals, share of the resamples with a peak inside
        the series, condition number of the covariance of (log A, log λ, log γ, log t0, K), AICc beside the best curve of three numbers, correlation of neighbouring residuals, starts
        that ended together), `parameters` (ranking: every number with its interval and verdict) and one series per layer
        (`block 0`: measured and fitted, with a band). Steps are training steps; A, K, peak and last value multiples of the median.

    Raises:
        InputError: No such file, another format, fewer than eight steps, a step twice, a constant layer, or no starts.
        NotFinite: A ratio is NaN or infinite.
        MissingExtra: JAX and optimistix are not installed.

    Source:
        Gallego-Feliciano et al. 2025, Hidden Dynamics of Massive Activations in Transformer Training, arXiv:2508.03616 (curve,
        first start). Profile intervals: Bates & Watts 1988, Nonlinear Regression Analysis. AICc: Hurvich & Tsai 1989.

    Differs:
        A and K are solved for linearly and only λ, γ, t0 are searched, from several starts. Intervals, verdicts, the comparison
        with a logarithm, a saturating exponential and a critically damped step of second order are ours.

        Known curves with 1 % noise at 154 steps as Pythia's came back with these largest errors over three seeds, as
        `data/measure_dynamics.py` prints them; i, l and n are the verdicts identified, loose and not identified:

            ======================  =======  ===========  =======  =======  =========  =========  ==========
            regime                  A        lambda       gamma    t0       K          peak step  last value
            ======================  =======  ===========  =======  =======  =========  =========  ==========
            early peak, lambda .10  5.6 % i  12.0 % i     8.3 % i  2.3 % i  8.4 % i    0.2 %      0.4 %
            early peak, lambda .25  4.9 % i  5.5 % i      5.2 % i  2.8 % i  1.0 % i    1.3 %      1.0 %
            late peak, lambda .05   3.1 % i  114 % l, n   39 % l   36 % l   254 % n    0.9 %      0.3 %
            log rise, lambda 1e-4   2.0 % i  n            n        n        n          none       0.3 %
            ======================  =======  ===========  =======  =======  =========  =========  ==========

    Example:
        >>> report = massive_dynamics("scribe", resamples=0, progress=False)
        >>> report["layers"].columns["steps"].tolist()
        [53, 53, 53, 53]
    """
    if starts < 1:
        raise InputError(f"starts={starts} begins nowhere; give at least 1.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} is no share between 0 and 1; give 0.95, say.")
    steps, layers = recorded_series(series)
    try:
        from activarium.analyses.massive import curve_fit, curve_profile, layer_dynamics
    except ImportError as reason:
        raise MissingExtra(f"Fitting curves needs JAX and optimistix ({reason}). pip install 'activarium[jax]'") from reason
    values = np.stack(list(layers.values()))
    problem = curve_fit.Problem.of(steps, values)
    best, together = curve_fit.fit(problem, starts, seed)
    with progress_bar(progress and len(layers) > MANY, "holding numbers at", len(curve_profile.FACTORS), "distances") as advance:
        ends, best = curve_profile.profile_ends(problem, best, confidence, advance)
    again = curve_profile.resampled(problem, best, resamples, seed)
    told = layer_dynamics.layer_dynamics(list(layers), steps, values, problem, best, ends, again, together, confidence)
    parts: dict[str, Result] = {"layers": layer_dynamics.layers_table(told), "parameters": layer_dynamics.parameters_table(told)}
    parts |= {layer.name: layer_dynamics.layer_series(layer) for layer in told}
    notes = {"steps": len(steps), "last step": float(steps[-1]), "starts": starts, "resamples": resamples}
    return Report(
        parts,
        tuple(layer_dynamics.dynamics_words(told)),
        title="Massive activations during training",
        diagnostics=notes | {"confidence": confidence, "seed": seed},
    )
