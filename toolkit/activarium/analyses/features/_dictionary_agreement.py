"""Dictionary agreement: whether two dictionaries, or several seeds of one recipe, found the same features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.spread import APART
from activarium.analyses.features.twins import Twins, twins
from activarium.dictionaries import FeatureDictionary, LiveCodes, as_dictionary, rows_for
from activarium.errors import InputError
from activarium.maths import bootstrap_interval
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Series

LIKE = (0.7, 0.9)
BINS = np.linspace(-1, 1, 81)
DEFINITIONS: Mapping[str, str] = {
    "largest cosine": "mean over the features of one dictionary of their largest cosine with a direction of the other (MMCS); not symmetric",
    "matched": "mean cosine of the one-to-one matching of largest total cosine, over as many pairs as the smaller dictionary has features",
    "twins": "share of features whose largest cosine is above the number",
    "random": "the same with Gaussian directions in the place of the second dictionary, as many as it has",
    "shuffled": "the same with the second's directions, the entries of each column shuffled: coordinates keep their sizes",
    "intervals": "features are drawn again; other data or another seed would differ more",
}


def dictionary_agreement(
    first: Any,
    second: Any,
    *,
    more: Sequence[Any] = (),
    recording: Recording | None = None,
    names: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Did two dictionaries, or several seeds of one recipe, find the same features?

    Directions are compared by cosine; what features read is not looked at. Features that never fire keep the direction they
    began with, which is the same in every dictionary of the same seed: give a recording, and only those that fire on it count.

    Args:
        first: A dictionary: ours, a sae-lens one, or a folder.
        second: Another one that writes the same site.
        more: Further ones; all pairs are compared.
        recording: Rows of the sites they read; features that fire in none of them are left out.
        names: What the dictionaries are called; `first`, `second`, … where nothing is said.
        confidence: Share of the draws inside an interval.
        resamples: How many times features are drawn again.
        seed: Of the draws and of the random directions.

    Returns:
        A report with `agreement` (ranking of the pairs by the mean cosine of their matching, beside random and shuffled
        directions), `likeness` (grid: mean largest cosine of the features `of` one dictionary `in` another), `distribution` (share
        of the features of the first two by their largest cosine, and of the controls) and `features` (ranking of the matched pairs
        of the first two by cosine; `stability` is the mean over all other dictionaries of the cosine with the match there).

    Raises:
        InputError: They write sites of different widths, a name is missing, or no feature fires.
        OtherModel: The recording is of another model than a dictionary was trained on.
        UnknownSite: The recording does not hold the site of one.

    Source:
        Largest cosine: Sharkey, Braun & Millidge 2022, Taking features out of superposition with sparse autoencoders (Alignment
        Forum). Matching: Paulo & Belrose 2025, Sparse Autoencoders Trained on the Same Data Learn Different Features,
        arXiv:2501.16615.

    Differs:
        What features read is not compared. The controls, and leaving out what never fires, are ours.

    Example:
        >>> from activarium.dictionaries import SAE, Design
        >>> one, other = (SAE(Design(d_in=16, features=8), seed=seed) for seed in (1, 2))
        >>> report = act.analyses.dictionary_agreement(one, other)
        >>> report["agreement"].names, bool(report["agreement"].values[0] < 0.9)
        (('first and second',), True)
    """
    given = [as_dictionary(one) for one in (first, second, *more)]
    called = _called(names, len(given))
    _same_width(called, given)
    sides = [_Side.of(name, one, recording) for name, one in zip(called, given, strict=True)]
    found = {(i, j): twins(sides[i].directions, sides[j].directions) for i, j in combinations(range(len(sides)), 2)}
    draw = {"confidence": confidence, "resamples": resamples, "seed": seed}
    generator = torch.Generator().manual_seed(seed + APART)
    controls = {pair: _controls(sides[pair[0]].directions, sides[pair[1]].directions, generator) for pair in found}
    table = _agreement(sides, found, controls, draw)
    parts = {
        "agreement": table,
        "likeness": _likeness(sides, found),
        "distribution": _distribution(sides, found[0, 1], controls[0, 1]),
        "features": _features(sides, found),
    }
    notes = {"features": {s.name: len(s.numbers) for s in sides}, "never fire": {s.name: s.silent for s in sides}, "seed": seed}
    return Report(parts, tuple(_words(sides, table, recording)), title="Agreement of dictionaries", diagnostics=notes)


