"""Circuit faithfulness: how much of the answer is left when only a circuit's edges carry it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.patching.circuit_runs import Circuits
from activarium.analyses.patching.circuits import prune, select
from activarium.analyses.patching.edge_graphs import scores_of
from activarium.analyses.patching.sides import Sides, Totals, check_batch
from activarium.analyses.patching.wiring import wiring
from activarium.errors import CertificateError, InputError
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Graph, Series

SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LIMITS = {torch.float64: 1e-5, torch.float32: 1e-3}  # many norms compute in float32 whatever the weights are; 16-bit floats get 1e-1


def circuit_faithfulness(
    model: Runner,
    pairs: Pairs,
    graph: Graph,
    *,
    shares: Sequence[float] = SHARES,
    select_by: str = "top",
    direction: str = "noise",
    batch: int = 16,
    progress: bool = True,
) -> Series:
    """How much of the answer is left when only the edges of a circuit carry it?

    Exact: the base run is made with each query, key, value, MLP and logits input put together from the present values of the writers
    that the circuit connects to it, and the source run's values of all others. 1 is the whole model, 0 the source run; above 1
    and below 0 are possible. Memory: the values of all heads, `layers heads rows d_model`.

    Args:
        model: The model that the graph was made for.
        pairs: Clean and corrupted inputs; other pairs than the graph's make a harder test.
        graph: Scores of edges, from `edge_attribution`; edges that it lacks are in no circuit.
        shares: Sizes of circuits, as shares of the model's edges.
        select_by: `top` takes the edges with the largest scores by size, `greedy` those that lead into what was taken already, from the
            logits down. Edges on no way from the embedding to the logits are cut off; they would change nothing.
        direction: `noise` runs circuits on the clean inputs and takes everything else from the corrupted ones; `denoise` the reverse.
        batch: Pairs in one forward.
        progress: Show a bar.

    Returns:
        A curve over shares of edges. `diagnostics["CPR"]` is the area under it and `diagnostics["CMD"]` the area between it and 1, by
        trapezoids over the shares given; `diagnostics["edges"]` counts each circuit's edges, and `metric` is what it gave.

    Raises:
        InputError: Both runs have the same metric, the graph is of another model, or bad options.
        CertificateError: Without edges a head or MLP does not write what it wrote in the source run: the model has other readers.

    Source:
        Hanna et al. 2024, Have Faith in Faithfulness, arXiv:2403.17806; the two areas have their names from MIB, arXiv:2504.13151.

    Differs:
        Areas are over the shares given here, each edge counted once; they are not meant to be compared with that benchmark's table.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> graph = act.analyses.edge_attribution(model, pairs, direction="noise")
        >>> series = circuit_faithfulness(model, pairs, graph, shares=[0, 0.5, 1], progress=False)
        >>> [round(100 * float(v)) for v in series.curves["faithfulness"][[0, 2]]]  # percent, without edges and with all
        [0, 100]
    """
    wanted = np.asarray(shares, dtype=float)
    if not wanted.size or wanted.min() < 0 or wanted.max() > 1 or (np.diff(wanted) <= 0).any():
        raise InputError(f"shares={list(shares)}: give sizes of circuits from 0 to 1, each larger than the one before.")
    check_batch(batch)
    wires, sides = wiring(model), Sides(pairs, direction)
    scores = scores_of(graph, wires)
    circuits = [prune(wires, select(wires, scores, round(s * wires.edges.sum()), select_by)) for s in wanted]
    metrics, totals = _measure(model, sides, wires, circuits, batch, progress)
    totals.scale(direction)  # refuses where there is nothing to share
    base, source = totals.base.mean(), totals.source.mean()
    faithful = (metrics.mean(1) - source) / (base - source)
    notes = {
        "direction": direction,
        "metric": pairs.metric.name,
        "whole": float(base),
        "empty": float(source),
        "CPR": _area(faithful, wanted),
        "CMD": _area(np.abs(1 - faithful), wanted),
        "pairs": len(pairs),
        "select_by": select_by,
        "edges": np.array([c.sum() for c in circuits]),
        "of_the_metric": metrics.mean(1),
        "forwards": sides.counts.forwards,
    }
    return Series(
        wanted,
        {"faithfulness": faithful},
        "share of edges",
        title=f"Faithfulness of circuits, {direction}",
        unit="share of the whole model's effect",
        diagnostics=notes,
    )


def _area(values: np.ndarray, at: np.ndarray) -> float:
    return float(((values[1:] + values[:-1]) / 2 * np.diff(at)).sum())


def _measure(model: Any, sides: Sides, wires: Any, circuits: Sequence[np.ndarray], batch: int, progress: bool) -> tuple[np.ndarray, Totals]:
    """The metric `circuit pair`, and those of both runs."""
    found, base, source = [], [], []
    with progress_bar(progress, "circuits", len(circuits) * len(sides.pairs), "runs") as advance:
        for chunk in sides.chunks(batch):
            made = Circuits(model, chunk, wires)
            _check_empty(model, made.empty_error())
            base, source = [*base, made.base], [*source, made.source]
            found.append([])
            for circuit in circuits:
                found[-1].append(made.metric(circuit))
                advance(len(chunk.pairs))
    return np.concatenate([np.array(f) for f in found], 1), Totals(np.concatenate(base), np.concatenate(source))


def _check_empty(model: Any, gap: float) -> None:
    if not gap <= LIMITS.get(model.dtype, 1e-1):
        raise CertificateError(
            f"With no edges every head and MLP of {model.name} should write what it wrote in the source run; the largest gap is {gap:.2g} of the "
            "largest value. Something in this model reads the stream that is no head and no MLP, so circuits of it are not exact. Use activation_patching."
        )
