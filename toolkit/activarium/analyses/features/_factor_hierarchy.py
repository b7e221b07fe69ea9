"""Factor hierarchy: which fine factors make up coarser ones, and which neurons they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from activarium.analyses.features.row_words import row_words, top_tokens
from activarium.dictionaries import Levels
from activarium.errors import InputError, UnknownSite, unknown
from activarium.recording import Recording
from activarium.results import Graph, Layout, Ranking, Report, Result

FEW = 3  # pairs below which no interval is given


def factor_hierarchy(
    levels: Levels,
    recording: Recording | None = None,
    *,
    threshold: float = 0.15,
    most: int = 4,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Which factors make up coarser ones, and do related factors share neurons?

    A node is a factor of a level; its children are the factors of the level below with at least `threshold` of its largest coefficient, at
    most `most` of them. A node with fewer than two is a leaf: it is no union of others. Related factors are children of one node;
    the neurons they share (Jaccard index of the sets of entries they keep) are held against pairs of factors of the same level that
    no node has both of.

    Args:
        levels: What `act.dictionaries.factorise_levels` made.
        recording: The recording it was made of: nodes then carry the tokens or patches in which they are largest.
        threshold: Smallest coefficient of a child, as a share of the largest.
        most: Most children of a node.
        confidence: Of the intervals over pairs.
        resamples: How often pairs are drawn again.
        seed: Draws the pairs.

    Returns:
        A report with `tree` (graph from node to children; column `layer` is the level, weights are coefficients; a child may have several
        parents), `nested` (layout: every factor inside the node that has most of it, sizes are mean squares of what they have in the rows),
        `reuse` (ranking of levels by Jaccard of related pairs, beside unrelated pairs, with the interval of the difference) and
        `errors` (ranking of levels by what they leave of the rows).

    Raises:
        InputError: A single level, a threshold outside 0 to 1, or fewer than two children allowed.
        UnknownSite: The recording does not hold the site.

    Source:
        Shafran et al. 2025, arXiv:2506.10920, sections on hierarchies and on neurons that are used again.

    Differs:
        Intervals, and unrelated pairs of the same level as control. Pairs are not independent (a factor is in several), so intervals are too narrow;
        and nodes were made from directions, so that their children overlap follows in part from how they were grouped.

    Example:
        >>> model = act.load("scribe")
        >>> rec = model.run(["Anna gave Tom the book ."] * 4, read="blocks.1.mlp.post")
        >>> levels = act.dictionaries.factorise_levels(rec, "blocks.1.mlp.post", features=(6, 3), share=0.05, progress=False)
        >>> len(act.analyses.factor_hierarchy(levels, rec)["nested"].names)
        10
    """
    if len(levels.levels) < 2:
        raise InputError("One level has nothing above it. Factorise several: factorise_levels(…, features=(100, 50, 25)).")
    if not 0 < threshold <= 1 or most < 2:
        raise InputError(f"threshold={threshold} is a share of the largest coefficient, most={most} at least 2.")
    names = [[f"{level + 1}.{i}" for i in range(snmf.width)] for level, snmf in enumerate(levels.levels)]
    said = None if recording is None else _node_words(levels, recording)
    family = {
        (level, i): levels.children(level, i, threshold=threshold, most=most)
        for level in range(1, len(levels.levels))
        for i in range(levels.levels[level].width)
    }
    reuse, notes, words = _reuse(levels, family, confidence, resamples, seed)
    error = np.array(levels.errors)
    parts: dict[str, Result] = {
        "tree": _tree(levels, names, family, said),
        "nested": _nested(levels, names, said),
        "reuse": reuse,
        "errors": Ranking(
            tuple(f"level {i + 1}" for i in range(len(error))),
            error,
            {"factors": np.array([s.width for s in levels.levels])},
            title="What the levels leave",
            unit="share of Σ‖a‖²",
        ),
    }
    unions = sum(bool(c) for c in family.values())
    first = f"{unions} of {len(family)} coarser factors are unions of two or more finer ones."
    notes["reuse means"] = "children were grouped by their directions, so some of what they share follows from the grouping"
    notes |= {"threshold": threshold, "most": most, "tuned": levels.tuned, "confidence": confidence, "seed": seed}
    return Report(parts, (first, *words), title=f"Hierarchy of factors of {levels.levels[0].origin.site}", diagnostics=notes)


def _tree(levels: Levels, names: list[list[str]], family: dict[Any, list[tuple[int, float]]], said: list[list[str]] | None) -> Graph:
    """Nodes that are unions, and what they are unions of."""
    edges = [((level, i), (level - 1, child), value) for (level, i), children in family.items() for child, value in children]
    used = sorted({end for parent, child, _ in edges for end in (parent, child)})
    number = {node: n for n, node in enumerate(used)}
    columns = {"layer": np.array([level for level, _ in used], dtype=int), "kind": np.array(["feature"] * len(used), dtype=object)}
    if said is not None:
        columns["readout"] = np.array([said[level][i] for level, i in used], dtype=object)
    ends = np.array([[number[parent], number[child]] for parent, child, _ in edges], dtype=int).reshape(-1, 2)
    labels = tuple(names[level][i] for level, i in used)
    return Graph(
        labels, ends, np.array([v for *_, v in edges]), columns=columns, title="Factors and what they are made of", unit="coefficient"
    )


