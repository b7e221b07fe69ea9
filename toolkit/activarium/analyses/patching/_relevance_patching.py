"""Relevance patching (RelP): attribution patching whose gradient follows relevance rules."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from activarium.analyses.patching._integrated_patching import integrated_patching
from activarium.analyses.patching.best import best
from activarium.analyses.patching.linear import linear
from activarium.analyses.patching.nodes import Positions
from activarium.analyses.patching.sides import Sides
from activarium.features import Features
from activarium.pairs import Pairs
from activarium.protocols import Runner
from activarium.results import Grid
from activarium.rules import Rules, as_rules

CANDIDATES = ("relp", "relp-ah", "ln", "ln-id")
ACTED_ON = ("norms", "qk_norms", "activations", "gates", "attention")


def relevance_patching(
    model: Runner,
    pairs: Pairs,
    nodes: str | Sequence[str] | Features,
    *,
    rules: Rules | str = "relp",
    direction: str = "denoise",
    positions: Positions = "each",
    units: str | Sequence[int] | None = None,
    normalise: bool = False,
    batch: int = 32,
    progress: bool = True,
    sample: int = 200,
    seed: int = 0,
) -> Grid:
    """Which nodes would change the answer, by a gradient that norm scales do not bend?

    `<c, a(source) - a(base)>`, where c is the gradient at the base run in a graph whose norm scales (and, by rule, activation ratios,
    gates, attention patterns) are constants; all values stay bit for bit. The cost is that of `attribution_patching`. With
    `relp-ah` it equals exact patching inside the model in which all those are frozen. No set of rules is best everywhere: hold the
    result against `against_exact`.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        nodes: Site names and patterns, `blocks.*.mlp.out`; nodes of `row head d_head` sites are heads. Or `act.Features` of a site.
        rules: `relp` (the paper's default), `relp-ah` (attention patterns constant too), `ln` (norms alone), `ln-id` (and activations),
            `attnlrp`, or your own `Rules`. With all off it is attribution patching. `auto` tries the first four and mid-AtP (one
            gradient half way between the inputs), and gives the one that is nearest to exact effects on a sample of cells.
        direction: `denoise` patches clean values into the corrupted run, `noise` the reverse. Signs are not flipped.
        positions: `"each"` row is a node, `"all"` rows of a site together, the pairs' named `"places"`, or position numbers.
        units: `"all"` or numbers: each unit of the last axis (a neuron of `mlp.post`) is a node.
        normalise: Give shares of M+ - M-.
        batch: Pairs in one forward.
        progress: Show a bar when there are many batches.
        sample: With `auto`: how many cells are run exactly.
        seed: With `auto`: of the sample and the bootstrap.

    Returns:
        A grid `layer position` (and `head`, or the units' axis), the mean over pairs of the change of the metric, with
        `per_example` and masks. `diagnostics["rules"]` counts the modules each rule acted on and says what it could not be bound to.
        With `auto` the grid brings its `check`, and `diagnostics["compared"]` holds the correlation of every candidate; the winner was
        chosen on the cells it is checked on, so its own figure is a little flattered where candidates are close.

    Raises:
        UnknownSite: No such site.
        UnknownName: No such set of rules.
        InputError: Bad options, or a dtype in which gradients lie.

    Source:
        Rezaei Jafari et al. 2025, RelP: Faithful and Efficient Circuit Discovery via Relevance Patching, arXiv:2508.21258; rules of
        Ali et al. 2022, arXiv:2202.07304, and Achtibat et al. 2024, AttnLRP, arXiv:2402.05602.

    Differs:
        Rules are bound to the live model for one forward and counted; ratios are taken in closed form, without a small number
        added to a denominator. LRP-type rules are patented in some places.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> grid = relevance_patching(model, pairs, "blocks.*.mlp.out", rules="ln")
        >>> grid.diagnostics["rules"]["norms"]  # two in each of three blocks, and the last one
        7
    """
    options = {"direction": direction, "positions": positions, "units": units, "normalise": normalise, "batch": batch}
    if rules == "auto":
        grids = _candidates(model, pairs, nodes, {**options, "progress": progress})
        return best(grids, model, pairs, sample=sample, seed=seed, progress=progress, nodes=nodes if isinstance(nodes, Features) else None)
    chosen, report = as_rules(rules), {}

    def multipliers(model: Any, sides: Sides, sites: Sequence[str], source: Any) -> tuple[Mapping[str, Tensor], Any]:
        base = sides.run(model, sides.base, sites, grad=True, rules=chosen)
        report.update(base.provenance["rules"])
        gradient = sides.gradient(base)
        return {s: gradient[s].tensor for s in sites}, base

    title = f"Relevance patching ({chosen.name})"
    made = linear(model, pairs, nodes, multipliers, title=title, progress=progress, notes=lambda: {"rules": report}, **options)
    if chosen != Rules() and not any(report[rule] for rule in ACTED_ON):
        words = f"None of the rules {chosen.name!r} found anything to act on in {model.name}: these are the scores of attribution_patching."
        warnings.warn(words, UserWarning, stacklevel=2)
    return made


def _candidates(model: Any, pairs: Pairs, nodes: str | Sequence[str] | Features, options: dict[str, Any]) -> dict[str, Grid]:
    """What `auto` chooses among: one forward and one backward each."""
    found = {name: relevance_patching(model, pairs, nodes, rules=name, **options) for name in CANDIDATES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one step is known to be incomplete; the check decides
        return found | {"mid-AtP": integrated_patching(model, pairs, nodes, steps=1, **options)}
