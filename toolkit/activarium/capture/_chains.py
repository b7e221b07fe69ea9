"""Chains of blocks in a traced forward: cut where one block's input is not the block before's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from activarium.capture._block import same
from activarium.capture._inputs import Space
from activarium.capture._trace import Call, Trace


def unfit(chains: list[list[Call]], names: list[str], spaces: Mapping[str, Space], arguments: Mapping[str, Any]) -> str:
    """Why these chains of blocks have no rows that we know; empty if they have."""
    if not chains or not set(names) <= set(spaces):
        return "no chain of blocks was recognised in this model"
    if len(set(names)) != len(chains):
        return "its blocks form several streams, or stages of different shapes"
    for name, chain in zip(names, chains, strict=True):
        space, given, shape = spaces[name], arguments[spaces[name].argument], chain[0].output.shape  # type: ignore[union-attr]
        wanted = given.shape[1] if space.modality == "text" else int(np.prod(space.grid(given)))
        extra = shape[1] - wanted
        if shape[0] != given.shape[0] or extra < 0 or (extra and space.modality == "text"):
            return f"its blocks work on {tuple(shape[:2])} rows for {given.shape[0]} examples of {wanted} {'tokens' if space.modality == 'text' else 'patches'}"
    return ""


def find_chains(model: nn.Module, trace: Trace) -> list[list[Call]]:
    """Blocks in order of execution, cut where one block's input is not the block before's output."""
    classes = _block_classes(model)
    calls = [c for c in trace.calls if isinstance(c.module, classes) and c.output is not None and c.output.ndim == 3]
    chains: list[list[Call]] = []
    for call in calls:
        if chains and any(same(t, chains[-1][-1].output) for t in call.inputs.values() if t.shape == call.output.shape):  # type: ignore[union-attr]
            chains[-1].append(call)
        elif any(t.shape == call.output.shape for t in call.inputs.values()):  # type: ignore[union-attr]
            chains.append([call])
    return chains


def _block_classes(model: nn.Module) -> tuple[type, ...]:
    """What the model classes themselves declare as blocks; else the longest list of like modules."""
    found: set[type] = set()
    for module in model.modules():
        declared = (getattr(module, "_can_record_outputs", None) or {}).get("hidden_states", ())
        for one in declared if isinstance(declared, (list, tuple)) else [declared]:
            found.add(getattr(one, "target_class", one))
    if not found:
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1 and len({type(b) for b in m}) == 1]
        found = {type(max(lists, key=len)[0])} if lists else set()
    return tuple(c for c in found if isinstance(c, type))


def stack_names(paths: Sequence[str], spaces: Mapping[str, Space]) -> list[str]:
    if len(paths) == 1 and "" in spaces:
        return [""]
    names = []
    for path in paths:
        parts = ["text" if p == "language_model" else p.removesuffix("_model").removesuffix("_tower") for p in path.split(".")]
        names.append(next((s for s in spaces if s and any(p == s or p.endswith(f"_{s}") for p in parts)), "?"))
    return names
