"""Which layers are skipped in which batch, and as many at random beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.changed_answers import Change
from activarium.analyses.layers.skip_cost import time_without
from activarium.analyses.layers.skipping import Course, Judge, as_given, as_many_at_random, by_progress, until_all_rest
from activarium.edits import Edit, SkipBlock
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.results import Result

SAVES = {
    "readout": "nothing is saved: every block ran on the unmodified stream, and only the state that is read out was replaced. "
    "The share counts active layers, not layers that were run.",
    "bypass": "nothing is saved here: a layer is judged by its output, so it had to run. Its keys and values at bypassed rows were "
    "computed from the state that is carried past it.",
    "halt": "layers after the halt need not run, which is the share that is not active; here they ran, so no time was measured.",
}


# As many layers drawn from all of them, or from those after the first, which few models can do without.
KINDS = {"random layers": 0, "random layers after the first": 1}


class Judged:
    """Layers that are judged row by row while the forward runs.

    Attributes:
        name: What a reader calls it.
        drawn: Kind of random layers → what makes the edits of each draw.
        notes: What a reader should know.
    """

    def __init__(self, mode: str, prefix: str, depth: int, alpha: float, exclude: Sequence[int], draws: int, seed: int) -> None:
        self.mode, self.prefix, self.depth, self.alpha, self.exclude = mode, prefix, depth, alpha, exclude
        self.name = f"{mode} at alpha {alpha:g}"
        self.random = np.random.default_rng(seed)
        self.courses: list[tuple[Course, np.ndarray]] = []
        self.drawn: dict[str, list[Change]] = {kind: [self._random(first)] * draws for kind, first in KINDS.items()}
        self.notes: dict[str, Any] = {}
        if mode == "bypass":
            self.notes["keys and values at bypassed rows"] = "computed from the carried state"

    def chosen(self, here: Any) -> Sequence[Edit]:
        """Edits for a batch of inputs; its verdicts are known once they ran."""
        example = here.batch.rows[self.prefix.rstrip(".")]["example"]
        judge = by_progress(self.alpha, self.exclude)
        if self.mode == "halt":
            judge = until_all_rest(self.alpha, _owner(example), self.exclude)
        course = self._course(judge)
        self.courses.append((course, example))
        return course.edits

    def _random(self, first: int) -> Callable[[Any], Sequence[Edit]]:
        """What draws as many active layers from `first` on as the chosen ones had in the same batch, which ran just before."""

        def edits(here: Any) -> Sequence[Edit]:
            course, example = self.courses[-1]
            verdicts = torch.stack(course.verdicts, 1)
            owner = _owner(example) if self.mode == "halt" else None
            drawn = as_many_at_random(verdicts[:, first:], self.random, owner)
            return self._course(as_given(torch.cat([verdicts[:, :first], drawn], 1))).edits

        return edits

    def _course(self, judge: Judge) -> Course:
        return Course(self.prefix, self.depth, judge, bypass=self.mode != "readout")

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Active rows of each example and layer, and rows of each example."""
        verdicts = torch.cat([torch.stack(c.verdicts, 1) for c, _ in self.courses])
        return per_example(verdicts, np.concatenate([e for _, e in self.courses]))

    def saved(self, model: Runner, encoded: Any) -> tuple[str, dict[str, Result]]:
        """What is saved, in words; nothing was timed."""
        return SAVES[self.mode], {}


class Static:
    """A fixed set of layers, left out for every row; attributes as of `Judged`, and `out`, its blocks."""

    def __init__(self, prefix: str, depth: int, rates: tuple[np.ndarray, np.ndarray], cut: float, draws: int, seed: int) -> None:
        names = [f"{prefix}blocks.{i}" for i in range(depth)]
        rate = rates[0].sum(0) / rates[1].sum()
        out = tuple(int(i) for i in np.flatnonzero(rate < cut))
        self.out, self.kept = [names[i] for i in out], np.isin(np.arange(depth), out, invert=True)
        self.name = f"static without {', '.join(self.out) or 'any block'}"
        self.chosen: Sequence[Edit] = [SkipBlock(b) for b in self.out]
        self.drawn: dict[str, list[Change]] = {}
        self.notes: dict[str, Any] = {"cut": cut, "left out": self.out, "rate on the calibration": rate.tolist()}
        for kind, first in KINDS.items():
            if min(out, default=0) >= first:
                sets = other_sets(range(first, depth), len(out), draws, np.random.default_rng(seed), but=out)
                self.drawn[kind] = [[SkipBlock(names[i]) for i in one] for one in sets]
                self.notes[kind] = [[names[i] for i in one] for one in sets]

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The layers that are kept, for a row that stands for all."""
        return self.kept[None].astype(np.float64), np.ones((1, 1))

    def saved(self, model: Runner, encoded: Any) -> tuple[str, dict[str, Result]]:
        """What is saved, in words and measured."""
        if not self.out:
            return f"no layer is active for less than {self.notes['cut']:g} of the rows, so nothing is left out and nothing saved.", {}
        try:
            timed = time_without(model, encoded, self.out)
        except InputError as why:
            return f"no time was measured: {why}", {}
        share = timed.columns["share of the full time"][1]
        said = f"without them a forward takes {share:.0%} of the full time ({len(self.out)} of {len(self.kept)} blocks do not run)."
        return said, {"time": timed}


def per_example(verdicts: Tensor, example: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Active rows of each example and layer, and rows of each example."""
    owner = np.unique(example, return_inverse=True)[1]
    above = np.stack([np.bincount(owner, column) for column in verdicts.numpy().T], 1)
    return above, np.bincount(owner)[:, None].astype(np.float64)


def _owner(example: np.ndarray) -> Tensor:
    return torch.as_tensor(np.unique(example, return_inverse=True)[1])


def other_sets(
    layers: Sequence[int], count: int, draws: int, random: np.random.Generator, but: tuple[int, ...] | None = None
) -> list[tuple[int, ...]]:
    """Different sets of `count` layers `but` one; all that there are where those are few."""
    if comb(len(layers), count) - (but is not None) <= draws:
        return [one for one in combinations(layers, count) if one != but]
    found: list[tuple[int, ...]] = []
    while len(found) < draws:
        one = tuple(sorted(int(i) for i in random.choice(layers, count, replace=False)))
        found += [] if one == but or one in found else [one]
    return found
