"""Dark matter: how much of a dictionary's error is a linear function of the rows, and what the rest of it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.features.error_cost import error_cost
from activarium.analyses.features.error_parts import ErrorFit, Held
from activarium.analyses.features.error_pursuit import error_pursuit, unpursued
from activarium.analyses.features.error_scaling import error_scaling
from activarium.analyses.features.recovered import Draw
from activarium.analyses.features.splicing import splice_of
from activarium.analyses.features.spread import APART, groups_of
from activarium.analyses.layer_sites import examples_of
from activarium.dictionaries import FeatureDictionary, RowSource, as_dictionary, rows_for
from activarium.dictionaries.dictionary import AT_ONCE
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Ranking, Report, Result, Series

BARS = 20
DEFINITIONS: Mapping[str, str] = {
    "e": "x − x̂, what the dictionary leaves of a row; target − x̂ for a transcoder",
    "ê": "x B + c, the linear prediction of e: ridge, fitted to one half of the examples and measured on the other",
    "n": "e − ê, the nonlinear error",
    "share of variance": "Σ‖part‖² / Σ‖x − mean‖² over the held-out rows: FVU for e, FVU of x̂ + ê for n",
    "error, pooled": "1 − Σ‖n‖² / Σ‖e − mean of e‖²",
    "error, mean over numbers": "the same for each number of a row, then averaged without weights, as published",
    "squared length": "the same of a linear prediction of ‖e‖² from x",
    "by chance": "the prediction was fitted to errors of other rows",
}


def dark_matter(
    dictionary: Any,
    recording: Recording,
    model: Runner | None = None,
    inputs: Any = None,
    *,
    second: Any = None,
    site: str | None = None,
    target: str | None = None,
    exclude: Sequence[str] | None = None,
    ridge: float = 1e-6,
    pursuit: int = 1024,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """How much of a dictionary's error is linear in what it reads, and what does the rest cost?

    The error e = x − x̂ is split into ê, which a linear map predicts from x, and the rest n. The map is fitted to one half of
    the examples in one pass (normal equations in float64) and measured on the other half. A large linear part says that features
    are missing (or shrunk) along directions that a linear map finds; n is what a larger dictionary of the same kind often leaves
    as it is.

    Args:
        dictionary: A dictionary: ours, a sae-lens one, or a folder.
        recording: Rows of the sites, from a run or a store, in several examples.
        model: Runs without each part of the error.
        inputs: What it runs on; best others than were recorded, because the linear map knows half of those.
        second: A dictionary of another size on the same site: does the error of the smaller foretell that of the larger?
        site: What is read, where the dictionary does not say.
        target: What is written, for a transcoder that does not say.
        exclude: Row kinds that are left out; None takes those that training left out.
        ridge: Penalty on the linear map, times the mean variance of x.
        pursuit: Rows of each half (but no fewer than 4 for each number of a row) for which codes are also looked for by gradient
            pursuit, as many as the encoder gives each row; 0 leaves it out.
        confidence: Share of the draws inside an interval.
        resamples: How many times whole examples are drawn again.
        seed: Of the halves, the draws and the random directions.
        progress: Show a bar.

    Returns:
        A report with `error` (ranking of the error and its parts by their share of the variance), `predicted` (ranking of R²: of the
        error, pooled and averaged over its numbers, of its squared length, and each by chance), `lengths` (mean ‖e‖² of rows by
        what was predicted of it); with a model `cost` (ranking by KL without each part, beside random directions of the same
        length); with a second dictionary `scaling` (ranking of R²); and `pursuit` (ranking: encoder and gradient pursuit).

    Raises:
        InputError: There is one example, or fewer rows in a half than twice the width; only one of `model` and `inputs` is given;
            the second dictionary reads or writes another site.
        OtherModel: Recording or model have other weights than the dictionary was trained on.
        UnknownSite: The recording does not hold the site.
        NotFinite: NaN or infinity in a row.

    Source:
        Engels, Riggs & Tegmark 2024, Decomposing The Dark Matter of Sparse Autoencoders, arXiv:2410.14670.

    Differs:
        They fit without intercept or penalty; their average over numbers stands beside the pooled R². Halves are of examples, not
        of rows, since rows of one text resemble one another. Predictions by chance and random directions are ours.

    Example:
        >>> import torch
        >>> from activarium.dictionaries import controls
        >>> x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
        >>> rec = act.testing.recording_of({"blocks.0.resid_post": x}, example=range(400))
        >>> half = controls.principal(rec["blocks.0.resid_post"], 2)
        >>> bool(act.analyses.dark_matter(half, rec)["predicted"].values[0] > 0.99)  # a projection leaves a linear error
        True
    """
    if (model is None) != (inputs is None):
        raise InputError("What a part of the error costs needs both model= and inputs=. Give both, or neither.")
    where = {"site": site, "target": target, "exclude": exclude}
    one = as_dictionary(dictionary)
    source = rows_for(one, recording, **where)
    both = [one] if second is None else [one, _beside(as_dictionary(second), source, recording, where)]
    held, owner = _halves(source, seed), groups_of(source)
    draw = Draw(confidence, resamples, seed)
    widest = max(d.width for d in both)
    step = int(np.clip(AT_ONCE // widest, 64, 4096))
    with progress_bar(progress, "taking apart", 2 * len(source), "rows") as advance:
        fits = _fitted(both, source, held, step, ridge, seed, advance)
        parts, lengths = _measured(fits, source, held, owner, step, draw, advance)
    words = [_sentence(parts), *_scarce(source, held)]
    if model is not None:
        cost = error_cost(model, inputs, splice_of(one, model, **where), fits[0], draw, progress=progress)
        parts["cost"] = cost
        words.append(_cost_words(cost))
    if second is not None:
        order = sorted((0, 1), key=lambda i: both[i].width)
        names = tuple(("dictionary", "second")[i] for i in order)
        used = {"x": lengths["x"], "small error": lengths[f"e{order[0]}"], "small nonlinear": lengths[f"n{order[0]}"]}
        chosen = source.chosen
        scaled = error_scaling(used | {"large error": lengths[f"e{order[1]}"]}, held[chosen], owner[chosen], (names[0], names[1]), draw)
        parts["scaling"] = scaled
        words.append(
            f"R² of the length of the larger one's error: {', '.join(f'{v:.3g} from {n}' for n, v in zip(scaled.names, scaled.values, strict=True))}."
        )
    if pursuit:
        reason = unpursued(one, source)
        if not reason:
            parts["pursuit"] = error_pursuit(one, source, held, max(pursuit, 4 * one.d_in), ridge, seed)
        words += [f"Gradient pursuit is left out: {reason}"] if reason else []
    notes = {"definitions": dict(DEFINITIONS), "rows": len(source), "held-out rows": int(held[source.chosen].sum())}
    notes |= {"rows left out": dict(source.dropped), "ridge": ridge, "seed": seed, "confidence": confidence}
    return Report(parts, tuple(words), title="Dark matter of a dictionary", diagnostics=notes)


def _beside(second: FeatureDictionary, source: RowSource, recording: Recording, where: Mapping[str, Any]) -> FeatureDictionary:
    other = rows_for(second, recording, **where)
    sites = [(s.inputs.site, s.targets.site if s.targets else "") for s in (source, other)]
    if sites[0] != sites[1]:
        raise InputError(
            f"The second dictionary reads {sites[1][0]} and the first {sites[0][0]}; errors are compared on one site (and one target)."
        )
    return second


def _halves(source: RowSource, seed: int) -> np.ndarray:
    """Boolean per row of the recording: in the half of the examples that is measured on."""
    owner = examples_of(source.inputs)
    examples = np.unique(owner[source.chosen])
    if len(examples) < 2:
        raise InputError("All rows are of one example, so none are left to measure on. Record several.")
    half = np.random.default_rng(seed).permutation(examples)[len(examples) // 2 :]
    held = np.isin(owner, half)
    count = int((~held[source.chosen]).sum())
    if count < 2 * source.width or len(source) - count < 2:
        raise InputError(
            f"Half of the examples holds {count:,} rows; a linear map from {source.width} numbers is fitted to at least {2 * source.width}. Record more."
        )
    return held


def _fitted(
    both: Sequence[FeatureDictionary], source: RowSource, held: np.ndarray, step: int, ridge: float, seed: int, advance: Any
) -> list[ErrorFit]:
    fits = [ErrorFit(d) for d in both]
    generators = [torch.Generator().manual_seed(seed + APART) for _ in fits]
    for index, x, y in source.pieces(step):
        here = torch.as_tensor(~held[index])
        if bool(here.any()):
            for fit, generator in zip(fits, generators, strict=True):
                fit.add(x[here], fit.errors(x[here], y[here]), generator)
        advance(len(index))
    for fit in fits:
        fit.fit(ridge)
    return fits


def _measured(
    fits: Sequence[ErrorFit], source: RowSource, held: np.ndarray, owner: np.ndarray, step: int, draw: Draw, advance: Any
) -> tuple[dict[str, Result], dict[str, np.ndarray]]:
    """Tables of the held-out rows, and lengths of all rows where two dictionaries are compared."""
    groups, width = int(owner.max()) + 1, source.target_width
    sums, chance = Held(width, groups), Held(width, groups)
    pairs: list[np.ndarray] = []
    lengths: dict[str, list[np.ndarray]] = {}
    for index, x, y in source.pieces(step):
        here = torch.as_tensor(held[index])
        if len(fits) > 1:
            lengths.setdefault("x", []).append(x.double().norm(dim=1).cpu().numpy())
            for i, fit in enumerate(fits):
                found = fit.parts(x, fit.errors(x, y))
                lengths.setdefault(f"e{i}", []).append(found.error.norm(dim=1).numpy())
                lengths.setdefault(f"n{i}", []).append(found.nonlinear.norm(dim=1).numpy())
        if bool(here.any()):
            x, y, whose = x[here], y[here], owner[index][here.numpy()]
            error = fits[0].errors(x, y)
            parts = fits[0].parts(x, error)
            sums.add(y, parts, whose)
            chance.add(y, fits[0].parts(x, error, by_chance=True), whose)
            pairs.append(torch.stack([parts.norm, error.square().sum(1)], 1).numpy())
        advance(len(index))
    tables: dict[str, Result] = {"error": _error(sums, draw), "predicted": _predicted(sums, chance, draw)}
    return tables | {"lengths": _lengths(np.concatenate(pairs))}, {name: np.concatenate(found) for name, found in lengths.items()}


def _error(sums: Held, draw: Draw) -> Ranking:
    total, whole = sums.rows.about_mean(), sums.sizes["error"]
    names = {"whole error": "error", "linear part": "linear", "nonlinear part": "nonlinear"}
    found = np.array([(*draw(sums.sizes[key], total), sums.sizes[key].sum() / max(whole.sum(), 1e-300)) for key in names.values()])
    order = np.argsort(-found[:, 0], kind="stable")
    columns = {name: found[order, i + 1] for i, name in enumerate(("low", "high", "share of squared length"))}
    title = "The dictionary's error and its parts, on held-out examples"
    return Ranking(tuple(np.array(list(names))[order]), found[order, 0], columns, title=title, unit="share of variance")


def _predicted(sums: Held, chance: Held, draw: Draw) -> Ranking:
    lines = {}
    for held, suffix in ((sums, ""), (chance, ", by chance")):
        whole, norms = held.errors.about_mean(), held.norms.about_mean()
        lines[f"error, pooled{suffix}"] = draw(whole - held.sizes["nonlinear"], whole)
        lines[f"error, mean over numbers{suffix}"] = (held.mean_explained(), float("nan"), float("nan"))
        lines[f"squared length{suffix}"] = draw(norms - held.sizes["norm left"], norms)
    values = np.array(list(lines.values()))
    columns = {"low": values[:, 1], "high": values[:, 2]}
    title = "What a linear map predicts of the error from the row, on held-out examples"
    return Ranking(tuple(lines), values[:, 0], columns, title=title, unit="R²", diagnostics={"definitions": dict(DEFINITIONS)})


def _lengths(pairs: np.ndarray) -> Series:
    """Mean squared length of the error in rows that are alike in what was predicted of it."""
    order = np.argsort(pairs[:, 0], kind="stable")
    bars = [part for part in np.array_split(pairs[order], min(BARS, len(pairs))) if len(part)]
    x, y = (np.array([part[:, i].mean() for part in bars]) for i in (0, 1))
    curves = {"mean squared length": y, "as predicted": x}
    return Series(
        x,
        curves,
        "predicted ‖e‖², mean of a twentieth of the rows",
        title="Squared length of the error as predicted and as it is",
        unit="model units²",
    )


def _sentence(parts: Mapping[str, Any]) -> str:
    share = dict(zip(parts["error"].names, parts["error"].values, strict=True))
    fit = dict(zip(parts["predicted"].names, parts["predicted"].values, strict=True))
    return (
        f"The error is {share['whole error']:.3g} of the variance, its nonlinear part {share['nonlinear part']:.3g}: a linear map predicts R² "
        f"{fit['error, pooled']:.3g} of it (mean over numbers {fit['error, mean over numbers']:.3g}, by chance {fit['error, pooled, by chance']:.3g}) "
        f"and {fit['squared length']:.3g} of its squared length."
    )


def _scarce(source: RowSource, held: np.ndarray) -> list[str]:
    count = int((~held[source.chosen]).sum())
    if count >= 20 * source.width:
        return []
    return [f"Only {count:,} rows were fitted to, for {source.width} numbers: the linear part is understated, as the fit by chance shows."]


def _cost_words(cost: Ranking) -> str:
    at = {name: i for i, name in enumerate(cost.names)}
    said = [
        f"the {name} has {cost.columns['share of squared length'][i]:.0%} of the squared length and {cost.columns['share of KL'][i]:.0%} of the KL "
        f"(as long a random direction {cost.columns['share of KL'][at[f'random direction, as long as the {name}']]:.0%})"
        for name, i in at.items()
        if name in ("linear part", "nonlinear part")
    ]
    return f"Without the whole error (the site holds x̂) the model loses {cost.values[at['whole error']]:.3g} nats (KL); {'; '.join(said)}."
