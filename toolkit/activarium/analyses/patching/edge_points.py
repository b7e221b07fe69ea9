"""Where gradients are taken for edges: at the base run, on the way of the embedding, or on the way of each writer's own value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from activarium.analyses.patching.reader_inputs import Readers
from activarium.analyses.patching.sides import Sides
from activarium.analyses.patching.wiring import Wiring
from activarium.edits import Edit, Replace
from activarium.errors import InputError
from activarium.rules import Rules

Point = tuple[Any, float, slice | None]  # a run with its graph, its weight, and the writers it counts for (None: all)
METHODS = {"eap": "EAP", "relp": "RelP", "eap-ig-inputs": "EAP-IG (inputs)", "eap-ig-activations": "EAP-IG (activations)"}
OFFSETS = {"midpoint": 0.5, "left": 0.0}


@dataclass(frozen=True)
class Method:
    """How gradients for edges are taken.

    Attributes:
        name: One of `METHODS`.
        steps: Points on the way from base to source, for the methods that go it.
        rule: Where in its step a point lies, `midpoint` or `left`.
        rules: Relevance rules in the place of gradients.
    """

    name: str
    steps: int
    rule: str
    rules: Rules | None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise InputError(f"method={self.name!r} is not known; choose {', '.join(METHODS)}.")
        if self.rule not in OFFSETS:
            raise InputError(f"rule={self.rule!r} is not known; choose {' or '.join(OFFSETS)}.")
        if self.steps < 1:
            raise InputError(f"steps={self.steps}: the way from base to source needs at least one point.")

    @property
    def on_the_way(self) -> bool:
        """Are gradients taken between base and source?"""
        return "-ig-" in self.name

    def moved(self, wiring: Wiring) -> list[tuple[str, slice | None]]:
        """Sites whose values go from base to source, one after the other, and the writers that count meanwhile."""
        if self.name == "eap-ig-activations":
            return [*_groups(wiring)]
        return [("blocks.0.resid_pre", None)] if self.on_the_way else []

    def runs(self, wiring: Wiring) -> int:
        """How many runs with a gradient it makes of one batch."""
        return self.steps * len(self.moved(wiring)) or 1

    def notes(self) -> dict[str, Any]:
        """For the diagnostics."""
        way = {"steps": self.steps, "rule": self.rule} if self.on_the_way else {}
        return {"method": self.name} | way | ({"rules": self.rules.name} if self.rules else {})


def quadrature(steps: int, rule: str = "midpoint") -> list[float]:
    """Places on the way from base (0) to source (1)."""
    return [(k + OFFSETS[rule]) / steps for k in range(steps)]


def points(model: Any, sides: Sides, readers: Readers, method: Method, base: Any, source: Any) -> Iterator[Point]:
    """Runs over one batch of pairs whose gradients, weighted, make the scores."""

    def run(*edits: Edit) -> Any:
        return sides.run(model, sides.base, readers.sites, edits=edits, grad=True, rules=method.rules)

    if not method.on_the_way:
        yield run(), 1.0, None
    for site, only in method.moved(readers.wiring):
        start, end = (side[site].tensor.detach() for side in (base, source))
        for alpha in quadrature(method.steps, method.rule):
            yield run(Replace(site, _constant(start + alpha * (end - start)))), 1 / method.steps, only


def _constant(values: Tensor) -> Any:
    return lambda _: values


def _groups(wiring: Wiring) -> Iterator[tuple[str, slice]]:
    """Writers whose values are moved together: the embedding, the heads of a block, its MLP."""
    yield "blocks.0.resid_pre", slice(0, 1)
    for i, layer in enumerate(wiring.layers):
        if layer.heads:
            yield f"blocks.{i}.attn.out", wiring.heads_of(i)
        if layer.mlp:
            yield f"blocks.{i}.mlp.out", slice(wiring.mlp_of(i), wiring.mlp_of(i) + 1)
