"""massive_dynamics: known curves recovered, unknown numbers called unknown, SciPy's fit beside ours, the words of its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime, curve_fit

import activarium as act
from activarium.analyses.massive.curve import PARAMETERS, Curve
from activarium.analyses.massive.curve_alternatives import SHAPES, aicc
from activarium.analyses.massive.curve_fit import Problem, fit, published_start
from activarium.analyses.massive.curve_profile import verdict
from activarium.analyses.massive.recorded_series import recorded_series
from activarium.data import folder, measure_dynamics
from activarium.errors import InputError, MissingExtra, NotFinite
from activarium.results import Report, Series, identical

massive_dynamics = act.analyses.massive_dynamics
STEPS = measure_dynamics.STEPS
EARLY, EARLIEST, LATE, LOGARITHM = measure_dynamics.REGIMES.values()


def of(layers: dict[str, np.ndarray], steps: np.ndarray = STEPS, **options: object) -> Report:
    return massive_dynamics(Series(steps, layers), **{"resamples": 0, "progress": False, **options})


def table(report: Report) -> dict[str, dict[str, float]]:
    found = report["parameters"]
    numbers = found.values.reshape(-1, len(PARAMETERS))
    return {n: dict(zip(PARAMETERS, v, strict=True)) for n, v in zip(found.columns["layer"][:: len(PARAMETERS)], numbers, strict=True)}


def verdicts(report: Report) -> np.ndarray:
    return report["parameters"].columns["verdict"].reshape(-1, len(PARAMETERS))


# --- the curve


@pytest.mark.parametrize(("decay", "wanted"), [(0.05, 9.070), (0.1, 5.729), (0.25, 3.327)])
def test_where_the_peak_lies(decay: float, wanted: float):
    curve = Curve(900, decay, 20 / 143_000, 1.2, 150)
    assert curve.x_peak == pytest.approx(wanted, abs=1e-3)
    around = np.linspace(0, 143_000, 1_000_001)
    assert curve.peak_step == pytest.approx(around[curve(around).argmax()], abs=0.2)
    assert curve.derived(0, 143_000)[1] == pytest.approx(curve(around).max())


def test_no_peak_inside_the_series_has_no_height():
    early, never = Curve(1, 5.0, 1.0, 3.0, 0), Curve(1, 0.001, 0.01, 1.0, 0)
    assert early.peak_step < 0 and never.peak_step > 100
    for curve in (early, never):
        assert not curve.observed_peak(0, 100)
        assert np.isnan(curve.derived(0, 100)[:2]).all()


def test_half_way_up_the_stretch_that_rises():
    peak, trough, falling = Curve(900, 0.1, 20 / 143_000, 1.2, 150), Curve(-3, 0.1, 0.1, 1.0, 5), Curve(-1, 1e-9, 1.0, 1.0, 0)
    half = peak.derived(0, 143_000)[3]
    assert peak(np.array(half)) == pytest.approx((peak(np.array(0)) + peak(np.array(peak.peak_step))) / 2)
    half = trough.derived(0, 500)[3]
    assert trough.peak_step < half < 500
    assert trough(np.array(half)) == pytest.approx((trough(np.array(500)) + trough(np.array(trough.peak_step))) / 2)
    assert np.isnan(falling.derived(0, 500)[3])


def test_the_jacobian_is_the_derivative():
    curve, steps = Curve(3.0, 0.3, 0.7, 1.4, 2.0), np.array([0.0, 1.0, 7.5])
    for row, step in zip(curve.jacobian(steps), steps, strict=True):
        slopes = approx_fprime(curve.parameters, lambda p, at=step: float(Curve(*p)(np.array(at))), 1e-7)
        np.testing.assert_allclose(row, slopes, rtol=1e-5, atol=1e-6)


def test_scaled_and_back_is_the_same_curve():
    steps, again = np.linspace(0, 50, 7), EARLY.rescaled(1 / 143_000, 1 / 7, -3).rescaled(143_000, 7, 21)
    np.testing.assert_allclose(again(steps), EARLY(steps))


# --- the fit


def test_without_noise_all_five_come_back():
    report = of({"a": EARLY(STEPS)})
    assert len(STEPS) == 154
    np.testing.assert_allclose(list(table(report)["a"].values()), EARLY.parameters, rtol=1e-4)
    np.testing.assert_allclose(list(table(report)["a"].values()), EARLY.parameters, rtol=1e-8)  # what variable projection reaches
    assert verdicts(report).tolist() == [["identified"] * 5]
    assert report["layers"].columns["preferred"].tolist() == ["five parameters"]


@pytest.fixture(scope="module")
def noisy() -> Report:
    """Four regimes, three seeds, 1 % noise: twelve layers of one report."""
    layers = {}
    for name, curve in zip(("early", "earliest", "late", "logarithm"), (EARLY, EARLIEST, LATE, LOGARITHM), strict=True):
        layers |= {f"{name} {seed}": v for seed, v in enumerate(measure_dynamics.noisy(curve, range(3), 0.01).curves.values())}
    return of(layers, resamples=40)


TOLERANCES = {"A": 0.15, "gamma": 0.15, "K": 0.15, "lambda": 0.25, "t0": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_one_percent_of_noise(noisy: Report, seed: int):
    found, wanted = table(noisy)[f"early {seed}"], dict(zip(PARAMETERS, EARLY.parameters, strict=True))
    for name, tolerance in TOLERANCES.items():
        assert found[name] == pytest.approx(wanted[name], rel=tolerance), name
    layers = noisy["layers"]
    at = layers.names.index(f"early {seed}")
    assert layers.columns["peak step"][at] == pytest.approx(EARLY.peak_step, rel=0.01)
    assert layers.columns["shape"][at] == "peak"
    assert layers.columns["share with turn"][at] == 1.0
    assert layers.columns["preferred"][at] == "five parameters"
    assert layers.columns["starts together"][at] >= 2


@pytest.mark.slow
def test_a_logarithmic_rise_fits_well_and_says_that_its_numbers_mean_nothing(noisy: Report):
    layers = noisy["layers"]
    for row, name in enumerate(table(noisy)):
        if name.startswith("logarithm"):
            at = layers.names.index(name)
            assert layers.values[at] > 0.98
            assert set(verdicts(noisy)[row, 1:]) == {"not identified"}  # lambda, gamma, t0, K
            assert layers.columns["preferred"][at] == "logarithm"
            assert layers.columns["last value"][at] == pytest.approx(LOGARITHM(np.array(143_000)), rel=0.01)
    assert any("not identified: lambda, gamma, t0, K" in w for w in noisy.words)
    assert any("a curve of three numbers does as well or better by AICc: logarithm 0 (logarithm)" in w for w in noisy.words)


@pytest.mark.slow
def test_early_peaks_are_known_and_late_ones_less(noisy: Report):
    words = dict(zip(table(noisy), verdicts(noisy).tolist(), strict=True))
    for seed in range(3):
        assert words[f"early {seed}"] == ["identified"] * 5
        assert words[f"earliest {seed}"] == ["identified"] * 5
        assert words[f"late {seed}"][0] == "identified"
        assert "identified" not in words[f"late {seed}"][1:]
    condition = dict(zip(noisy["layers"].names, noisy["layers"].columns["condition number"], strict=True))
    assert condition["earliest 0"] < condition["early 0"] < condition["late 0"] < condition["logarithm 0"]


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    seeds = range(24)
    report = of(measure_dynamics.noisy(EARLY, seeds, 0.01).curves)
    columns = report["parameters"].columns
    inside = (columns["low"] <= np.tile(EARLY.parameters, len(seeds))) & (np.tile(EARLY.parameters, len(seeds)) <= columns["high"])
    assert (inside.reshape(-1, 5).sum(0) >= 19).all()  # 22.8 expected of 24; fewer than 19 once in 800 each
    assert inside.mean() < 1


@pytest.mark.slow
def test_scipy_from_the_published_start_agrees(noisy: Report):
    for name in ("early 0", "earliest 1", "late 2"):
        values = noisy[name].curves["measured"]
        problem = Problem.of(STEPS, values[None])
        decay, scale, offset = np.exp(published_start(problem))
        spread = np.ptp(problem.values[0])
        start = [spread, decay, scale, offset, problem.values[0].min() + spread / 2]
        theirs, _ = curve_fit(
            lambda t, *p: Curve(*p)(t), problem.steps, problem.values[0], start, jac=lambda t, *p: Curve(*p).jacobian(t),
            bounds=([-np.inf, 1e-12, 1e-9, 1e-9, -np.inf], np.inf), method="trf", xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=20_000,
        )  # fmt: skip
        ours = fit(problem, 12, 0)[0]
        left = ((Curve(*theirs)(problem.steps) - problem.values[0]) ** 2).sum()
        assert ours.errors[0] <= left * (1 + 1e-9)
        np.testing.assert_allclose(ours.curve(0).parameters, theirs, rtol=2e-3)


@pytest.mark.slow
def test_other_units_of_steps_and_values():
    values = EARLY(STEPS) + 5 * np.random.default_rng(0).normal(size=len(STEPS))
    once, thousand = (table(of({"a": values}, STEPS * k))["a"] for k in (1, 1000))
    assert thousand["gamma"] == pytest.approx(once["gamma"] / 1000)
    for name in ("A", "lambda", "t0", "K"):
        assert thousand[name] == pytest.approx(once[name])
    moved = table(of({"a": -3 * values + 40}))["a"]
    assert moved["A"] == pytest.approx(-3 * once["A"])
    assert moved["K"] == pytest.approx(-3 * once["K"] + 40)
    for name in ("lambda", "gamma", "t0"):
        assert moved[name] == pytest.approx(once[name])


def test_verdicts_by_hand():
    assert verdict("A", 4.0, 3.0, 5.0, 1.0) == "identified"
    assert verdict("A", -4.0, -5.0, -3.0, 1.0) == "identified"
    assert verdict("gamma", 4.0, 3.0, 6.5, 1.0) == "loose"
    assert verdict("gamma", 4.0, 2.5, 5.0, 1.0) == "loose"
    assert verdict("lambda", 4.0, 0.0, 5.0, 1.0) == "not identified"
    assert verdict("t0", 4.0, 3.0, np.inf, 1.0) == "not identified"
    assert verdict("K", 0.0, -2.0, 2.0, 10.0) == "identified"
    assert verdict("K", 0.0, -2.0, 3.0, 10.0) == "loose"
    assert verdict("K", 0.0, -11.0, 3.0, 10.0) == "not identified"
    assert verdict("K", 0.0, -np.inf, 3.0, 10.0) == "not identified"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_data_of_a_simpler_kind_prefer_it(name: str):
    steps = np.linspace(0, 1, 60)
    values = 5 * SHAPES[name](steps, np.array(0.2)) + 0.02 * np.random.default_rng(3).normal(size=60)
    columns = of({"a": values}, steps)["layers"].columns
    assert columns["preferred"].tolist() == [name]
    assert min(SHAPES, key=lambda n: columns[f"AICc {n}"][0]) == name


def test_aicc_by_hand():
    # 10 points, squares of 10 left, 3 numbers and the noise: 10 ln 1 + 8 + 2·4·5 / 5
    assert aicc(10.0, 10, 3) == pytest.approx(16.0)


# --- the report


@pytest.mark.slow
def test_a_report_is_repeatable_and_shows_itself():
    first, again = (massive_dynamics("scribe", resamples=30, progress=False) for _ in range(2))
    assert identical(first, again)
    other = massive_dynamics("scribe", resamples=30, seed=1, progress=False)
    np.testing.assert_allclose(other["layers"].values, first["layers"].values, atol=1e-4)  # other starts, the same fits
    assert "not identified" in first._repr_html_()
    band = first["block 3"].bands["fitted"]
    assert ((band[0] <= first["block 3"].curves["fitted"]) & (first["block 3"].curves["fitted"] <= band[1])).mean() > 0.9


@pytest.mark.slow
def test_scribes_own_series_leaves_most_numbers_unknown():
    """Its largest activations fall for fifty to two hundred steps and then rise to the end: the curve of the paper upside down."""
    report = massive_dynamics("scribe", resamples=0, progress=False)
    layers = report["layers"]
    assert layers.columns["steps"].tolist() == [53] * 4
    assert layers.names[0] == "block 3" and layers.values[0] > 0.99
    assert set(layers.columns["shape"]) == {"trough"}
    assert (verdicts(report)[:, 1:3] == "not identified").all()  # lambda and gamma, in every layer
    assert (layers.columns["residual correlation"] > 0.3).all()
    assert any("Neighbouring residuals agree in block 0" in w for w in report.words)


def test_the_same_series_four_ways(tmp_path: Path):
    path = folder("scribe") / "massive_series.json"
    points = json.loads(path.read_text(encoding="utf-8"))["series"]
    mapping = {p["step"]: p["ratio"] for p in reversed(points)}  # order does not matter
    steps, layers = recorded_series("scribe")
    series = Series(steps, layers)
    for source in (path, str(path), path.parent, mapping, series):
        found_steps, found = recorded_series(source)
        assert np.array_equal(found_steps, steps)
        assert list(found) == list(layers) and all(np.array_equal(found[n], layers[n]) for n in layers)


POINTS = {step: [1.0 + step, 2.0 * step] for step in range(10)}


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("scribble", InputError, r"There is no series at 'scribble'.*bundled model: scribe, scribe-relu"),
        ({s: POINTS[s] for s in range(7)}, InputError, r"needs at least 8 steps; this series has 7\. Record more"),
        (POINTS | {3: [1.0]}, InputError, r"one ratio per layer; found steps with 1 and with 2"),
        (POINTS | {3: [np.nan, 2.0]}, NotFinite, r"block 0 is nan at step 3\. Leave that step out"),
        (POINTS | {-1: [0.0, 0.0]}, InputError, r"Steps count from 0, each once; the first is -1"),
        ({s: [1.0, 4.0] for s in range(9)}, InputError, r"block 0 is 1 at every step: a constant has no curve"),
        (Series(np.array([0, 1, 1, 2, 3, 4, 5, 6]), {"a": np.arange(8.0)}), InputError, r"step 1 stands twice"),
        ({s: [] for s in range(9)}, InputError, r"This series has no layers"),
    ],
)
def test_what_it_refuses(source: object, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        massive_dynamics(source, progress=False)


def test_files_of_another_kind(tmp_path: Path):
    for text in ("[1, 2]", '{"steps": []}', "not json"):
        (tmp_path / "massive_series.json").write_text(text)
        with pytest.raises(InputError, match=r"massive_series\.json is not a massive-activation series.*Wanted"):
            massive_dynamics(tmp_path)


def test_options_out_of_range():
    with pytest.raises(InputError, match="starts=0 begins nowhere"):
        massive_dynamics("scribe", starts=0)
    with pytest.raises(InputError, match=r"confidence=95 is no share between 0 and 1"):
        massive_dynamics("scribe", confidence=95)


def test_without_optimistix_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in ("curve_fit", "curve_profile", "layer_dynamics"):
        monkeypatch.delitem(sys.modules, f"activarium.analyses.massive.{name}", raising=False)
        monkeypatch.delattr(f"activarium.analyses.massive.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "optimistix", None)
    with pytest.raises(MissingExtra, match=r"needs JAX and optimistix.*pip install 'activarium\[jax\]'"):
        massive_dynamics("scribe")


def test_the_setting_of_jax_is_left_alone():
    import jax.numpy as jnp

    of({"a": EARLY(STEPS)})
    assert jnp.ones(1).dtype == "float32"


@pytest.mark.slow
def test_jax_comes_only_when_a_curve_is_fitted():
    code = "import sys, activarium as act\nact.analyses.massive_dynamics, act.analyses.massive_activations\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(act.__file__).parents[1])})
