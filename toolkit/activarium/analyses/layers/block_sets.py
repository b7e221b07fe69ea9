"""Which blocks to remove together: by influence, by the angle across them, one after the other, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.layers.block_ends import block_ends
from activarium.analyses.layers.nulls import recorded
from activarium.analyses.layers.redundancy import spans, sums
from activarium.analyses.layers.skip_plans import other_sets
from activarium.edits import SkipBlock
from activarium.progress import progress_bar
from activarium.protocols import Runner

Set = tuple[int, ...]  # block numbers, smallest first


def by_measures(model: Runner, inputs: Any, prefix: str, depth: int, most: int) -> dict[str, list[Set]]:
    """For each size the blocks of least influence, and the neighbours across which the state turns least."""
    sites = [f"{prefix}blocks.0.resid_pre", *(f"{prefix}blocks.{i}.resid_post" for i in range(depth))]
    recording = recorded(model, inputs, sites)
    pairs = list(block_ends(recording, prefix.rstrip("."), {s: recording[s] for s in sites[1:]}).values())
    every = {"all rows": np.ones(len(pairs[0][0]), bool)}
    found = [sums((x, (y,), False), every, ()) for x, y in pairs]
    influence = np.array([f.above[:, 0, 0].sum() / max(f.below[:, 0].sum(), 1) for f in found])
    turned = spans([x for x, _ in pairs], [y for _, y in pairs], (), longest=most)[0]
    least = np.argsort(influence, kind="stable")
    flattest = [_flattest(turned[:, : depth - n, n]) for n in range(most)]
    return {
        "least influence": [_ordered(least[:n]) for n in range(1, most + 1)],
        "flattest span": [tuple(range(start, start + n + 1)) for n, start in enumerate(flattest)],
    }


def _flattest(turned: np.ndarray) -> int:
    """The first block of the span with the smallest mean angle `(sequence, first block)`; angles that are not known do not count."""
    known = np.isfinite(turned)
    count = known.sum(0)
    return int(np.divide(np.where(known, turned, 0).sum(0), count, out=np.full(len(count), np.inf), where=count > 0).argmin())


def one_by_one(model: Runner, inputs: Any, prefix: str, depth: int, most: int, progress: bool) -> list[Set]:
    """For each size the blocks of the size before, and the one whose removal then costs least (KL)."""
    chosen: list[Set] = []
    with progress_bar(progress, "choosing", most, "blocks") as advance:
        for _ in range(most):
            gone = chosen[-1] if chosen else ()
            tried = [_ordered((*gone, i)) for i in range(depth) if i not in gone]
            found = changed_answers(model, inputs, {str(n): skips(prefix, one) for n, one in enumerate(tried)})
            chosen.append(tried[int(np.argmin([a.mean("kl") for a in found.values()]))])
            advance(1)
    return chosen


def at_random(depth: int, most: int, draws: int, seed: int) -> list[list[Set]]:
    """For each size some different sets; all of them where those are few."""
    random = np.random.default_rng(seed)
    return [other_sets(range(depth), n, draws, random) for n in range(1, most + 1)]


def skips(prefix: str, chosen: Sequence[int]) -> list[SkipBlock]:
    """The edits that remove these blocks."""
    return [SkipBlock(f"{prefix}blocks.{i}") for i in chosen]


def _ordered(chosen: Any) -> Set:
    return tuple(sorted(int(i) for i in chosen))
