"""Gradients averaged on the way from the base run to the source run, and how much of the metric's change they account for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.nodes import Columns
from activarium.analyses.patching.sides import Sides, measured, wide
from activarium.edits import Set
from activarium.errors import InputError, MissingSite, unknown

RULES = ("midpoint", "left", "gauss")


def points(steps: int, rule: str) -> list[tuple[float, float]]:
    """Places on the way from 0 (base) to 1 (source) and their weights, which sum to 1.

    Raises:
        InputError: No steps.
        UnknownName: No such rule.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    if steps < 1:
        raise InputError(f"steps={steps}: the gradient is taken at one point at least.")
    if rule == "gauss":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return [(float(p + 1) / 2, float(w) / 2) for p, w in zip(places, weights, strict=True)]
    return [((k + (0.5 if rule == "midpoint" else 0.0)) / steps, 1 / steps) for k in range(steps)]


def entries(model: Any, spaces: Sequence[str]) -> list[str]:
    """Where the inputs enter the blocks of every stack.

    Raises:
        MissingSite: A stack's embeddings have no site.
    """
    names = [f"{s}.embed" if s else "embed" for s in spaces]
    missing = next((n for n in names if n not in model.sites), None)
    if missing:
        raise MissingSite(f"{model.name} has no site {missing!r}, so its inputs cannot be moved. Use mode='activations'.")
    return names


class Way:
    """Mean gradients between two runs.

    Attributes:
        points: Places on the way and their weights.
        entries: Sites that move together from base to source; empty where every site moves alone.
        advance: Called once for every backward.
    """

    def __init__(self, points: Sequence[tuple[float, float]], entries: Sequence[str], advance: Callable[[int], Any]) -> None:
        self.points, self.entries, self.advance = points, entries, advance
        self._missed: dict[str, float] = {}
        self._whole = 0.0

    def multipliers(self, model: Any, sides: Sides, sites: Sequence[str], source: Any) -> tuple[Mapping[str, Tensor], Any]:
        """Mean gradient per site, and the base run."""
        read = [*dict.fromkeys([*sites, *self.entries])]
        base = sides.run(model, sides.base, read)
        self._whole += float(np.abs(measured(source) - measured(base)).sum())
        if self.entries:
            slopes = self._mean(model, sides, self.entries, read, base, source)
            self._account("inputs", sides, self.entries, slopes, base, source, measured(source) - measured(base))
            return slopes, base
        slopes = {}
        for site in sites:
            slopes |= self._mean(model, sides, [site], [site], base, source)
            moved = sides.run(model, sides.base, edits=[Set(site, source[site].tensor)])
            self._account(site, sides, [site], slopes, base, source, measured(moved) - measured(base))
        return slopes, base

    def _mean(self, model: Any, sides: Sides, moved: Sequence[str], read: Sequence[str], base: Any, source: Any) -> dict[str, Tensor]:
        """The gradient at the sites that are read, averaged while some sites move."""
        mean: dict[str, Tensor] = {}
        for place, weight in self.points:
            edits = [Set(s, torch.lerp(base[s].tensor, source[s].tensor, place)) for s in moved]
            gradient = sides.gradient(sides.run(model, sides.base, read, edits=edits, grad=True))
            for site in read:
                share = weight * wide(gradient[site].tensor)
                mean[site] = mean[site] + share if site in mean else share
            self.advance(1)
        return mean

    def _account(
        self, name: str, sides: Sides, moved: Sequence[str], slopes: Mapping[str, Tensor], base: Any, source: Any, exact: np.ndarray
    ) -> None:
        """Remember by how much the shares of what moved miss the exact change."""
        shares = np.zeros(len(exact))
        for site in moved:
            change = wide(source[site].tensor) - wide(base[site].tensor)
            per_row = (change * slopes[site]).flatten(1).sum(1)
            shares += Columns(sides.pairs, base[site].space, "all").per_pair(per_row)
        self._missed[name] = self._missed.get(name, 0.0) + float(np.abs(shares - exact).sum())

    @property
    def error(self) -> float:
        """What is missing, summed over pairs, as a share of the metric's change; of sites that moved alone, the worst."""
        worst = max(self._missed.values(), default=0.0)
        return worst / self._whole if self._whole else float("inf") if worst else 0.0

    def notes(self) -> dict[str, Any]:
        """For a result's diagnostics."""
        return {"completeness_error": self.error}
