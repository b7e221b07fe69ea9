"""Integrated gradients over the embeddings: the mean gradient on the straight path from an input without words or patches."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from activarium.analyses.patching.leaves import EXACT, Leaves
from activarium.edits import Set, Zero
from activarium.errors import InputError
from activarium.metrics import Metric

WARN_ABOVE = 0.05  # of the change of the metric


def path_leaves(model: Any, given: Any, metric: Metric, steps: int) -> tuple[Leaves, dict[str, Any]]:
    """Relevance of the embeddings by midpoint integrated gradients, and how complete it is.

    The baseline has zeros for token or patch embeddings; positions, class tokens and registers stay what they are.
    """
    if steps < 1:
        raise InputError(f"steps={steps} makes no path; give at least 1 (midpoint), 10 for a completeness error that is small as a rule.")
    spaces, lower = entrances(model, given)
    with torch.no_grad():
        there = model.run(given, read=[*spaces], metrics={"metric": metric})
        base = model.run(given, read=[*spaces], edits=[Zero(n) for n in lower], metrics={"metric": metric})
    delta = {site: there[site].tensor - base[site].tensor for site in spaces}
    summed = {site: torch.zeros_like(d, dtype=torch.float64, device="cpu") for site, d in delta.items()}
    for step in range(steps):
        share = (step + 0.5) / steps
        path = [Set(site, base[site].tensor + share * d) for site, d in delta.items()]
        rec = model.run(given, read=[*spaces], edits=path, metrics={"metric": metric}, grad=True)
        slopes = rec.backward("metric")
        for site in spaces:
            summed[site] += slopes[site].tensor.double().cpu() / steps
    embeddings = {space: (summed[site] * delta[site].double().cpu()).sum(-1) for site, space in spaces.items()}
    high, low = (float(r.metric["metric"].sum()) for r in (there, base))
    rows = {space: there[site].index for site, space in spaces.items()}
    found = Leaves(high - low, embeddings, rows, grain=EXACT.get(model.dtype, 3e-2))
    error = completeness_error(found)
    if error > WARN_ABOVE:
        warnings.warn(
            f"Integrated gradients miss {error:.0%} of the metric's change with steps={steps}; take more steps.", UserWarning, stacklevel=3
        )
    notes = {"metric at the input": high, "metric at the baseline": low, "completeness_error": error, "steps": steps, "rule": "midpoint"}
    return found, notes


def entrances(model: Any, given: Any) -> tuple[dict[str, str], list[str]]:
    """Sites of the embeddings, each with its row space, and below them the sites that a baseline sets to zero.

    Raises:
        InputError: The model does not show its token or patch embeddings.
    """
    lower = [f"{s}.token_embed" if s else "token_embed" for s in given.data]
    lacking = next((n for n in lower if n not in model.sites), None)
    if lacking:
        raise InputError(f"{model.name} shows no {lacking}, which the baseline sets to zero. Choose another method, such as 'relp-ah'.")
    return {f"{s}.embed" if s else "embed": s for s in given.data}, lower


def completeness_error(found: Leaves) -> float:
    """What relevance misses of the metric's change, as a share of it; where nothing changes, as a share of the relevance."""
    size = max(float(r.abs().sum()) for r in found.embeddings.values())
    return abs(found.remainder) / max(abs(found.metric), 1e-6 * size, 1e-12)
