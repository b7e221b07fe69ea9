"""Where gradients are taken for edges: at the base run, on the way of the embedding, or on the way of each writer's own value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from activarium.analyses.patching.reader_inputs import Readers
from activarium.analyses.patching.sides import Sides
from activarium.analyses.patching.wiring import Wiring
from activarium.edits import Edit, Replace

Point = tuple[Any, float, slice | None]  # a run with its graph, its weight, and the writers it counts for (None: all)
RULES = ("midpoint", "left")


def quadrature(steps: int, rule: str) -> list[float]:
    """Places on the way from base (0) to source (1)."""
    return [(k + (0.5 if rule == "midpoint" else 0.0)) / steps for k in range(steps)]


def points(
    model: Any, sides: Sides, readers: Readers, method: str, base: Any, source: Any, alphas: list[float], **options: Any
) -> Iterator[Point]:
    """Runs over one batch of pairs whose gradients, weighted, make the scores."""

    def run(*edits: Edit) -> Any:
        return sides.run(model, sides.base, readers.sites, edits=edits, grad=True, **options)

    if method not in ("eap-ig-inputs", "eap-ig-activations"):
        yield run(), 1.0, None
        return
    for site, only in _groups(readers.wiring) if method == "eap-ig-activations" else [("blocks.0.resid_pre", None)]:
        start, end = (side[site].tensor.detach() for side in (base, source))
        for alpha in alphas:
            yield run(Replace(site, _constant(start + alpha * (end - start)))), 1 / len(alphas), only


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
