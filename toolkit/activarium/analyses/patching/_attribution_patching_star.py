"""Attribution patching with the softmax taken exactly for queries and keys (AtP*), and GradDrop against cancellation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.linear import arranged, products, scored
from activarium.analyses.patching.nodes import Columns, Family, Positions, family
from activarium.analyses.patching.sides import Sides
from activarium.analyses.patching.softmax_change import key_change, query_change
from activarium.attention import scores_of
from activarium.errors import InputError, MissingSite
from activarium.features import Features
from activarium.pairs import Pairs
from activarium.protocols import Runner
from activarium.results import Grid

QUERIES, KEYS = ("q", "q_rot"), ("k", "k_rot")
WRITES = ("attn.out", "cross.out", "mlp.out")


def attribution_patching_star(
    model: Runner,
    pairs: Pairs,
    nodes: str | Sequence[str] | Features,
    *,
    graddrop: bool = False,
    direction: str = "denoise",
    positions: Positions = "each",
    units: str | Sequence[int] | None = None,
    normalise: bool = False,
    batch: int = 32,
    progress: bool = True,
) -> Grid:
    """Which nodes would change the answer, where attention is saturated and effects cancel?

    Attribution patching linearises the softmax, whose gradient is nearly zero where it is saturated. Here a query or key node is
    scored by its true change of the pattern times the gradient at the pattern; all other nodes as in `attribution_patching`.
    With `graddrop` the backward is done once per block with that block's writes closed, so that a direct and an indirect effect
    that cancel are both seen.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        nodes: Site names and patterns, `blocks.*.attn.q`; keys and values that heads share are one node for their group.
        graddrop: Give the mean size over dropped blocks, `sum_l |I_l| / (L - 1)` per pair: unsigned, to be compared with |effects|.
        direction: `denoise` patches clean values into the corrupted run, `noise` the reverse. Signs are not flipped.
        positions: `"each"` row is a node, `"all"` rows of a site together, the pairs' named `"places"`, or position numbers.
        units: `"all"` or numbers: each unit of the last axis (a neuron of `mlp.post`) is a node.
        normalise: Give shares of M+ - M-.
        batch: Pairs in one forward.
        progress: Show a bar when there are many batches.

    Returns:
        A grid `layer position` (and `head`, or the units' axis), the mean over pairs, with `per_example` and masks; `diagnostics` say
        whether it is `unsigned`. With `"all"` positions the rows' scores are added, each as if it were patched alone. Where one norm
        spans the queries of all heads, a head of `attn.q` is scored as its `attn.q_rot`: behind that norm.

    Raises:
        UnknownSite: No such site.
        InputError: Bad options, a dtype in which gradients lie, or `graddrop` of a model with one block.
        MissingSite: Queries or keys of an attention whose scores are not known.

    Source:
        Kramár et al. 2024, AtP*: An efficient and scalable method for localizing LLM behaviour to components, arXiv:2403.00745,
        sections 3.1 (queries and keys) and 3.2 (GradDrop).

    Differs:
        All keys of a head are scored from one softmax by a closed form, exactly, instead of one changed softmax per key.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> attribution_patching_star(model, pairs, "blocks.*.attn.k").values.shape  # two key heads, shared by four query heads
        (2, 5, 2)
    """
    softmax = _softmax_sites(model, family(model, nodes, units).sites)
    closed = _writes(model, pairs) if graddrop else []
    if graddrop and len(closed) < 2:
        raise InputError(
            f"{model.name} has {len(closed)} block: GradDrop averages over dropped blocks and needs two. Leave out graddrop=True."
        )

    def scores(model: Any, sides: Sides, family: Family, columns: Columns, source: Any) -> tuple[np.ndarray, Any]:
        sites = [*family.sites, *softmax, *(s for writes in closed for s in writes)]
        base = sides.run(model, sides.base, sites, grad=True)

        def one(gradient: Any) -> np.ndarray:
            return arranged(family, columns, {s: _score(family, s, gradient, base, source) for s in family.sites})

        if not graddrop:
            return one(sides.gradient(base)), base
        sizes = [np.abs(one(sides.gradient(base, closed=writes))) for writes in closed]
        return np.sum(sizes, axis=0) / (len(closed) - 1), base

    return scored(
        model,
        pairs,
        nodes,
        scores,
        title="AtP* with GradDrop" if graddrop else "AtP*",
        direction=direction,
        positions=positions,
        units=units,
        normalise=normalise,
        batch=batch,
        progress=progress,
        also=[s for s in softmax if not s.endswith(".pattern")],
        unsigned=graddrop,
    )


def _softmax_sites(model: Any, sites: Sequence[str]) -> list[str]:
    """What must be read where queries or keys are nodes: what enters the scores, and the pattern they make."""
    stems = [n.rpartition(".")[0] for n in sites if n.rpartition(".")[2] in (*QUERIES, *KEYS)]
    wanted = [f"{stem}.{leaf}" for stem in dict.fromkeys(stems) for leaf in ("q_rot", "k_rot", "pattern")]
    missing = next((s for s in wanted if s not in model.sites), None)
    if missing:
        raise MissingSite(f"{missing} is not known in {model.name}, so its softmax cannot be taken again. Use attribution_patching.")
    return wanted


def _writes(model: Any, pairs: Pairs) -> list[list[str]]:
    """What each block of the stacks that take part adds to the stream."""
    blocks: dict[str, list[str]] = {}
    for name in model.sites:
        block, _, leaf = name.rpartition("blocks.")
        number, _, short = leaf.partition(".")
        if number.isdigit() and short in WRITES and block.rstrip(".") in (*pairs.spaces, ""):
            blocks.setdefault(f"{block}{number}", []).append(name)
    return list(blocks.values())


def _score(family: Family, site: str, gradient: Any, base: Any, source: Any) -> Tensor:
    """Scores `row node` of one site."""
    stem, _, leaf = site.rpartition(".")
    if leaf not in (*QUERIES, *KEYS):
        return products(family, site, gradient[site].tensor, base, source)
    spec, made = base.attention[stem], []
    queries, keys, other_queries, other_keys = (r[f"{stem}.{n}"] for r in (base, source) for n in ("q_rot", "k_rot"))
    for e, slope in enumerate(gradient[f"{stem}.pattern"].batches()):
        q, k = _rows(queries, e), _rows(keys, e)
        new = (_rows(other_queries, e), k) if leaf in QUERIES else (q, _rows(other_keys, e))
        # In float64: the closed form is exact, and a score differs from another by less than its size.
        before, after = (scores_of(*pair, spec, dtype=torch.float64, example=e) for pair in ((q, k), new))
        change = query_change if leaf in QUERIES else key_change
        heads = change(before, after, slope.detach().double(), spec.sinks)
        made.append(heads.unflatten(0, (family.size, -1)).sum(1).T)  # query heads that share a key are patched together
    return torch.cat(made)


def _rows(values: Any, example: int) -> Tensor:
    """The rows of one example, out of the graph."""
    return values.tensor[values.index.span(values.index.examples[example])].detach()
