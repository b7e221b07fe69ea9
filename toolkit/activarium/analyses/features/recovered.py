"""How much of a model's answers stays when dictionaries stand in its sites: loss and KL recovered, beside ablations and controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from activarium.analyses.changed_answers import Answers, Change, changed_answers
from activarium.analyses.features.splicing import Splice
from activarium.edits import Replace
from activarium.maths import bootstrap_interval
from activarium.protocols import Runner
from activarium.results import Ranking
from activarium.rows import KINDS

ZERO, MEAN, SAME = "zero ablation", "mean ablation", "the rows themselves"
DEFINITIONS: Mapping[str, str] = {
    "KL": "mean over answers of KL(full ‖ spliced), nats",
    "KL recovered": "1 − ΣKL(spliced) / ΣKL(ablated)",
    "CE": "mean over answers whose right answer is known of −log p(right answer), nats",
    "CE recovered": "(ΣCE(ablated) − ΣCE(spliced)) / (ΣCE(ablated) − ΣCE(full))",
    "agreement": "share of answers whose top answer stays the same",
    "rows": "splice and ablations touch the same rows; the others stay as the model computes them. Every answer counts, also at rows that were left alone",
}


@dataclass(frozen=True)
class Draw:
    """How intervals are drawn: over whole examples."""

    confidence: float
    resamples: int
    seed: int

    def __call__(self, above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
        """A ratio of sums over examples with its ends; NaN where it has no meaning."""
        total = float(below.sum())
        if not abs(total) > 1e-12 * max(1.0, float(np.abs(below).sum())):
            return (float("nan"),) * 3
        low, high, _ = bootstrap_interval(
            above[:, None], below[:, None], confidence=self.confidence, resamples=self.resamples, seed=self.seed
        )
        return float(above.sum()) / total, float(low[0]), float(high[0])


@dataclass(frozen=True, eq=False)
class Spliced:
    """One thing that is put in a site's place, and the ablations that it is held against.

    Attributes:
        splice: Where.
        edits: What.
        mean: What the mean ablation writes, `d_out`.
    """

    splice: Splice
    edits: Change
    mean: Tensor

    @property
    def place(self) -> tuple[Any, ...]:
        """What decides the ablations."""
        return self.splice.target, self.splice.where


def recovered(
    model: Runner, inputs: Any, things: Mapping[str, Spliced], draw: Draw, *, progress: bool = False
) -> tuple[Ranking, list[str]]:
    """Run the model with each thing in its place, and with the ablations of each place.

    Args:
        model: The model.
        inputs: What it runs on.
        things: Name → what is spliced in.
        draw: Of the intervals.
        progress: Show a bar.

    Returns:
        Everything by KL, the least first, with what was recovered; and what a reader should know of the ablations.
    """
    changes: dict[str, Change] = {name: thing.edits for name, thing in things.items()}
    places = {thing.place: thing for thing in things.values()}
    ablations: dict[Any, tuple[str, str]] = {}
    everything = dict(things)
    for number, (place, thing) in enumerate(places.items()):
        at = f" {number + 1} ({place[0]})" if len(places) > 1 else ""
        same = Replace(place[0], lambda values: values.clone(), where=thing.splice.where)
        made: dict[str, Change] = {f"{ZERO}{at}": thing.splice.zero(), f"{MEAN}{at}": thing.splice.mean(thing.mean), f"{SAME}{at}": [same]}
        ablations[place] = f"{ZERO}{at}", f"{MEAN}{at}"
        changes |= made
        everything |= dict.fromkeys(made, thing)
    found = changed_answers(model, inputs, changes, progress=progress, doing="splicing")
    lines = {name: _figures(found[name], *(found[n] for n in ablations[everything[name].place]), draw) for name in changes}
    order = sorted(lines, key=lambda name: lines[name]["KL"])
    columns = {
        c: np.array([lines[n][c] for n in order]) for c in lines[order[0]] if c != "KL" and any(np.isfinite(lines[n][c]) for n in order)
    }
    some = next(iter(found.values()))
    table = Ranking(
        tuple(order),
        np.array([lines[n]["KL"] for n in order]),
        columns,
        title="What the model answers with each dictionary in its place",
        unit="KL, nats",
        diagnostics={
            "definitions": dict(DEFINITIONS),
            "answers": len(some),
            "known answers": int(some.known.sum()),
            "examples": len(np.unique(some.example)),
            "CE of the full model": some.mean("full_loss"),
            "rows left alone": _left(places.values()),
        },
    )
    return table, _doubts(table, ablations)


def _figures(here: Answers, zero: Answers, mean: Answers, draw: Draw) -> dict[str, float]:
    known, every = here.known, np.ones(len(here), bool)
    line: dict[str, float] = _with_ends("KL", draw(*here.sums(here.kl)))
    line |= _with_ends("agreement", draw(*here.sums(here.agrees.astype(float))))
    for name, ablated in (("zero", zero), ("mean", mean)):
        of_kl = [here.sums(v, every)[0] for v in (ablated.kl - here.kl, ablated.kl)]
        line |= _with_ends(f"KL recovered ({name})", draw(of_kl[0], of_kl[1]))
    if known.any():
        line["CE"] = here.mean("loss")
        line |= _with_ends("rise of CE", draw(*here.sums(here.loss - here.full_loss, known)))
        for name, ablated in (("zero", zero), ("mean", mean)):
            of_loss = [here.sums(v, known)[0] for v in (ablated.loss - here.loss, ablated.loss - here.full_loss)]
            line |= _with_ends(f"CE recovered ({name})", draw(of_loss[0], of_loss[1]))
    return line


def _with_ends(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    return {name: found[0], f"{name} low": found[1], f"{name} high": found[2]}


def _doubts(table: Ranking, named: Mapping[Any, Sequence[str]]) -> list[str]:
    """Ablations that cost nothing one can tell from 0: what is 'recovered' of that has no meaning."""
    at = {name: i for i, name in enumerate(table.names)}
    said = []
    for ablation in (name for pair in named.values() for name in pair):
        kl = table.values[at[ablation]]
        low = table.columns["rise of CE low"][at[ablation]] if "rise of CE low" in table.columns else float("nan")
        if kl < 1e-6:
            said.append(f"{ablation} changes no answer (KL {kl:.1g} nats): nothing can be recovered of it.")
        elif low <= 0:
            said.append(f"{ablation} raises the loss by nothing that can be told from 0: read KL recovered, not CE recovered.")
    return said


def _left(places: Iterable[Spliced]) -> str:
    kinds = [[k for k in KINDS if k not in place.splice.where.kinds] if place.splice.where.kinds else [] for place in places]
    return "; ".join(sorted({", ".join(k) or "none" for k in kinds}))