@dataclass(frozen=True, eq=False)
class _Side:
    """The features of one dictionary that are compared: their numbers and directions."""

    name: str
    numbers: np.ndarray
    directions: Tensor
    silent: int
    site: str

    @staticmethod
    def of(name: str, dictionary: FeatureDictionary, recording: Recording | None) -> _Side:
        directions, site = dictionary.directions.detach(), dictionary.origin.target or dictionary.origin.site
        if recording is None:
            return _Side(name, np.arange(len(directions)), directions, 0, site)
        fires = np.zeros(len(directions), np.int64)
        for _, codes in LiveCodes(rows_for(dictionary, recording), dictionary).pieces():
            fires += codes.fires.cpu().numpy()
        numbers = np.flatnonzero(fires)
        if not len(numbers):
            raise InputError(f"No feature of {name} fires in this recording. Give a longer one, or leave recording= out.")
        return _Side(name, numbers, directions[torch.as_tensor(numbers)], int((fires == 0).sum()), site)


def _called(names: Sequence[str], count: int) -> list[str]:
    usual = ["first", "second", "third", *(f"{n + 1}th" for n in range(3, count))][:count]
    called = [str(n) for n in names] or usual
    if len(called) != count or len(set(called)) != count:
        raise InputError(f"{count} dictionaries need as many different names; got {', '.join(called)}.")
    return called


def _same_width(called: Sequence[str], given: Sequence[FeatureDictionary]) -> None:
    widths = [one.d_out for one in given]
    if len(set(widths)) > 1:
        found = ", ".join(f"{name} {width}" for name, width in zip(called, widths, strict=True))
        raise InputError(f"Directions of different widths have no cosine: {found}. Compare dictionaries that write one site.")


def _controls(first: Tensor, second: Tensor, generator: torch.Generator) -> dict[str, Twins]:
    random = torch.randn(second.shape, generator=generator)
    shuffled = torch.stack([column[torch.randperm(len(second), generator=generator)] for column in second.cpu().T], 1)
    return {"random": twins(first, random), "shuffled": twins(first, shuffled)}


def _agreement(
    sides: Sequence[_Side], found: Mapping[tuple[int, int], Twins], controls: Mapping[tuple[int, int], Mapping[str, Twins]], draw: Any
) -> Ranking:
    lines = {}
    for (i, j), pair in found.items():
        line = _ends("matched", pair.cosines, draw) | _ends("first in second", pair.forth, draw) | _ends("second in first", pair.back, draw)
        for like in LIKE:
            line |= {
                f"twins > {like}, first": float((pair.forth > like).mean()),
                f"twins > {like}, second": float((pair.back > like).mean()),
            }
        for name, control in controls[i, j].items():
            line |= {f"{name}, matched": _mean(control.cosines), f"{name}, first in second": _mean(control.forth)}
            line |= {f"{name}, twins > {LIKE[0]}": float((control.forth > LIKE[0]).mean())}
        lines[f"{sides[i].name} and {sides[j].name}"] = line
    # Where nothing could be matched, the pairs stand in the order they were given in.
    order = sorted(lines, key=lambda name: -np.nan_to_num(lines[name]["matched"]))
    columns = {c: np.array([lines[n][c] for n in order]) for c in lines[order[0]] if c != "matched"}
    return Ranking(
        tuple(order),
        np.array([lines[n]["matched"] for n in order]),
        columns,
        title="How far pairs of dictionaries agree",
        unit="matched cosine",
        diagnostics={"definitions": dict(DEFINITIONS)},
    )


def _ends(name: str, values: np.ndarray | None, draw: Any) -> dict[str, float]:
    if values is None:
        return dict.fromkeys((name, f"{name} low", f"{name} high"), float("nan"))
    low, high, _ = bootstrap_interval(values[:, None], np.ones((len(values), 1)), **draw)
    return {name: _mean(values), f"{name} low": float(low[0]), f"{name} high": float(high[0])}


