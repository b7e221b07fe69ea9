"""Edge attribution (EAP, EAP-IG and RelP): which connection between two components carries the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from activarium.analyses.patching.edge_graphs import graph
from activarium.analyses.patching.edge_points import METHODS, Method, points
from activarium.analyses.patching.edge_scores import check_sums, edge_scores, sum_rule_error, sums_at
from activarium.analyses.patching.reader_inputs import Readers
from activarium.analyses.patching.readouts import Readouts
from activarium.analyses.patching.sides import Sides, Totals, check_batch, check_gradients, check_resolution, joined, measured
from activarium.analyses.patching.wiring import Wiring, wiring
from activarium.analyses.patching.writers import Differences, Writers
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Graph
from activarium.rules import Rules, as_rules

LONG = 50  # runs from which a progress bar is shown


def edge_attribution(
    model: Runner,
    pairs: Pairs,
    *,
    method: str = "eap",
    rules: Rules | str = "relp",
    direction: str = "denoise",
    steps: int = 5,
    rule: str = "midpoint",
    check: bool = True,
    batch: int = 32,
    memory: int = 1 << 30,
    progress: bool = True,
) -> Graph:
    """Which connections would change the answer, by the gradient where they lead to?

    `<a(source) - a(base), dm/d input>` for every writer `a` (the embedding, heads, MLPs) and every input that reads after it (queries,
    keys and values of heads, MLPs, logits), the gradient at the reader's own input, before its norm. All edges come from one backward:
    gradients at queries, keys and values are carried through weights and norm, so no input is split. Memory: the values and gradients
    that were read, and for one block at a time `(3 heads + 1) rows d_model`.

    Args:
        model: A loaded model with a single stack whose stream is a sum of writers.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        method: `eap` takes the gradient at the base run. `eap-ig-inputs` takes its mean while the embedding moves from base to source.
            `eap-ig-activations` moves the writers themselves, the heads of a block together: `steps` runs for each. `relp` takes
            relevance coefficients at the base run in the place of gradients.
        rules: Relevance rules, or the name of a set of them, for `relp`.
        direction: `denoise` puts clean values into the corrupted run, `noise` the reverse. Signs are not flipped.
        steps: Points on the way, for the two `eap-ig` methods.
        rule: `midpoint`, or `left` with the base run itself as the first point.
        check: Refuse edges that do not add up to the scores of their nodes.
        batch: Pairs in one forward.
        memory: Bytes that differences of writers may take before they are made again for each reader.
        progress: Show a bar when many runs are made.

    Returns:
        A graph of all edges, mean over pairs. Nodes are `embed`, `blocks.3.attn.head.2`, its inputs `blocks.3.attn.q.2` (and `k`, `v`:
        one for each key/value head), `blocks.3.mlp`, `logits`; `weights` are the sums of each node's edges. An edge from a head's input
        to the head has no score of its own and repeats the largest edge into that input. `columns["readout"]` says which token the change of
        each writer pushes up and which down, directly, where the answer is read. `diagnostics["sum_rule_error"]` is the largest
        gap between the edges of a node and the node's own score (attribution patching), as a share of the largest.

    Raises:
        InputError: The stream is no sum of writers (a norm follows the sum, as in BERT), there are several stacks, or bad options.
        MissingSite: The model does not show the inputs of its heads.
        CertificateError: The edges do not add up.

    Source:
        Syed et al. 2023, Attribution Patching Outperforms Automated Circuit Discovery, arXiv:2310.10348; Hanna et al. 2024, Have Faith
        in Faithfulness, arXiv:2403.17806 (integrated gradients); Rezaei Jafari et al. 2025, RelP, arXiv:2508.21258.

    Differs:
        Keys and values of grouped attention are one reader for each key/value head. Where a norm follows attention (Gemma-2), a
        head's part of the sum is taken with that norm's scale in each run, so that parts add up in both. In `eap-ig-activations`
        the gradients on the way of a writer count for that writer's edges alone.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> graph = edge_attribution(model, pairs)
        >>> graph.diagnostics["edges"], graph.diagnostics["sum_rule_error"] < 1e-4
        (262, True)
    """
    how = Method(method, steps, rule, as_rules(rules) if method == "relp" else None)
    check_gradients(model)
    check_batch(batch)
    wires, sides = wiring(model), Sides(pairs, direction)
    scores, error, totals, readouts = np.zeros(wires.edges.shape), 0.0, [], Readouts(model, wires)
    count = how.runs(wires) * -(-len(pairs) // batch)
    with progress_bar(progress and count >= LONG, "edges", count, "runs") as advance:
        for chunk in sides.chunks(batch):
            found, gap, total = _chunk(model, chunk, wires, how, memory, readouts, advance)
            scores, error, totals = scores + found, max(error, gap), [*totals, total]
    if check:
        check_sums(error, model)
    clean, corrupt = (getattr(joined(totals), side) for side in (("source", "base") if direction == "denoise" else ("base", "source")))
    notes = {
        "direction": direction,
        **how.notes(),
        "metric": pairs.metric.name,
        "clean": float(clean.mean()),
        "corrupt": float(corrupt.mean()),
        "pairs": len(pairs),
        "edges": int(wires.edges.sum()),
        "sum_rule_error": error,
        "forwards": sides.counts.forwards,
        "backwards": sides.counts.backwards,
    }
    return graph(
        wires, scores / len(pairs), readouts.words(), title=f"{METHODS[method]}: {direction}", unit=pairs.metric.unit, diagnostics=notes
    )


def _chunk(
    model: Any, sides: Sides, wires: Wiring, how: Method, memory: int, readouts: Readouts, advance: Callable[[int], Any]
) -> tuple[np.ndarray, float, Totals]:
    """Scores summed over a few pairs, how far they are from adding up, and the metrics of both runs."""
    readers, writers = Readers(model, wires, frozen=how.rules is not None and how.rules.norms), Writers(model, wires)
    sites = [*dict.fromkeys([*writers.sites, *readers.sites])]
    base, source = sides.run(model, sides.base, sites), sides.run(model, sides.source, sites)
    totals = Totals(measured(base), measured(source))
    check_resolution(model, base, totals)
    writers.learn(base)
    differences = Differences(writers, base, source, memory)
    readouts.add(sides, readers, differences)
    scores, out_of, into = np.zeros(wires.edges.shape), np.zeros(len(wires.writers)), np.zeros(len(wires.readers))
    for recording, weight, only in points(model, sides, readers, how, base, source):
        gradient = sides.gradient(recording)
        scores += weight * edge_scores(readers, differences, recording, gradient, only)
        leaving, entering = sums_at(readers, differences, recording, gradient)
        counted = slice(None) if only is None else only
        out_of[counted] += weight * leaving[counted]
        into += weight * entering
        advance(1)
    error = sum_rule_error(scores.sum(0), out_of)
    if how.name != "eap-ig-activations":  # there a reader's edges belong to gradients of different runs
        error = max(error, sum_rule_error(scores.sum(1), into))
    return scores, error, totals
