"""Attribution patching (AtP): activation patching to first order, all nodes from one backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from activarium.analyses.patching.linear import linear
from activarium.analyses.patching.nodes import Positions
from activarium.analyses.patching.sides import Sides
from activarium.errors import InputError
from activarium.features import Features
from activarium.pairs import Pairs
from activarium.protocols import Runner
from activarium.results import Grid


def attribution_patching(
    model: Runner,
    pairs: Pairs,
    nodes: str | Sequence[str] | Features,
    *,
    direction: str = "denoise",
    points: int = 1,
    positions: Positions = "each",
    units: str | Sequence[int] | None = None,
    normalise: bool = False,
    batch: int = 32,
    progress: bool = True,
) -> Grid:
    """Which nodes would change the answer, by the gradient at the base run?

    `<dm/da at the base, a(source) - a(base)>` for every node: two forwards and one backward for all of them. Exact where all that
    follows a node is affine in it. Known to fail for residual streams (the norm's scale reacts to large differences), for the
    first MLP and where a softmax is saturated: see `against_exact`.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        nodes: Site names and patterns, `blocks.*.attn.z`; nodes of `row head d_head` sites are heads. Or `act.Features` of a site.
        direction: `denoise` patches clean values into the corrupted run, `noise` the reverse. Signs are not flipped.
        points: 1 takes the gradient at the base run, 2 the mean of those at the base and the source run.
        positions: `"each"` row is a node, `"all"` rows of a site together, the pairs' named `"places"`, or position numbers.
        units: `"all"` or numbers: each unit of the last axis (a neuron of `mlp.post`) is a node.
        normalise: Give shares of M+ - M-.
        batch: Pairs in one forward.
        progress: Show a bar when there are many batches.

    Returns:
        A grid `layer position` (and `head`, or the units' axis), the mean over pairs of the change of the metric, with
        `per_example`, the masks `known_zero` and `no_row`, and both metrics.

    Raises:
        UnknownSite: No such site.
        InputError: Bad options, or a dtype in which gradients lie.

    Source:
        Nanda 2023, Attribution Patching; Syed et al. 2023, Attribution Patching Outperforms Automated Circuit Discovery,
        arXiv:2310.10348, section 2.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> attribution_patching(model, pairs, "blocks.*.mlp.out").values.shape
        (3, 4)
    """
    if points not in (1, 2):
        raise InputError(
            f"points={points}: the gradient is taken at 1 point (the base run) or 2 (both runs); for more use integrated_patching."
        )

    def multipliers(model: Any, sides: Sides, sites: Sequence[str], source: Any) -> tuple[Mapping[str, Tensor], Any]:
        base = sides.run(model, sides.base, sites, grad=True)
        slopes = {s: a.tensor for s, a in _chosen(sides.gradient(base), sites).items()}
        if points == 2:
            other = sides.gradient(sides.run(model, sides.source, sites, grad=True))
            slopes = {s: (g + other[s].tensor) / 2 for s, g in slopes.items()}
        return slopes, base

    title = "Attribution patching" + (" at two points" if points == 2 else "")
    return linear(
        model,
        pairs,
        nodes,
        multipliers,
        title=title,
        direction=direction,
        positions=positions,
        units=units,
        normalise=normalise,
        batch=batch,
        progress=progress,
    )


def _chosen(gradient: Any, sites: Sequence[str]) -> dict[str, Any]:
    return {s: gradient[s] for s in sites}
