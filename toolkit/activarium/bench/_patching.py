"""Exact patching grids beside TransformerLens' own loop on the same weights, and how their cost grows with depth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from activarium.bench._peers import hooked_transformer
from activarium.bench._shapes import tokens, wrapped
from activarium.bench._timing import Row, absent, interleaved, ratio

PAIRS, ROWS, LATE = 8, 15, 10


def grids(config: dict[str, Any], rounds: int, name: str) -> list[Row]:
    """Seconds of TransformerLens' loop over ours, for a layer × position grid of the residual stream."""
    what = f"exact patching grid, {name}, {config['n_layer']} blocks × {ROWS} positions, {PAIRS} pairs: TransformerLens' loop / ours"
    shapes = (("texts differ from token 10 on", LATE, "≥ 30"), ("no token shared", 0, "≥ 4"))
    os.environ["TQDM_DISABLE"] = "1"  # their loop draws a bar for every grid
    hf_model, model = wrapped(config)
    try:
        lens = hooked_transformer(hf_model, config)
    except ImportError:
        return [absent(what, "transformer-lens is not installed", "≥ 30")]
    return [_beside(model, lens, config, f"{what}, {words}", first, goal, rounds) for words, first, goal in shapes]


def _beside(model: Any, lens: Any, config: dict[str, Any], what: str, first: int, goal: str, rounds: int) -> Row:
    import torch

    import activarium as act

    pairs, (clean, corrupt), (answers, foils) = _pairs(model, config, first)
    from transformer_lens import patching

    def metric(logits: Any) -> Any:
        rows = torch.arange(PAIRS)
        return (logits[rows, -1, answers] - logits[rows, -1, foils]).mean()

    def theirs() -> Any:
        base = metric(lens(corrupt))
        _, cache = lens.run_with_cache(clean)
        return patching.get_act_patch_resid_pre(lens, corrupt, cache, metric) - base

    def ours() -> Any:
        return act.analyses.activation_patching(model, pairs, "blocks.*.resid_pre", progress=False)

    kept: dict[str, Any] = {}
    ours()  # warm; a whole loop of theirs to warm up would take as long as what is timed
    calls = {"TransformerLens": lambda: kept.update(theirs=theirs()), "ours": lambda: kept.update(ours=ours())}
    times = interleaved(calls, max(1, rounds), warm=False)
    # Both must have calculated the same thing; what they differ by is the two libraries' rounding.
    mine, other = kept["ours"], kept["theirs"].detach().double().numpy()
    gap = float(abs(mine.values - other).max())
    size = max(abs(mine.diagnostics["clean"]), abs(mine.diagnostics["corrupt"]), 1e-9)
    assert gap < 1e-5 * max(1.0, size), f"the two grids differ by {gap:.2g}, metrics are {size:.2g}"
    spent = mine.diagnostics
    note = (
        f"largest difference of a cell {gap:.1e} (metric {size:.2g}); {spent['cells']} cells run, {int(mine.masks['known_zero'].sum())} of "
        f"{mine.values.size} known to be zero; blocks were run on {spent['block_rows']:,} rows, whole forwards would take {spent['whole_block_rows']:,}"
    )
    return ratio(what, times, "TransformerLens", "ours", goal, note)


def _pairs(model: Any, config: dict[str, Any], first: int) -> tuple[Any, tuple[Any, Any], tuple[Any, Any]]:
    """Random tokens; the two sides share those before `first`."""
    import activarium as act

    clean, corrupt, ends = (tokens(config, shape, seed) for shape, seed in (((PAIRS, ROWS), 0), ((PAIRS, ROWS), 1), ((2, PAIRS), 2)))
    corrupt[:, :first] = clean[:, :first]
    return act.pairs(model, clean, corrupt, act.metrics.logit_difference(ends[0], ends[1])), (clean, corrupt), (ends[0], ends[1])


def against_depth(config: dict[str, Any], rounds: int) -> list[Row]:
    """How the cost of a grid grows with the number of blocks, in plain forwards over the same pairs."""
    import activarium as act

    found = []
    for depth in (4, 8, 16, 32):
        shape = config | {
            "n_layer": depth,
            "n_embd": min(config["n_embd"], 256),
            "n_head": 4,
            "vocab_size": min(config["vocab_size"], 5000),
        }
        _, model = wrapped(shape)
        pairs, *_ = _pairs(model, shape, 0)
        ids = pairs.clean
        calls = {
            "grid": lambda m=model, p=pairs: act.analyses.activation_patching(m, p, "blocks.*.resid_pre", progress=False),
            "forward": lambda m=model, i=ids: m.run(i),
        }
        times = interleaved(calls, max(1, rounds))
        cells = depth * ROWS
        row = ratio(
            f"exact grid of {depth} blocks × {ROWS} positions (d_model {shape['n_embd']}), no token shared / plain forward",
            times,
            "grid",
            "forward",
        )
        row.note = f"{cells} cells a pair: {cells / row.value:.1f} cells for the price of a forward" if row.value else ""
        found.append(row)
    draw_depth(found, Path("out/patching_depth.png"))
    return found


def relevance(config: dict[str, Any], rounds: int, name: str) -> list[Row]:
    """Wall time of relevance patching over attribution patching on the same nodes."""
    import activarium as act

    _, model = wrapped(config)
    pairs, *_ = _pairs(model, config, 0)
    nodes = ["blocks.*.resid_pre", "blocks.*.attn.out", "blocks.*.mlp.out"]
    calls = {
        "relevance": lambda: act.analyses.relevance_patching(model, pairs, nodes),
        "attribution": lambda: act.analyses.attribution_patching(model, pairs, nodes),
    }
    times = interleaved(calls, rounds)
    return [
        ratio(
            f"relevance patching / attribution patching, {name}, {PAIRS} pairs of {ROWS} tokens",
            times,
            "relevance",
            "attribution",
            "≤ 1.25",
        )
    ]


def draw_depth(rows: list[Row], path: Path) -> None:
    """The cost of a grid against depth as a picture, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    depths = [int(r.what.split(" of ")[1].split()[0]) for r in rows]
    axes.plot(depths, [d * ROWS for d in depths], "--", color="0.5", label="one forward for every cell")
    axes.plot(depths, [r.value or 0.0 for r in rows], "o-", color="#1f6fb4", label="activation_patching")
    axes.set(
        xlabel="blocks",
        ylabel="plain forwards",
        title=f"An exact grid, blocks × {ROWS} positions, every cell run",
        xscale="log",
        yscale="log",
    )
    axes.minorticks_off()
    axes.set_xticks(depths, [str(d) for d in depths])
    axes.set_yticks(marks := (25, 50, 100, 200, 400), [str(m) for m in marks])
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
