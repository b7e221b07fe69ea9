"""Runs for features: gradients at their sites, direct effects between sites, and runs with some nodes held at their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.edge_points import quadrature
from activarium.analyses.patching.features import Coder, Held
from activarium.analyses.patching.sides import Sides, Totals, check_resolution, measured, wide
from activarium.edits import Replace


def held(model: Any, sides: Sides, coders: Sequence[Coder], steps: int) -> tuple[list[Held], Totals]:
    """Every site with its gradient at the base run, or with `steps` the mean gradient while its own value moves to the source's."""
    sites = [c.site for c in coders]
    base, source = sides.run(model, sides.base, sites, grad=not steps), sides.run(model, sides.source, sites)
    gradient = None if steps else sides.gradient(base)
    made = []
    for coder in coders:
        start, end = (side[coder.site].tensor.detach() for side in (base, source))
        slope = gradient[coder.site].tensor if gradient is not None else _mean_slope(model, sides, coder.site, start, end, steps)
        made.append(Held(coder, start, end, slope))
    totals = Totals(measured(base), measured(source))
    check_resolution(model, base, totals)
    return made, totals


def _mean_slope(model: Any, sides: Sides, site: str, start: Tensor, end: Tensor, steps: int) -> Tensor:
    found = torch.zeros_like(wide(start))
    for alpha in quadrature(steps):
        values = start + alpha * (end - start)
        run = sides.run(model, sides.base, site, edits=[Replace(site, _constant(values))], grad=True)
        found += wide(sides.gradient(run)[site].tensor) / steps
    return found


def _constant(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: values


class DirectEffects:
    """A base run that is cut at every site: what follows a site sees its values as constants of their own, so that a gradient is that of
    direct ways alone.

    Attributes:
        order: Sites in the order of the forward.
        entering: Site → values `row …` as they come in, in the graph of the sites before.
        metric: The metric, `example`, in the graph of all sites.
    """

    def __init__(self, model: Any, sides: Sides, sites: Sequence[str]) -> None:
        self.entering: dict[str, Tensor] = {}
        self._leaves: dict[str, Tensor] = {}
        self._counts = sides.counts
        recording = sides.run(model, sides.base, sites[0], edits=[Replace(s, self._cut(s)) for s in sites], grad=True)
        self.order, self.metric = tuple(self.entering), recording.metric["metric"]

    def _cut(self, site: str) -> Callable[[Tensor], Tensor]:
        def cut(values: Tensor) -> Tensor:
            self.entering[site] = values
            self._leaves[site] = values.detach().clone().requires_grad_()
            return self._leaves[site]

        return cut

    def of(self, target: Tensor, sites: Sequence[str]) -> Mapping[str, Tensor]:
        """Gradient of a sum at each of these sites, by direct ways."""
        sites = list(sites)
        if not sites or not target.requires_grad:
            return {s: torch.zeros_like(self._leaves[s]) for s in sites}
        self._counts.backwards += 1
        found = torch.autograd.grad(target.sum(), [self._leaves[s] for s in sites], retain_graph=True, allow_unused=True)
        return {s: torch.zeros_like(self._leaves[s]) if g is None else g for s, g in zip(sites, found, strict=True)}


def ablated(model: Any, sides: Sides, kept: Mapping[Coder, Tensor], means: Mapping[Coder, tuple[Tensor, Tensor]]) -> np.ndarray:
    """The metric of the base run with all nodes at their mean but those kept.

    Args:
        model: The runner.
        sides: The pairs.
        kept: Dictionary → boolean `row node`, the error last.
        means: Dictionary → mean features `row feature` and mean errors `row …`.
    """

    def change(coder: Coder) -> Callable[[Tensor], Tensor]:
        def put(values: Tensor) -> Tensor:
            codes, error = coder.parts(values)
            stays, (mean, mean_error) = kept[coder].to(values.device), means[coder]
            mixed = torch.where(stays[:, :-1], codes, mean.to(codes.dtype))
            rest = torch.where(stays[:, -1].reshape(-1, *[1] * (error.ndim - 1)), error, mean_error)
            return wide(coder.dictionary.decode(mixed)) + rest

        return put

    return measured(sides.run(model, sides.base, edits=[Replace(c.site, change(c)) for c in kept]))
