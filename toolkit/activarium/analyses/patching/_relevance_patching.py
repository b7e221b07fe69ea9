"""Relevance patching (RelP): attribution patching whose gradient follows relevance rules."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from activarium.analyses.patching.linear import linear
from activarium.analyses.patching.nodes import Positions
from activarium.analyses.patching.sides import Sides
from activarium.pairs import Pairs
from activarium.protocols import Runner
from activarium.results import Grid
from activarium.rules import Rules, as_rules

ACTED_ON = ("norms", "qk_norms", "activations", "gates", "attention")


def relevance_patching(
    model: Runner,
    pairs: Pairs,
    nodes: str | Sequence[str],
    *,
    rules: Rules | str = "relp",
    direction: str = "denoise",
    positions: Positions = "each",
    units: str | Sequence[int] | None = None,
    normalise: bool = False,
    batch: int = 32,
) -> Grid:
    """Which nodes would change the answer, by a gradient that norm scales do not bend?

    `<c, a(source) - a(base)>`, where c is the gradient at the base run in a graph whose norm scales (and, by rule, activation ratios,
    gates, attention patterns) are constants; all values stay bit for bit. The cost is that of `attribution_patching`. With
    `relp-ah` it equals exact patching inside the model in which all those are frozen. No set of rules is best everywhere: hold the
    result against `against_exact`.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        nodes: Site names and patterns, `blocks.*.mlp.out`; nodes of `row head d_head` sites are heads.
        rules: `relp` (the paper's default), `relp-ah` (attention patterns constant too), `ln` (norms alone), `ln-id` (and activations),
            `attnlrp`, or your own `act.rules.Rules`. With all off it is attribution patching.
        direction: `denoise` patches clean values into the corrupted run, `noise` the reverse. Signs are not flipped.
        positions: `"each"` row is a node, `"all"` rows of a site together, the pairs' named `"places"`, or position numbers.
        units: `"all"` or numbers: each unit of the last axis (a neuron of `mlp.post`) is a node.
        normalise: Give shares of M+ - M-.
        batch: Pairs in one forward.

    Returns:
        A grid `layer position` (and `head`, or the units' axis), the mean over pairs of the change of the metric, with
        `per_example` and masks. `diagnostics["rules"]` counts the modules each rule acted on and says what it could not be bound to.

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
    chosen, report = as_rules(rules), {}

    def multipliers(model: Any, sides: Sides, sites: Sequence[str], source: Any) -> tuple[Mapping[str, Tensor], Any]:
        base = sides.run(model, sides.base, sites, grad=True, rules=chosen)
        report.update(base.provenance["rules"])
        gradient = sides.gradient(base)
        return {s: gradient[s].tensor for s in sites}, base

    made = linear(
        model,
        pairs,
        nodes,
        multipliers,
        title=f"Relevance patching ({chosen.name})",
        direction=direction,
        positions=positions,
        units=units,
        normalise=normalise,
        batch=batch,
        notes=lambda: {"rules": report},
    )
    if chosen != Rules() and not any(report[rule] for rule in ACTED_ON):
        words = f"None of the rules {chosen.name!r} found anything to act on in {model.name}: these are the scores of attribution_patching."
        warnings.warn(words, UserWarning, stacklevel=2)
    return made
