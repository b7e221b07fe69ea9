"""Is it the encoder that leaves the error? Codes found by gradient pursuit, as many in each row, in the same directions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from activarium.analyses.features.error_parts import Held, Parts
from activarium.analyses.features.pursuit import gradient_pursuit
from activarium.analyses.features.ridge import Ridge
from activarium.dictionaries import FeatureDictionary, RowSource
from activarium.results import Ranking

MOST = 256  # codes of a row: each takes a step


def unpursued(dictionary: FeatureDictionary, source: RowSource) -> str:
    """Why no codes can be looked for, or nothing."""
    if dictionary.transcoder:
        return "a transcoder's codes are of other rows than it writes."
    if getattr(getattr(dictionary, "design", None), "scaling", "none") != "none":
        return "this dictionary scales each row before it codes it."
    most = int(dictionary.codes(source.read(source.chosen[: 4 * MOST])[0]).active.max())
    return f"rows have up to {most} codes; it takes a step for each, and goes to {MOST}." if most > MOST else ""


def error_pursuit(dictionary: FeatureDictionary, source: RowSource, held: np.ndarray, rows: int, ridge: float, seed: int) -> Ranking:
    """The error and its nonlinear part with the encoder's codes and with pursued ones, on the same rows.

    Args:
        dictionary: The dictionary.
        source: Its rows.
        held: Boolean per row of the recording: measured on, not fitted to.
        rows: How many rows of each half.
        ridge: Penalty of the linear map.
        seed: Draws the rows.
    """
    generator = np.random.default_rng(seed)
    halves = []
    for half in (False, True):
        here = source.chosen[held[source.chosen] == half]
        halves.append(source.read(generator.permutation(here)[:rows])[0])
    errors = [_errors(dictionary, x) for x in halves]
    lines = {
        name: _line(halves, [e[i] for e in errors], [e[2 + i] for e in errors], ridge)
        for i, name in enumerate(("encoder", "gradient pursuit"))
    }
    order = sorted(lines, key=lambda name: lines[name]["FVU"])
    columns = {c: np.array([lines[n][c] for n in order]) for c in lines[order[0]] if c != "FVU"}
    title = "The encoder's codes, and as many found by gradient pursuit"
    notes = {"rows fitted to": len(halves[0]), "held-out rows": len(halves[1])}
    return Ranking(tuple(order), np.array([lines[n]["FVU"] for n in order]), columns, title=title, unit="FVU", diagnostics=notes)


@torch.no_grad()
def _errors(dictionary: FeatureDictionary, x: Tensor) -> tuple[Tensor, ...]:
    """Errors of the encoder and of pursuit, and how many codes each gave a row."""
    there = dictionary.directions.device
    x = x.to(there, dictionary.dtype)
    codes = dictionary.codes(x)
    bias = dictionary.decode(x.new_zeros(1, dictionary.width))
    unit = normalize(dictionary.directions, dim=1)
    pursued = gradient_pursuit(x - bias, unit, codes.active)
    found = x - dictionary.forward(x), x - bias - pursued @ unit
    return *(e.double().cpu() for e in found), codes.active.cpu(), (pursued > 0).sum(1).cpu()


def _line(halves: list[Tensor], errors: list[Tensor], active: list[Tensor], ridge: float) -> dict[str, float]:
    sums = Ridge(halves[0].shape[1], errors[0].shape[1])
    sums.add(halves[0], errors[0])
    found = Held(errors[0].shape[1], 1)
    parts = Parts(errors[1], sums.solved(ridge)(halves[1]).cpu(), errors[1].square().sum(1))
    found.add(halves[1], parts, np.zeros(len(halves[1]), np.int64))
    total, whole = found.rows.about_mean().sum(), found.errors.about_mean().sum()
    left = found.sizes["nonlinear"].sum()
    return {
        "FVU": float(found.sizes["error"].sum() / total),
        "FVU, nonlinear part": float(left / total),
        "R² of the error": float(1 - left / whole) if whole > 0 else float("nan"),
        "codes per row": float(active[1].double().mean()),
    }
