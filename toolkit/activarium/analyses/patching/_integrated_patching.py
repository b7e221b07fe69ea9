"""Integrated patching: the gradient averaged on the way from the base run to the source run, so that shares add up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from activarium.analyses.patching.linear import linear
from activarium.analyses.patching.nodes import Positions, family
from activarium.analyses.patching.ways import Way, entries, points
from activarium.errors import unknown
from activarium.features import Features
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Grid

MODES = ("inputs", "activations")
LONG = 100  # backwards from which a progress bar is shown
TOLERATED = 0.05  # share of the metric's change that may be missing without a warning


def integrated_patching(
    model: Runner,
    pairs: Pairs,
    nodes: str | Sequence[str] | Features,
    *,
    steps: int = 10,
    rule: str = "midpoint",
    mode: str = "inputs",
    direction: str = "denoise",
    positions: Positions = "each",
    units: str | Sequence[int] | None = None,
    normalise: bool = False,
    batch: int = 32,
    progress: bool = True,
) -> Grid:
    """Which nodes would change the answer, by gradients along the whole way to the source run?

    `<mean dm/da on the way, a(source) - a(base)>`. With `mode="inputs"` the embeddings move from the base to the source and all else
    follows: `steps` backwards serve every node, and `steps=1` is known as mid-AtP. With `mode="activations"` each site moves
    alone, all its rows together, and its shares add up to the exact effect of patching the whole site.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        nodes: Site names and patterns, `blocks.*.attn.z`; nodes of `row head d_head` sites are heads. Or `act.Features` of a site.
        steps: Points on the way.
        rule: `midpoint` (error falls with steps squared), `left` (the published sums, which begin at the base run) or `gauss`.
        mode: `inputs` or `activations`; the latter costs `steps` backwards per site.
        direction: `denoise` patches clean values into the corrupted run, `noise` the reverse. Signs are not flipped.
        positions: `"each"` row is a node, `"all"` rows of a site together, the pairs' named `"places"`, or position numbers.
        units: `"all"` or numbers: each unit of the last axis (a neuron of `mlp.post`) is a node.
        normalise: Give shares of M+ - M-.
        batch: Pairs in one forward.
        progress: Show a bar where there are many backwards.

    Returns:
        A grid `layer position` (and `head`, or the units' axis), the mean over pairs, with `per_example` and masks.
        `diagnostics["completeness_error"]`: by how much the shares of the embeddings (of each site, the worst, in
        `activations`) miss the exact change, summed over pairs, as a share of |M+ - M-|. A warning is given above 5 %.

    Raises:
        UnknownSite: No such site.
        InputError: Bad options, or a dtype in which gradients lie.
        UnknownName: No such rule or mode.
        MissingSite: The model's embeddings cannot be set.

    Source:
        Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, arXiv:1703.01365, section 3; Hanna et al. 2024, Have Faith
        in Faithfulness, arXiv:2403.17806 (paths between two inputs).

    Differs:
        The default rule is the midpoint: at equal cost its error is a small part of that of left sums.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> grid = integrated_patching(model, pairs, "blocks.*.mlp.out", steps=50)
        >>> grid.diagnostics["completeness_error"] < 0.05
        True
    """
    if mode not in MODES:
        raise unknown("mode of integrated patching", mode, MODES)
    moved = entries(model, pairs.spaces) if mode == "inputs" else []
    alone = 1 if moved else len(family(model, nodes, units).sites)
    count = steps * alone * -(-len(pairs) // max(batch, 1))
    title = f"Integrated patching ({mode}, {steps} {rule} step{'s' if steps != 1 else ''})"
    options = {"direction": direction, "positions": positions, "units": units, "normalise": normalise, "batch": batch}
    with progress_bar(progress and count >= LONG, "integrating", count, "backwards") as advance:
        way = Way(points(steps, rule), moved, advance)
        made = linear(model, pairs, nodes, way.multipliers, title=title, also=moved, notes=way.notes, **options)
    if way.error > TOLERATED:
        warnings.warn(
            f"The shares miss {way.error:.1%} of the metric's change (completeness error). More steps lower it: steps={4 * steps}.",
            UserWarning,
            stacklevel=2,
        )
    return made
