"""Recordings that no measure should take for something learned: of an untrained twin, and of texts and images in disorder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.changed_answers import AT_ONCE
from activarium.edits import Edit, Replace, Where
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.rows import Rows


def recorded(model: Runner, inputs: Any, sites: Sequence[str], edits: Callable[[Any], Sequence[Edit]] | None = None) -> Recording:
    """The sites over all inputs, some examples at a time; `edits` makes those of a batch."""
    encoded = model.inputs(inputs)
    parts: dict[str, list[Tensor]] = {s: [] for s in sites}
    tables: list[Rows] = []
    for start in range(0, len(encoded), AT_ONCE):
        here = encoded.select(range(start, min(start + AT_ONCE, len(encoded))))
        with torch.no_grad():
            made = model.run(here, read=sites, edits=edits(here) if edits else ())
        for site in sites:
            parts[site].append(made[site].tensor)
        index = made[sites[0]].index
        assert index is not None
        tables.append(index)
    rows = Rows.concatenate(tables)
    return Recording({s: Activations(p, "row d_model", site=s, index=rows) for s, p in parts.items()}, {"": rows})


def in_disorder(prefix: str, random: np.random.Generator) -> Callable[[Any], Sequence[Edit]]:
    """Edits that shuffle the embedded tokens or patches of each example before positions are added; special rows stay in place."""

    def shuffled(values: Tensor) -> Tensor:
        return values[torch.as_tensor(random.permutation(len(values)), device=values.device)]

    def edits(here: Any) -> Sequence[Edit]:
        kinds = ("token", "patch")
        return [Replace(f"{prefix}token_embed", shuffled, where=Where(examples=(int(e),), kinds=kinds)) for e in here.numbers]

    return edits
