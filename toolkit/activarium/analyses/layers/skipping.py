"""Layers skipped row by row while a forward runs: who decides, and what is put in the place of a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.layers.norm_progress import active, lengths
from activarium.edits import Edit, Replace
from activarium.errors import UnknownSite

Judge = Callable[[int, Tensor, Tensor], Tensor]  # layer, its input and its output `row d_model` → active, boolean `row`


class Course:
    """The edits of one kind of skipping, and the verdicts of the last forward that ran with them.

    A layer that is not active leaves a row's state as it is carried past it. With `bypass` the next block gets the carried
    state; without, all blocks run on the unmodified stream and the carried state takes the place of the last one (readout).

    Attributes:
        verdicts: Active or not, boolean `row` per layer.
        edits: What to run with; in the order of a forward.
    """

    def __init__(self, prefix: str, depth: int, judge: Judge, *, bypass: bool) -> None:
        self.judge, self.bypass, self.depth = judge, bypass, depth
        self.verdicts: list[Tensor] = []
        self._given = self._carried = torch.empty(0)
        posts = [Replace(f"{prefix}blocks.{i}.resid_post", partial(self._leave, i)) for i in range(depth)]
        self.edits: list[Edit] = [Replace(f"{prefix}blocks.0.resid_pre", self._enter), *posts]

    def _enter(self, values: Tensor) -> Tensor:
        self.verdicts, self._given, self._carried = [], values, values
        return values

    def _leave(self, layer: int, values: Tensor) -> Tensor:
        verdict = self.judge(layer, self._given, values)
        self.verdicts.append(verdict.cpu())
        carried = torch.where(verdict[:, None], values, self._carried)
        last = layer == self.depth - 1
        new = carried if self.bypass or last else values
        # Nothing of this forward is kept beyond it.
        self._given, self._carried = (torch.empty(0),) * 2 if last else (new, carried)
        return new


def by_progress(alpha: float, exclude: Sequence[int] = ()) -> Judge:
    """Active where the state grows longer by `alpha` times the range of the layers before: see `norm_progress`."""
    seen: list[Tensor] = []

    def judge(layer: int, before: Tensor, after: Tensor) -> Tensor:
        if layer == 0:
            seen.clear()
        seen.append(lengths(after, exclude) - lengths(before, exclude))
        return active(torch.stack(seen, 1), alpha)[:, -1]

    return judge


def until_all_rest(alpha: float, owner: Tensor, exclude: Sequence[int] = ()) -> Judge:
    """Every layer is active until all rows of an example rest in one; what comes after is not run for it.

    A row rests if its progress, of either sign, is smaller than `alpha` times the range of the progress of all rows of its
    example in the layers before. The range begins with zeros.

    Args:
        alpha: Share of the range.
        owner: Number of each row's example, from 0.
        exclude: Dimensions left out of every length.
    """
    count = int(owner.max()) + 1
    state: dict[str, Tensor] = {}

    def judge(layer: int, before: Tensor, after: Tensor) -> Tensor:
        progress = (lengths(after, exclude) - lengths(before, exclude)).cpu()
        if layer == 0:
            state.update(runs=torch.ones(count, dtype=torch.bool), high=torch.zeros(count).double(), low=torch.zeros(count).double())
        runs = state["runs"][owner]
        rests = (progress.abs() < (alpha * (state["high"] - state["low"]))[owner]).to(torch.uint8)
        all_rest = torch.ones(count, dtype=torch.uint8).scatter_reduce(0, owner, rests, "amin").bool()
        state["runs"] = state["runs"] & ~all_rest
        state["high"] = state["high"].scatter_reduce(0, owner, progress, "amax")
        state["low"] = state["low"].scatter_reduce(0, owner, progress, "amin")
        return runs.to(after.device)

    return judge


def as_given(verdicts: Tensor) -> Judge:
    """Verdicts that are known beforehand, boolean `row layer`."""
    return lambda layer, _, after: verdicts[:, layer].to(after.device)


def as_many_at_random(verdicts: Tensor, random: np.random.Generator, owner: Tensor | None = None) -> Tensor:
    """Verdicts with as many active layers in each row, at random places; with `owner` at the same ones for all rows of an example."""
    count = verdicts.sum(1, keepdim=True)
    groups = len(verdicts) if owner is None else int(owner.max()) + 1
    order = torch.as_tensor(random.random((groups, verdicts.shape[1]))).argsort(1).argsort(1)
    return (order if owner is None else order[owner]) < count


def answering_blocks(sites: Mapping[str, Any]) -> tuple[str, int]:
    """What the site names of the stack that answers begin with, and how many blocks it has.

    Raises:
        UnknownSite: No stack, or several of which none is a decoder.
    """
    found: dict[str, int] = {}
    for name in sites:
        if name.endswith(".resid_post"):
            prefix = name.rpartition("blocks.")[0]
            found[prefix] = found.get(prefix, 0) + 1
    prefix = next(iter(found)) if len(found) == 1 else "decoder."
    if prefix not in found:
        stacks = " and ".join(p.rstrip(".") or "one stack" for p in found) or "no blocks"
        raise UnknownSite(f"Layers are skipped in the stack that answers; this model has {stacks}. Use a language model or a classifier.")
    return prefix, found[prefix]