def _mean(values: np.ndarray | None) -> float:
    return float("nan") if values is None else float(values.mean())


def _likeness(sides: Sequence[_Side], found: Mapping[tuple[int, int], Twins]) -> Grid:
    values = np.eye(len(sides))
    for (i, j), pair in found.items():
        values[i, j], values[j, i] = pair.forth.mean(), pair.back.mean()
    names = [s.name for s in sides]
    title = "Mean largest cosine of the features of one dictionary in another"
    return Grid(values, ("of", "in"), {"of": names, "in": names}, title=title, unit="cosine")


def _distribution(sides: Sequence[_Side], pair: Twins, controls: Mapping[str, Twins]) -> Series:
    a, b = sides[0].name, sides[1].name
    curves = {f"{a} in {b}": pair.forth, f"{b} in {a}": pair.back} | {f"{a} in {name} directions": c.forth for name, c in controls.items()}
    shares = {name: np.histogram(values, BINS)[0] / len(values) for name, values in curves.items()}
    middle = (BINS[:-1] + BINS[1:]) / 2
    return Series(middle, shares, "largest cosine", title="Features by the cosine of their nearest twin", unit="share of features")


def _features(sides: Sequence[_Side], found: Mapping[tuple[int, int], Twins]) -> Ranking:
    """Matched pairs of the first two (nearest ones, where there are too many to match), and how they fare in all others."""
    first, pair = sides[0], found[0, 1]
    here, there = (np.arange(len(first.numbers)), pair.nearest) if pair.matched is None else pair.matched.T
    cosines = pair.forth if pair.cosines is None else pair.cosines
    everywhere = np.full((len(sides) - 1, len(first.numbers)), np.nan)
    for other in range(1, len(sides)):
        one = found[0, other]
        if one.matched is None or one.cosines is None:
            everywhere[other - 1] = one.forth
        else:
            everywhere[other - 1, one.matched[:, 0]] = one.cosines
    known = np.isfinite(everywhere)
    stability = np.where(known, everywhere, 0).sum(0) / known.sum(0).clip(1)
    order = np.argsort(-cosines, kind="stable")
    here, there, cosines = here[order], there[order], cosines[order]
    numbers = first.numbers[here], sides[1].numbers[there]
    columns = {first.name: numbers[0], sides[1].name: numbers[1], f"largest cosine of {first.name}": pair.forth[here]}
    return Ranking(
        tuple(f"{a} – {b}" for a, b in zip(*numbers, strict=True)),
        cosines,
        columns | {"stability": stability[here]},
        title=f"Features of {first.name} and {sides[1].name} that match",
        unit="cosine",
        diagnostics={"matched": pair.matched is not None},
    )


def _words(sides: Sequence[_Side], table: Ranking, recording: Recording | None) -> list[str]:
    said = []
    for i, name in enumerate(table.names):
        c = {key: float(values[i]) for key, values in table.columns.items()}
        matched = f"matched features have a mean cosine of {table.values[i]:.3g} (random directions {c['random, matched']:.3g}, shuffled {c['shuffled, matched']:.3g})"
        if np.isnan(table.values[i]):
            matched = "too many features to match one to one"
        said.append(
            f"{name}: {matched}; the largest cosine is {c['first in second']:.3g} one way and {c['second in first']:.3g} the other; "
            f"{c['twins > 0.7, first']:.0%} and {c['twins > 0.7, second']:.0%} of the features have a twin above 0.7 (random {c['random, twins > 0.7']:.0%})."
        )
    if len(sides) > 2 and np.isfinite(table.values).all():
        said.append(
            f"Stability over {len(sides)} dictionaries: {table.values.mean():.3g}, the mean over their pairs of the matched cosine."
        )
    if recording is None:
        said.append("All features count, those that never fire as well: give recording= to leave them out.")
    if len({s.site for s in sides}) > 1:
        said.append(
            f"They write different sites ({', '.join(dict.fromkeys(s.site or 'unknown' for s in sides))}), whose directions need not mean the same."
        )
    return said
