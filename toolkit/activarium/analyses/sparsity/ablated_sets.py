"""The causal check: what the answers lose when only the chosen neurons of each layer are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.sparsity.active_sets import ActiveSets, Fired
from activarium.analyses.sparsity.predicted_sets import FIXED, OWN, fixed_set
from activarium.edits import Edit, Replace, Where
from activarium.protocols import Runner
from activarium.results import Ranking
from activarium.rows import KINDS

ACTIVE = "active set"


def ablation(model: Runner, inputs: Any, layers: Mapping[str, ActiveSets], counts: Mapping[str, Fired], progress: bool) -> Ranking:
    """KL of the full model from one that keeps only each row's active set, the fixed set, or the row's own strongest neurons.

    Runs every second example, of which the fixed set has seen none.
    """
    changes: dict[str, list[Edit]] = {ACTIVE: [], FIXED: [], OWN: []}
    for site, sets in layers.items():
        where = Where(kinds=tuple(k for k in KINDS if k not in sets.exclude))
        fixed, size = fixed_set(counts[site])
        for name, choose in ((ACTIVE, _active(sets)), (FIXED, _same(fixed)), (OWN, _strongest(sets, size))):
            changes[name].append(Replace(site, _keeping(choose), where=where))
    encoded = model.inputs(inputs)
    others = encoded.select(range(1, len(encoded), 2)) if len(encoded) > 1 else encoded
    found = changed_answers(model, others, changes, progress=progress, doing="leaving neurons out")
    names = sorted(found, key=lambda n: found[n].mean("kl"))
    columns = {"agreement": np.array([found[n].mean("agrees") for n in names])}
    if found[names[0]].known.any():
        columns["rise of loss, nats"] = np.array([found[n].mean("loss") - found[n].mean("full_loss") for n in names])
    kl = np.array([found[n].mean("kl") for n in names])
    return Ranking(tuple(names), kl, columns, title="Only these neurons left in all layers", unit="KL, nats")


def _keeping(choose: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda values: torch.where(choose(values), values, torch.zeros_like(values))


def _active(sets: ActiveSets) -> Callable[[Tensor], Tensor]:
    return lambda values: sets.of(values)[0]


def _same(chosen: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda values: chosen.to(values.device).expand_as(values)


def _strongest(sets: ActiveSets, size: int) -> Callable[[Tensor], Tensor]:
    def choose(values: Tensor) -> Tensor:
        order = sets.of(values)[1].argsort(dim=-1, descending=True, stable=True)
        return torch.zeros_like(values, dtype=torch.bool).scatter(-1, order[..., :size], True)

    return choose
