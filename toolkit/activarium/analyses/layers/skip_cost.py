"""What skipping layers costs in answers, beside random layers, and what it saves in time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import Answers
from activarium.analyses.layers.intervals import Intervals
from activarium.protocols import Runner
from activarium.results import Ranking

ROUNDS = 9
AT_ONCE = 16  # examples in the forward that is timed


def cost_table(found: Mapping[str, Answers], active: Mapping[str, float], draw: Intervals, title: str) -> Ranking:
    """One line per way of skipping, the cheapest first: KL with its interval, loss, agreement, accuracy where labels are known."""
    order = sorted(found, key=lambda name: found[name].mean("kl"))
    sums = [found[name].sums(found[name].kl) for name in order]
    ends = np.stack([draw(above[:, None], below[:, None])[1][:, 0] for above, below in sums])
    columns = {
        "KL low": ends[:, 0],
        "KL high": ends[:, 1],
        "agreement": np.array([found[n].mean("agrees") for n in order]),
        "active layers": np.array([active[n] for n in order]),
    }
    if found[order[0]].known.any():
        columns["loss"] = np.array([found[n].mean("loss") for n in order])
        columns["rise of loss"] = np.array([found[n].mean("loss") - found[n].mean("full_loss") for n in order])
        columns["right answers"] = np.array([found[n].mean("correct") for n in order])
        columns["right answers of the full model"] = np.array([found[n].mean("full_correct") for n in order])
    return Ranking(tuple(order), np.array([found[n].mean("kl") for n in order]), columns, title=title, unit="nats")


def against_random(chosen: Answers, drawn: Sequence[Answers], draw: Intervals) -> tuple[float, float, float]:
    """KL of the chosen layers minus the mean over random ones, and its interval over sequences."""
    above, below = chosen.sums(chosen.kl)
    mean = np.mean([a.sums(a.kl)[0] for a in drawn], axis=0)
    apart, ends = draw.difference((above[:, None], below[:, None]), (mean[:, None], below[:, None]))
    return float(apart[0]), float(ends[0, 0]), float(ends[1, 0])


def time_without(model: Runner, encoded: Any, blocks: Sequence[str]) -> Ranking:
    """Median seconds of a forward with all blocks and with some removed, taken in turns.

    Raises:
        InputError: A block of this model cannot be removed.
    """
    few = encoded.select(range(min(AT_ONCE, len(encoded))))
    names = ("all blocks", f"without {', '.join(blocks)}")
    wall: dict[str, list[float]] = {name: [] for name in names}
    busy: dict[str, list[float]] = {name: [] for name in names}
    for again in range(ROUNDS + 1):
        for name in names[:: -1 if again % 2 else 1]:
            gone = blocks if name != names[0] else ()
            with model.removed(gone):
                started, worked = time.perf_counter(), time.process_time()
                model.run(few)
                seconds = time.perf_counter() - started, time.process_time() - worked
            if again:  # the first round warms up
                wall[name].append(seconds[0])
                busy[name].append(seconds[1])
    middle = {name: statistics.median(wall[name]) for name in names}
    columns = {
        "processor seconds": np.array([statistics.median(busy[n]) for n in names]),
        "share of the full time": np.array([middle[n] / middle[names[0]] for n in names]),
        "fastest": np.array([min(wall[n]) for n in names]),
        "slowest": np.array([max(wall[n]) for n in names]),
    }
    title = f"Time of one forward over {len(few)} examples, median of {ROUNDS} in turns"
    return Ranking(names, np.array([middle[n] for n in names]), columns, title=title, unit="seconds")
