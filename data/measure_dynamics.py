"""How well does massive_dynamics recover a known curve from noisy values? Prints the table of its docstring.

python data/measure_dynamics.py             four regimes, three seeds, 1 % noise
python data/measure_dynamics.py --noise 3   more noise, in percent of the range
"""

import argparse

import numpy as np

import activarium as act
from activarium.analyses.massive.curve import PARAMETERS, Curve
from activarium.results import Series

LAST = 143_000  # steps as Pythia's: 0, the powers of 2 up to 512, then every thousand
STEPS = np.array([0, *(2**k for k in range(10)), *range(1000, LAST + 1, 1000)], dtype=np.float64)
REGIMES = {
    "early peak (λ .10, x from 1.2 to 21)": Curve(900, 0.10, 20 / LAST, 1.2, 150),
    "early peak, t0 .5 (λ .25, x to 30)": Curve(900, 0.25, 29.5 / LAST, 0.5, 150),
    "late peak (λ .05, x from 1.2 to 13)": Curve(900, 0.05, 11.8 / LAST, 1.2, 150),
    "logarithmic rise (λ 1e-4, x from 1.2 to 21)": Curve(900, 1e-4, 20 / LAST, 1.2, 150),
}


def noisy(curve: Curve, seeds: range, noise: float) -> Series:
    """Values of a curve with Gaussian noise of this share of their range, one layer per seed."""
    exact = curve(STEPS)
    draws = {f"seed {s}": np.random.default_rng(s).normal(size=len(STEPS)) for s in seeds}
    return Series(STEPS, {name: exact + noise * np.ptp(exact) * z for name, z in draws.items()})


def measured(curve: Curve, seeds: range, noise: float) -> tuple[dict[str, float], dict[str, str], float]:
    """Largest relative error per number, its verdicts over the seeds, and the smallest R²."""
    report = act.analyses.massive_dynamics(noisy(curve, seeds, noise), resamples=0, progress=False)
    found, table = report["parameters"], report["layers"]
    errors = np.abs(found.values.reshape(-1, len(PARAMETERS)) / curve.parameters - 1).max(0)
    words = found.columns["verdict"].reshape(-1, len(PARAMETERS))
    worst = dict(zip(PARAMETERS, errors.tolist(), strict=True))
    if curve.observed_peak(0, LAST):
        worst["peak step"] = float(np.abs(table.columns["peak step"] / curve.peak_step - 1).max())
    worst["last value"] = float(np.abs(table.columns["last value"] / curve(np.array(LAST)) - 1).max())
    return worst, {n: "/".join(dict.fromkeys(words[:, i].tolist())) for i, n in enumerate(PARAMETERS)}, float(table.values.min())


def main() -> None:
    """One line per regime: largest relative error over the seeds and, in brackets, the verdicts."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--noise", type=float, default=1.0, help="percent of the range")
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    columns = [*PARAMETERS, "peak step", "last value"]
    print("| regime | " + " | ".join(columns) + " | R² ≥ |\n|" + "---|" * (len(columns) + 2))
    for name, curve in REGIMES.items():
        worst, words, fit = measured(curve, range(given.seeds), given.noise / 100)
        cells = [f"{worst[c]:.1%}" + (f" ({words[c]})" if c in words else "") if c in worst else "none" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + f" | {fit:.3f} |")


if __name__ == "__main__":
    main()