def _nested(levels: Levels, names: list[list[str]], said: list[list[str]] | None) -> Layout:
    """All factors inside one root, each in the coarser one that has most of it."""
    top = len(levels.levels) - 1
    flat, parents, sizes, points, first = ["all"], [-1], [0.0], [(0.0, float(top + 1))], {}
    for level in range(top, -1, -1):
        first[level] = len(flat)
        amount = levels.activations(level).double().square().mean(0).numpy()
        for i, size in enumerate(amount):
            above = 0 if level == top else first[level + 1] + int(levels.coefficients[level + 1][i].argmax())
            flat.append(names[level][i] + (f" {said[level][i]}" if said else ""))
            parents.append(above)
            sizes.append(float(size))
            points.append((i / max(1, len(amount) - 1), float(level)))
    sizes[0] = float(sum(s for s, p in zip(sizes, parents, strict=True) if p == 0))
    return Layout(tuple(flat), np.array(points), np.array(sizes), np.array(parents), title="Factors inside coarser factors")


def _reuse(
    levels: Levels, family: dict[Any, list[tuple[int, float]]], confidence: float, resamples: int, seed: int
) -> tuple[Ranking, dict[str, Any], list[str]]:
    generator = np.random.default_rng(seed)
    ends, lines, words = [50 * (1 - confidence), 100 - 50 * (1 - confidence)], [], []
    for level in range(len(levels.levels) - 1):
        support = levels.levels[level].directions != 0
        groups = [sorted(c for c, _ in children) for (above, _), children in family.items() if above == level + 1 and children]
        related = sorted({(a, b) for g in groups for k, a in enumerate(g) for b in g[k + 1 :]})
        every = [(a, b) for a in range(len(support)) for b in range(a + 1, len(support))]
        others = [pair for pair in every if pair not in set(related)]
        mine, rest = _jaccard(support, related), _jaccard(support, others)
        if len(mine) >= FEW and len(rest) >= FEW:
            drawn = [
                generator.choice(mine, (resamples, len(mine))).mean(1) - generator.choice(rest, (resamples, min(len(rest), 2000))).mean(1)
            ]
            low, high = np.percentile(drawn, ends)
            gap = mine.mean() - rest.mean()
            words.append(
                f"level {level + 1}: related factors share {mine.mean():.1%} of their neurons, unrelated ones {rest.mean():.1%} "
                f"(difference {gap:+.1%}, {low:+.1%} to {high:+.1%}, {len(mine)} pairs)."
            )
        else:
            low = high = float("nan")
            words.append(f"level {level + 1}: {len(mine)} related and {len(rest)} unrelated pairs, too few to compare.")
        lines.append((float(mine.mean()) if len(mine) else np.nan, float(rest.mean()) if len(rest) else np.nan, low, high, len(mine)))
    table = np.array(lines)
    columns = {"unrelated": table[:, 1], "difference, low": table[:, 2], "difference, high": table[:, 3], "pairs": table[:, 4].astype(int)}
    names = tuple(f"level {i + 1}" for i in range(len(lines)))
    return (
        Ranking(names, table[:, 0], columns, title="Neurons shared by related factors", unit="mean Jaccard"),
        {"related": "children of one node", "unrelated": "pairs of the level that no node has both of"},
        words,
    )


def _jaccard(support: torch.Tensor, pairs: list[tuple[int, int]]) -> np.ndarray:
    if not pairs:
        return np.empty(0)
    a, b = support[[p[0] for p in pairs]], support[[p[1] for p in pairs]]
    return ((a & b).sum(1) / (a | b).sum(1).clamp_min(1)).double().numpy()


def _node_words(levels: Levels, recording: Recording) -> list[list[str]]:
    """Each factor by the tokens, or the patch, it is largest at."""
    name = levels.levels[0].origin.site
    if name not in recording:
        raise unknown("site in this recording", name, list(recording), UnknownSite)
    site, made = recording[name], []
    if len(levels.rows) and int(levels.rows[-1]) >= len(site):
        raise InputError(
            f"{name} has {len(site):,} rows here; the factors were made of row {int(levels.rows[-1]):,} too. Give that recording."
        )
    for level in range(len(levels.levels)):
        amount = levels.activations(level).double().numpy()
        tops = [top_tokens(site, levels.rows, column, 3) for column in amount.T]
        made.append([t or row_words(site, int(levels.rows[int(c.argmax())])) for t, c in zip(tops, amount.T, strict=True)])
    return made
