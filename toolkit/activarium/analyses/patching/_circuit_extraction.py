"""Circuit extraction: the few edges that make ways from the embedding to the logits."""

from __future__ import annotations

from activarium.analyses.patching.circuits import prune, select
from activarium.analyses.patching.edge_graphs import part_of, scores_of
from activarium.analyses.patching.wiring import wiring
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.results import Graph


def circuit_extraction(model: Runner, graph: Graph, edges: int = 50, *, select_by: str = "greedy") -> Graph:
    """Which few edges make ways from the embedding to the logits?

    Nothing is run: edges are chosen by their scores. Whether they carry the answer is a question for `circuit_faithfulness`, which takes
    the circuit as it takes the whole graph: with `shares=[1]` exactly its edges are run.

    Args:
        model: The model that the graph was made for.
        graph: Scores of edges, from `edge_attribution`.
        edges: How many edges are chosen; those on no way from the embedding to the logits are then cut off, so fewer may be left.
        select_by: `greedy` takes the largest edges by size that lead into what was taken already, from the logits down; `top` the largest of all.

    Returns:
        The part of the graph that is the circuit, with the scores it had. An edge from a head's input to the head is no edge of its own and
        is not counted in `diagnostics["circuit_edges"]`.

    Raises:
        InputError: The graph is of another model, no edge is asked for, or another `select_by`.

    Source:
        Hanna et al. 2024, Have Faith in Faithfulness, arXiv:2403.17806.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> circuit = circuit_extraction(model, act.analyses.edge_attribution(model, pairs), 20)
        >>> circuit.diagnostics["circuit_edges"] <= 20
        True
    """
    if edges < 1:
        raise InputError(f"edges={edges}: a circuit has at least one edge.")
    wires = wiring(model)
    chosen = prune(wires, select(wires, scores_of(graph, wires), edges, select_by))
    notes = {**graph.diagnostics, "select_by": select_by, "circuit_edges": int(chosen.sum())}
    return part_of(graph, wires, chosen, title=f"Circuit of {int(chosen.sum())} edges by {graph.title}", diagnostics=notes)
