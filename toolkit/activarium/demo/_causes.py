"""scribe and glyph: which activations cause the answer, by exact patching, and whether one backward pass would have told."""

from __future__ import annotations

from typing import Any

import numpy as np

import activarium as act
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]  (a path that is found at run time)
from activarium.demo._tour import SEED, Tour, heard
from activarium.results import Graph, Grid, Overlay, Series

PAIRS, PICTURES = 32, 4  # sentences that are looked at, and as many fresh ones; scenes
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of all edges
ENOUGH = 0.9  # of the whole model's effect: the circuit that is drawn


def causes(tour: Tour) -> None:
    """Both models: patch exactly, hold relevance patching against it, draw a circuit and run it."""
    tour.console.rule("[bold]causes")
    _sentences(tour, tour.models["scribe"])
    _scenes(tour, tour.models["glyph"])


def _sentences(tour: Tour, model: Any) -> None:
    both = act.pairs.ioi(model, 2 * PAIRS, seed=SEED)
    known, fresh = both.select(range(PAIRS)), both.select(range(PAIRS, 2 * PAIRS))
    exact = act.analyses.activation_patching(model, known, "blocks.*.resid_pre", positions="places", normalise=True, progress=False)
    approximate = act.analyses.relevance_patching(model, known, "blocks.*.resid_pre")
    checked = act.against_exact(approximate, model, known, progress=False)
    graph = act.analyses.edge_attribution(model, known, method="relp", direction="noise")
    faithful = act.analyses.circuit_faithfulness(model, fresh, graph, shares=SHARES, progress=False)
    tour.say("scribe · which word carries the answer, and where to", _moves(exact))
    tour.parts["scribe · exact patching of the residual stream, at the words that matter"] = exact
    tour.say("scribe · would one backward pass have told?", [_agreement(checked)])
    tour.parts["scribe · relevance patching of the residual stream"] = checked
    chosen = int(np.argmax(faithful.curves["faithfulness"] >= ENOUGH))  # the whole model gives 1, so there is one
    tour.say("scribe · a circuit for the receiver's name", _circuit(faithful, chosen))
    tour.parts["scribe · the circuit, and what a lower threshold adds"] = act.widgets.CircuitGraph(graph, threshold=_size(graph, chosen))
    tour.parts["scribe · what is left of the answer when only a circuit carries it"] = faithful


def _scenes(tour: Tour, model: Any) -> None:
    drawn = [scenes.scene(scenes.TEST_SEED, i) for i in range(PICTURES)]
    pairs = act.pairs.images(model, [scene.image for scene in drawn], "blur", mask=[scene.mask for scene in drawn])
    nodes, methods = ("blocks.*.resid_pre", "blocks.*.mlp.out"), ("AtP", "relp", "IG, 5 steps")
    report, said = heard(lambda: act.analyses.methods_against_exact(model, pairs, nodes, methods=methods, progress=False))
    lead = f"{PICTURES} scenes, the shape blurred in the corrupted ones; every cell was run."
    tour.say("glyph · would one backward pass have told?", [lead, *report.words, *_relied_on(report["pearson_without_zeros"]), *said])
    tour.keep("glyph · how near approximations come to exact patching", report, "pearson_without_zeros")
    exact, relp = report[nodes[0]], act.analyses.relevance_patching(model, pairs, nodes[0])
    tour.keep("glyph · exact patching of the residual stream", report, nodes[0])
    picture = act.widgets.ImageOverlay.of(_overlay({"exact": exact, "RelP": relp}, drawn[0]))
    picture.shown = [0, len(exact.values)]
    tour.parts["glyph · what each patch of the first scene causes, exactly and by relevance"] = picture


def _moves(exact: Grid) -> list[str]:
    """Where the largest share of the answer lies before the first block and before the last."""
    places, layers = exact.label("position"), exact.label("layer")
    first, last = (exact.values[i] for i in (0, -1))
    fall = int(np.diff(exact.values[:, first.argmax()]).argmin())
    return [
        f"{exact.diagnostics['pairs']} pairs: the giver's second name becomes the other name, and the logit difference goes from "
        f"{exact.diagnostics['clean']:.1f} to {exact.diagnostics['corrupt']:.1f}.",
        f"Restoring one row at {layers[0]} brings back {first.max():.0%} of it at {places[first.argmax()]}; at {layers[-1]} the most is "
        f"{last.max():.0%}, at {places[last.argmax()]}.",
        f"{places[first.argmax()]} loses most between {layers[fall]} and {layers[fall + 1]}: from {exact.values[fall, first.argmax()]:.0%} "
        f"to {exact.values[fall + 1, first.argmax()]:.0%}.",
        f"{int(exact.masks['known_zero'].sum())} of {exact.values.size} cells are zero by the model's structure and were not run.",
    ]


def _agreement(checked: Grid) -> str:
    found = checked.check.diagnostics  # type: ignore[union-attr]
    low, high = found["interval"]
    words = [
        f"Relevance patching against exact on {found['sample']} cells: Pearson {found['pearson']:.3f} (95 % interval {low:.3f} to {high:.3f}), "
        f"{found['pearson_without_zeros']:.3f} without the cells known to be zero.",
        *found["doubts"],
    ]
    return " ".join(words)


def _circuit(faithful: Series, chosen: int) -> list[str]:
    edges, left = faithful.diagnostics["edges"], faithful.curves["faithfulness"]
    smaller = ""
    if chosen:
        smaller = f"; of the next smaller share tried, {SHARES[chosen - 1]:.0%}, {edges[chosen - 1]} edges lead anywhere and keep {left[chosen - 1]:.0%}"
    return [
        f"{edges[chosen]} of {edges[-1]} edges, all others as in the corrupted sentence, keep {left[chosen]:.0%} of the answer on "
        f"{faithful.diagnostics['pairs']} fresh sentences{smaller}.",
        "The edges were scored by relevance; the circuits were run. The drawing adds the step from a head's query, key or value to the head.",
    ]


def _size(graph: Graph, chosen: int) -> float:
    """The score of the last edge that this share takes in. Edges from a head's own input to it are no part of the count."""
    inside = np.isin(graph.columns["kind"][graph.edges[:, 0]], ["query", "key", "value"])
    sizes = np.sort(np.abs(graph.values[~inside]))[::-1]
    return float(sizes[max(round(SHARES[chosen] * len(sizes)), 1) - 1])


def _relied_on(grid: Grid) -> list[str]:
    """What the agreement of relevance patching means for a reader, kind by kind."""
    row = grid.values[grid.label("method").index("relp")]
    doubtful = [f"{kind} ({r:.2f})" for kind, r in zip(grid.label("nodes"), row, strict=True) if not r >= 0.8]
    if not doubtful:
        return ["Relevance patching may be relied on for these nodes of these scenes."]
    return [f"Relevance patching is not to be relied on here for {', '.join(doubtful)}: patch those exactly."]


def _overlay(grids: dict[str, Grid], scene: Any) -> Overlay:
    """The first scene's effects on its patches; the row of the class token is no patch."""
    names, maps = [], []
    for method, grid in grids.items():
        effects = grid.per_example[0][:, 1:]  # type: ignore[index]
        side = round(effects.shape[1] ** 0.5)
        maps.append(effects.reshape(len(effects), side, side))
        names += [f"{method} · {layer}" for layer in grid.label("layer")]
    one = next(iter(grids.values()))
    return Overlay(
        np.concatenate(maps),
        tuple(names),
        image=np.asarray(scene.image),
        mask=scene.mask,
        title="Effect of restoring one patch",
        unit=one.unit,
        provenance=one.provenance,
    )
