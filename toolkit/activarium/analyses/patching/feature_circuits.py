"""Nodes and edges among features: which effects are large, and what of them is direct."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activarium.analyses.patching.feature_runs import DirectEffects, ablated
from activarium.analyses.patching.features import Coder, Grouping, Held, grouping
from activarium.analyses.patching.sides import Sides, Totals, wide


@dataclass
class Batch:
    """One batch of pairs.

    Attributes:
        sides: The pairs.
        held: Its sites, in the order of `coders`.
        groups: Per site, which rows make a node together.
        totals: The metric of both runs.
    """

    sides: Sides
    held: list[Held]
    groups: list[Grouping]
    totals: Totals


def batched(model: Any, sides: Sides, held: list[Held], totals: Totals, aggregation: str) -> Batch:
    """A batch with its groups of rows."""
    groups = [grouping(np.asarray(sides.pairs.clean.rows_of(model.sites[h.coder.site].rows)), aggregation) for h in held]
    return Batch(sides, held, groups, totals)


@dataclass(frozen=True)
class Node:
    """A feature or an error, at one position or at all together.

    Attributes:
        place: Number of its site.
        group: Number of its position; 0 where positions are added up.
        feature: Number of the feature; that of the error comes after all features.
    """

    place: int
    group: int
    feature: int


def total_effects(batches: Sequence[Batch], count: int) -> list[np.ndarray]:
    """Effects `group node` of every site, mean over pairs."""
    sums = [[g.sums(h.through(h.slope)) for h, g in zip(b.held, b.groups, strict=True)] for b in batches]
    return [np.sum(parts, axis=0) / count for parts in zip(*sums, strict=True)]


def chosen(effects: Sequence[np.ndarray], threshold: float, order: Sequence[int]) -> list[Node]:
    """Nodes with an effect of this size or more, site after site."""
    return [
        Node(p, int(g), int(f))
        for p in order
        for g, f in zip(*np.nonzero((np.abs(effects[p]) >= threshold) & (effects[p] != 0)), strict=True)
    ]


def direct_edges(
    model: Any, batches: Sequence[Batch], nodes: Sequence[Node], order: Sequence[int], count: int, advance: Callable[[int], Any]
) -> dict[tuple[int, int], float]:
    """Direct effects between nodes, and on the metric (node number `len(nodes)`), mean over pairs.

    Args:
        model: The runner.
        batches: All pairs.
        nodes: Which nodes.
        order: Numbers of the sites in the order of the forward.
        count: How many pairs there are.
        advance: Called with 1 for each target.
    """
    found: dict[tuple[int, int], float] = {}
    rank = {place: n for n, place in enumerate(order)}
    for batch in batches:
        sites = [h.coder.site for h in batch.held]
        run = DirectEffects(model, batch.sides, sites)
        for at in range(len(nodes) + 1):
            before = order if at == len(nodes) else order[: rank[nodes[at].place]]
            target = run.metric if at == len(nodes) else _target(batch, nodes[at], run)
            slopes = run.of(target, [sites[p] for p in before])
            sums = {p: batch.groups[p].sums(batch.held[p].through(wide(slopes[sites[p]]))) for p in before}
            for n, node in enumerate(nodes):
                if node.place in sums:
                    found[n, at] = found.get((n, at), 0.0) + float(sums[node.place][node.group, node.feature]) / count
            advance(1)
    return found


def _target(batch: Batch, node: Node, run: DirectEffects) -> torch.Tensor:
    """The node's value times the metric's gradient at it, held constant."""
    held, group = batch.held[node.place], batch.groups[node.place]
    with torch.enable_grad():
        codes, error = held.coder.parts(run.entering[held.coder.site])
    rows = torch.nonzero(group.index == node.group)[:, 0].to(codes.device)
    if node.feature == codes.shape[1]:
        return (error * held.slope)[rows].sum()
    slope = held.coder.pull(held.codes, held.slope)[:, node.feature]
    return (wide(codes[:, node.feature]) * slope)[rows].sum()


ERRORS = ("keep", "drop", "scored")


def faithfulness(model: Any, batches: Sequence[Batch], nodes: Sequence[Node], coders: Sequence[Coder]) -> tuple[np.ndarray, float, float]:
    """`errors (circuit, complement)` faithfulness with all other nodes at their mean, and the metric with none and with all of them.

    Errors are all kept, all at their mean, or kept where they are nodes of the circuit. What is no feature of a site is not touched.
    """
    tables = [_means(batches, p) for p in range(len(coders))]
    lists: dict[Any, list[np.ndarray]] = {}
    for batch in batches:
        masks = [_mask(batch, p, [n for n in nodes if n.place == p]) for p in range(len(coders))]
        means = {c: (f[g.index], e[g.index]) for c, (f, e), g in zip(coders, tables, batch.groups, strict=True)}
        nothing = {c: torch.zeros_like(m) for c, m in zip(coders, masks, strict=True)}
        lists.setdefault("empty", []).append(ablated(model, batch.sides, nothing, means))
        for errors in ERRORS:
            for side in ("circuit", "complement"):
                kept = {c: _with_errors(m if side == "circuit" else ~m, errors) for c, m in zip(coders, masks, strict=True)}
                lists.setdefault((errors, side), []).append(ablated(model, batch.sides, kept, means))
    found = {name: float(np.concatenate(parts).mean()) for name, parts in lists.items()}
    whole = float(np.concatenate([b.totals.base for b in batches]).mean())
    shares = np.array([[found[e, s] - found["empty"] for s in ("circuit", "complement")] for e in ERRORS])
    return shares / (whole - found["empty"]) if whole != found["empty"] else shares * np.nan, found["empty"], whole


def _with_errors(mask: torch.Tensor, errors: str) -> torch.Tensor:
    mask = mask.clone()
    if errors != "scored":
        mask[:, -1] = errors == "keep"
    return mask


def _mask(batch: Batch, place: int, nodes: Sequence[Node]) -> torch.Tensor:
    held, group = batch.held[place], batch.groups[place]
    table = torch.zeros(group.count, held.codes.shape[1] + 1, dtype=torch.bool)
    for node in nodes:
        table[node.group, node.feature] = True
    return table[group.index].to(held.codes.device)


def _means(batches: Sequence[Batch], place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean features and mean error `group …` over the rows of both runs."""
    sums: list[Any] = [0.0, 0.0]
    rows: Any = 0.0
    for held, group in ((b.held[place], b.groups[place]) for b in batches):
        for values in (held.base, held.source):
            with torch.no_grad():
                parts = [wide(part) for part in held.coder.parts(values)]
            index = group.index.to(values.device)
            sums = [
                total + part.new_zeros(group.count, *part.shape[1:]).index_add(0, index, part)
                for total, part in zip(sums, parts, strict=True)
            ]
            rows = rows + torch.bincount(index, minlength=group.count)
    features, error = (total / rows.reshape(-1, *[1] * (total.ndim - 1)) for total in sums)
    return features, error


def inactive(batches: Sequence[Batch]) -> Mapping[str, float]:
    """Features that are off in the base run and on in the source run: how many (row by row), and their share of all effects by size."""
    number, size, whole = 0, 0.0, 0.0
    for held in (h for b in batches for h in b.held):
        effects = held.through(held.slope)[:, :-1].abs()
        off = (held.codes == 0) & (held.change != 0)
        number, size, whole = number + int(off.sum()), size + float(effects[off].sum()), whole + float(effects.sum())
    return {"switched_on": number, "switched_on_share": size / whole if whole else 0.0}
