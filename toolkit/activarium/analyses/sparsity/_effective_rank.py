"""Effective rank: in how many directions the rows of a layer vary, with and without what is massive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import STACKS, column, layer_number, layer_sites, refuse_strange
from activarium.analyses.sparsity.dropped import even_blocks
from activarium.analyses.sparsity.row_kinds import EXCLUDED, kept
from activarium.errors import InputError, UnknownName, UnknownSite
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result, Series
from activarium.summaries import Gram, Survey

ALL, CALM = "all rows", "without first and special rows"
MEASURES = ("effective rank", "effective rank, centred", "participation ratio", "top direction")
BLOCK = 1024  # rows that enter a product at a time
DIRECTIONS = 64  # shown of each layer
Grams = dict[str, dict[str, Gram]]  # which rows → site → Gram


def effective_rank(
    source: Recording | Activations | Survey, *, site: str = "resid_post", without: Sequence[int] = (), exclude: Sequence[str] = EXCLUDED
) -> Report:
    """In how many directions do the rows of each layer vary?

    With the rows of a layer under one another as X (rows × features) and its singular values σ: `effective rank` is
    exp(−Σ p log p) with p = σ / Σσ; `top direction` is σ₁² / Σσ². Both also see where the rows lie; centred, they see only how the rows
    differ: `effective rank, centred`, and the `participation ratio` (tr C)² / tr C² of the covariance C. One massive activation
    makes all of them look like rank 1, so each is also given without first and special rows, where most of them sit, and without
    the features named. State is one matrix feature × feature per layer, in float64.

    Args:
        source: A recording with `blocks.*.resid_post`; one site or stack of sites, axes `row` and one more; or a survey with `Gram` there,
            which holds no rows any more, so that it has one choice of rows: those it was made of.
        site: What stands behind `blocks.i.` in a recording or survey.
        without: Features left out, such as massive dimensions.
        exclude: Row kinds that are special. Pads are never rows.

    Returns:
        A report with a series over layers for each of the four measures, one curve per choice of rows and features (directions; `top direction`
        is a share), `layers` (ranking by the effective rank of all rows, the lowest first, with rows and features), and `spectrum` (grid
        `layer direction`: share of the variance of all rows in each of the first 64 principal directions). Models with several stacks have
        each part per stack.

    Raises:
        UnknownSite: The recording or survey holds no such site, or the survey has no `Gram` there.
        AxisError: The site has other axes.
        InputError: `without` names a feature that is not there, or fewer than two rows are left.
        NotFinite: NaN or infinite numbers.

    Source:
        Roy & Vetterli 2007, The effective rank: a measure of effective dimensionality, EUSIPCO. Participation ratio: Gao et al. 2017,
        A theory of multineuronal dimensionality, dynamics and measurement, bioRxiv 214262.

    Differs:
        Rows are those of real tokens or patches. No number of directions can exceed the number of rows: the report says where rows are few.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> acts = Activations(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), "row d_model", site="blocks.0.resid_post")
        >>> round(effective_rank(acts)["participation ratio"].curves["all rows"][0].item(), 6)
        2.0
    """
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"without": list(without), "site": site if not isinstance(source, Activations) else source.site}
    stacks = _surveyed(source, site) if isinstance(source, Survey) else _gathered(source, site, exclude)
    if isinstance(source, Survey):
        notes["excluded by the survey"] = list(source.provenance.get("exclude", ()))
    for stack, grams in stacks.items():
        _check(grams, without)
        made, said = _stack_parts(grams, without)
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        words += [f"{stack}: {line}" if stack else line for line in said]
        notes[f"{stack} rows".strip()] = {name: next(iter(many.values())).rows for name, many in grams.items()}
    return Report(parts, tuple(words), title="Directions in which the rows vary", diagnostics=notes)


def _gathered(source: Recording | Activations, site: str, exclude: Sequence[str]) -> dict[str, Grams]:
    """Stack → which rows → site → its Gram, in one pass each."""
    neurons = site in ("mlp.pre", "mlp.act", "mlp.post", "mlp.up")
    width = next(iter(source.layers().values())).axes[-1] if isinstance(source, Activations) else "d_mlp" if neurons else "d_model"
    found: dict[str, Grams] = {}
    for stack, sites in layer_sites(source, (site,), f"row {width}").items():
        first = next(iter(sites.values()))
        calm = kept(first, exclude) & (column(first, "position", -1) != 0)
        choices = {ALL: np.ones(len(first), bool)} | ({CALM: calm} if 1 < calm.sum() < len(first) else {})
        found[stack] = {name: {s: _gram(a, rows) for s, a in sites.items()} for name, rows in choices.items()}
    return found


def _gram(activations: Activations, chosen: np.ndarray) -> Gram:
    gram, start = Gram(), 0

    def rows() -> Iterator[Tensor]:
        nonlocal start
        for batch in activations.batches():
            here = chosen[start : start + len(batch)].nonzero()[0]
            start += len(batch)
            some = batch[torch.from_numpy(here).to(batch.device)]
            if not bool(some.isfinite().all()):
                refuse_strange(activations, "It has no singular values.")
            yield some

    for block in even_blocks(rows(), BLOCK):
        gram.update(Activations(block, activations.axes, site=activations.site))
    return gram


def _surveyed(survey: Survey, site: str) -> dict[str, Grams]:
    found: dict[str, Grams] = {}
    for stack in STACKS:
        with suppress(UnknownName):  # another stack's model, or sites surveyed without Gram
            grams = survey.find(f"{stack}blocks.*.{site}", "Gram")
            found[stack.rstrip(".")] = {ALL: {s: g for s, g in grams.items() if isinstance(g, Gram)}}
    if not found:
        have = ", ".join(list(survey)[:8]) or "no sites"
        raise UnknownSite(
            f"This survey has no Gram at blocks.*.{site}; it has {have}. "
            f'Survey it: act.survey(model, {{"blocks.*.{site}": [Gram()]}}, data).'
        )
    return found


def _check(grams: Grams, without: Sequence[int]) -> None:
    for site, gram in grams[ALL].items():
        strange = [i for i in without if not 0 <= i < gram.width]
        if strange:
            raise InputError(f"without= names feature {strange[0]}; {site} has features 0 to {gram.width - 1}.")
        if gram.rows < 2 or gram.width - len(set(without)) < 2:
            raise InputError(
                f"{site} has {gram.rows} rows and {gram.width} features, {len(set(without))} of them left out; directions need at least two of each."
            )


def _stack_parts(grams: Grams, without: Sequence[int]) -> tuple[dict[str, Result], list[str]]:
    sites = list(grams[ALL])
    features = {"": []} | ({", without features": list(without)} if without else {})
    numbers = {
        f"{rows}{said}": np.array([_measures(gram, left_out) for gram in many.values()])
        for rows, many in grams.items()
        for said, left_out in features.items()
    }
    x = np.array([layer_number(s, i) for i, s in enumerate(sites)])
    parts: dict[str, Result] = {
        measure: Series(
            x, {name: v[:, i] for name, v in numbers.items()}, "layer", title=measure.capitalize(), unit="share" if i == 3 else "directions"
        )
        for i, measure in enumerate(MEASURES)
    }
    whole = numbers[ALL]
    order = np.argsort(whole[:, 0], kind="stable")
    columns = {m: whole[order, i] for i, m in enumerate(MEASURES) if i}
    columns |= {
        "rows": np.array([grams[ALL][sites[i]].rows for i in order]),
        "features": np.array([grams[ALL][sites[i]].width for i in order]),
    }
    names = tuple(sites[i] for i in order)
    parts["layers"] = Ranking(names, whole[order, 0], columns, title="Layers, those of fewest directions first", unit=MEASURES[0])
    parts["spectrum"] = _spectrum(grams[ALL])
    return parts, _words(sites, numbers, grams)


def _measures(gram: Gram, without: list[int]) -> tuple[float, float, float, float]:
    """The four measures, in the order of `MEASURES`."""
    keep = [i for i in range(gram.width) if i not in set(without)]
    whole = torch.linalg.eigvalsh(gram.state["gram"][keep][:, keep] / gram.rows).flip(0).clamp_min(0).numpy()
    # What float64 cannot tell from zero next to the largest; the roots of such crumbs would add up to directions.
    crumbs = len(keep) * np.finfo(np.float64).eps * whole[0]
    centred = gram.spectrum(without)
    top = float(whole[0] / whole.sum()) if whole.sum() else float("nan")
    return _rank(whole, crumbs), _rank(centred, crumbs), gram.participation_ratio(without), top


def _rank(energy: np.ndarray, crumbs: float) -> float:
    """Exponential of the entropy of the singular values' shares; NaN where nothing varies."""
    sizes = np.sqrt(energy[energy > crumbs])
    share = sizes / sizes.sum()
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else float("nan")


def _spectrum(grams: Mapping[str, Gram]) -> Grid:
    found = []
    for gram in grams.values():
        variance = gram.spectrum()
        found.append(variance[:DIRECTIONS] / variance.sum() if variance.sum() else np.full(min(DIRECTIONS, len(variance)), np.nan))
    labels = {"layer": list(grams), "direction": [str(i + 1) for i in range(len(found[0]))]}
    return Grid(np.stack(found), ("layer", "direction"), labels, title="Variance in the first principal directions, all rows", unit="share")


def _words(sites: Sequence[str], numbers: Mapping[str, np.ndarray], grams: Grams) -> list[str]:
    width = grams[ALL][sites[0]].width
    said = [
        f"{name}: effective rank {v[:, 0].mean():.1f} of {width} ({v[:, 1].mean():.1f} centred), participation ratio {v[:, 2].mean():.1f}, "
        f"{100 * v[:, 3].mean():.1f} % in the top direction (means over layers)."
        for name, v in numbers.items()
    ]
    few = {name: next(iter(many.values())).rows for name, many in grams.items()}
    return [
        *said,
        *[
            f"{name}: only {rows:,} rows for {width:,} features; no rank can be above {rows:,}."
            for name, rows in few.items()
            if rows < width
        ],
    ]
