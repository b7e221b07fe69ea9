"""What each part of a dictionary's error costs the model: KL and loss when it is taken out of the site, and a random part of its length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.features.error_parts import ErrorFit, Parts
from activarium.analyses.features.recovered import Draw
from activarium.analyses.features.splicing import Splice
from activarium.analyses.features.spread import APART
from activarium.protocols import Runner
from activarium.results import Ranking

TAKEN: Mapping[str, Callable[[Parts], Tensor]] = {
    "whole error": lambda parts: parts.error,
    "linear part": lambda parts: parts.linear,
    "nonlinear part": lambda parts: parts.nonlinear,
}
RANDOM = "random direction, as long as the"
DEFINITIONS: Mapping[str, str] = {
    "taken out": "the site holds x − part: x̂ without the whole error, x − ê without its linear part, x − n without the rest",
    "share of squared length": "Σ‖part‖² / Σ‖e‖² over the rows of these inputs; the two parts need not sum to 1, as they are fitted elsewhere",
    "share of KL": "KL without the part / KL without the whole error",
}


def error_cost(model: Runner, inputs: Any, splice: Splice, fit: ErrorFit, draw: Draw, *, progress: bool = False) -> Ranking:
    """Run the model without each part of the error, and without as much along random directions.

    Args:
        model: The model.
        inputs: What it runs on.
        splice: Where the dictionary stands.
        fit: The linear part of its error.
        draw: Of the intervals and random directions.
        progress: Show a bar.
    """
    sizes: dict[str, float] = {}
    edits = {}
    for name, of in TAKEN.items():
        edits[name] = splice.values(without(fit, of, name, sizes))
        generator = torch.Generator().manual_seed(draw.seed + APART)
        edits[f"{RANDOM} {name}"] = splice.values(without(fit, of, f"{RANDOM} {name}", sizes, generator))
    found = changed_answers(model, inputs, edits, progress=progress, doing="taking out errors of")
    lines = {name: _line(answers, sizes[name] / sizes["whole error"], draw) for name, answers in found.items()}
    whole = lines["whole error"]["KL"]
    for line in lines.values():
        line["share of KL"] = line["KL"] / whole if whole > 0 else float("nan")
    order = sorted(lines, key=lambda name: -lines[name]["KL"])
    some = next(iter(found.values()))
    return Ranking(
        tuple(order),
        np.array([lines[n]["KL"] for n in order]),
        {c: np.array([lines[n][c] for n in order]) for c in lines[order[0]] if c != "KL"},
        title="What the model loses without each part of the error",
        unit="KL, nats",
        diagnostics={"definitions": dict(DEFINITIONS), "answers": len(some), "known answers": int(some.known.sum())},
    )


def without(
    fit: ErrorFit, of: Callable[[Parts], Tensor], name: str, sizes: dict[str, float], generator: torch.Generator | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """What the site holds without a part of the error, or without as much along random directions; adds the squared length to `sizes`."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        gone = of(fit.parts(x, fit.errors(x, y)))
        length = gone.norm(dim=1, keepdim=True)
        sizes[name] = sizes.get(name, 0.0) + float(length.square().sum())
        if generator is not None:
            gone = length * torch.nn.functional.normalize(torch.randn(gone.shape, generator=generator, dtype=gone.dtype), dim=1)
        return y.double().cpu() - gone

    return function


def _line(answers: Any, size: float, draw: Draw) -> dict[str, float]:
    kl, low, high = draw(*answers.sums(answers.kl))
    line = {"KL": kl, "KL low": low, "KL high": high, "share of squared length": size, "share of KL": 0.0}
    if answers.known.any():
        rise = draw(*answers.sums(answers.loss - answers.full_loss, answers.known))
        line |= dict(zip(("rise of CE", "rise of CE low", "rise of CE high"), rise, strict=True))
    return line | {"agreement": answers.mean("agrees")}
