"""Many variants of one forward, as plain data: each takes some rows of one site from another run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from activarium.edits import Replace
from activarium.metrics import Metric


@dataclass(frozen=True, eq=False)
class Branches:
    """Variants of a base forward that differ from it at one site.

    Attributes:
        site: Where rows are replaced.
        example: Example that each branch is a variant of.
        position: Row of the example that is replaced; -1 for all its rows.
        part: Head or unit (place along the axis after `row`) that is replaced; -1 for the whole row.
        base: Values of the base run, `row …`.
        source: Values to take instead, `row …`.
        starts: First row of each example in those.
        lengths: Rows of each example.
    """

    site: str
    example: np.ndarray
    position: np.ndarray
    part: np.ndarray
    base: Tensor
    source: Tensor
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.example)

    def take(self, index: np.ndarray) -> Self:
        """Some of the branches."""
        return replace(self, example=self.example[index], position=self.position[index], part=self.part[index])

    def differing(self) -> np.ndarray:
        """Boolean `row part`: do base and source differ in a bit?"""
        differs = self.base != self.source
        return (differs.flatten(2).any(2) if differs.ndim > 2 else differs).cpu().numpy()

    def changes(self) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """For every replaced row: its branch, its position in the example, and its new values `row …`."""
        whole = self.position < 0
        counts = np.where(whole, self.lengths[self.example], 1)
        owner = np.repeat(np.arange(len(self)), counts)
        within = np.arange(len(owner)) - np.repeat(np.r_[0, np.cumsum(counts)[:-1]], counts)
        position = np.where(whole[owner], within, self.position[owner])
        rows = torch.as_tensor(position + self.starts[self.example[owner]], device=self.source.device)
        part = torch.as_tensor(self.part[owner], device=self.source.device)
        values = self.source[rows]
        some = part >= 0
        values[some] = self.replaced(rows[some], part[some])
        return owner, position, values

    def replaced(self, rows: Tensor, part: Tensor) -> Tensor:
        """Base values of these rows, of each one part from the source."""
        values, lines = self.base[rows].clone(), torch.arange(len(rows), device=rows.device)
        values[lines, part] = self.source[rows, part]
        return values


def run_whole(
    model: Any,
    inputs: Any,
    branches: Sequence[Branches],
    metric: Metric,
    *,
    batch: int = 64,
    advance: Callable[[int], Any] = lambda _: None,
) -> list[np.ndarray]:
    """The metric of every branch, each run as a whole forward with nothing reused: what all shortcuts are held against."""
    found = []
    for one in branches:
        parts = [np.empty(0)]
        for start in range(0, len(one), batch):
            some = one.take(np.arange(start, min(start + batch, len(one))))
            parts.append(_run(model, inputs, some, metric))
            advance(len(some))
        found.append(np.concatenate(parts))
    return found


def _run(model: Any, inputs: Any, some: Branches, metric: Metric) -> np.ndarray:
    many = inputs.select(some.example).numbered(0)
    owner, position, values = some.changes()
    starts = np.r_[0, np.cumsum(some.lengths[some.example])[:-1]]
    rows = torch.as_tensor(starts[owner] + position, device=values.device)

    def put(old: Tensor) -> Tensor:
        return old.index_copy(0, rows, values.to(old.dtype))

    recording = model.run(many, edits=[Replace(some.site, put)], metrics={"metric": metric.select(some.example)})
    return recording.metric["metric"].detach().double().cpu().numpy()
