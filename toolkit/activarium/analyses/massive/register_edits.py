"""What is done to register neurons: silenced on the patches, moved into rows that can hold them, or held against others at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import column
from activarium.analyses.massive.batches import batches
from activarium.analyses.massive.outlier_patches import Patches, read
from activarium.edits import Edit, Mean, Replace, Where, Zero
from activarium.protocols import Runner

Chosen = Mapping[int, Sequence[int]]  # block → neurons
PATCHES = Where(kinds=("patch",))


def silenced(prefix: str, chosen: Chosen) -> list[Edit]:
    """Neurons at zero on every patch; other rows keep theirs."""
    return [Zero(f"{prefix}blocks.{i}.mlp.post", where=Where(kinds=("patch",), features=tuple(n))) for i, n in chosen.items()]


def moved(prefix: str, chosen: Chosen, into: str) -> Callable[[Any], list[Edit]]:
    """Edits for a batch: the largest activation over the patches of each picture, signed, goes into its rows of kind `into`; the patches get zero."""

    def edits(inputs: Any) -> list[Edit]:
        rows = inputs.batch.rows[prefix.rstrip(".")]
        kind, example = rows["kind"].astype(str), torch.from_numpy(np.unique(rows["example"], return_inverse=True)[1])
        patch, target = torch.from_numpy(kind == "patch"), torch.from_numpy(kind == into)

        def move(neurons: Sequence[int]) -> Callable[[Tensor], Tensor]:
            def by(values: Tensor) -> Tensor:
                made = values.clone()
                for e in range(int(example.max()) + 1):
                    from_, to = (patch & (example == e)).nonzero()[:, 0], (target & (example == e)).nonzero()[:, 0]
                    here = values[from_][:, list(neurons)]
                    largest = here.gather(0, here.abs().argmax(0, keepdim=True))
                    made[to[:, None], torch.tensor(list(neurons))] = largest.expand(len(to), -1)
                    made[from_[:, None], torch.tensor(list(neurons))] = 0
                return made

            return by

        return [Replace(f"{prefix}blocks.{i}.mlp.post", move(neurons)) for i, neurons in chosen.items()]

    return edits


def at_random(chosen: Chosen, width: int, random: np.random.Generator) -> dict[int, tuple[int, ...]]:
    """As many other neurons of the same blocks."""
    made = {}
    for block, neurons in chosen.items():
        others = np.setdiff1d(np.arange(width), list(neurons))
        made[block] = tuple(int(n) for n in random.choice(others, min(len(neurons), len(others)), replace=False))
    return made


def registers_at_mean(model: Runner, inputs: Any, patches: Patches, progress: bool) -> list[Edit]:
    """Fix-Reg-Mean: at every block's input each register is replaced by its mean over these pictures; none without registers."""
    if not (patches.kind == "register").any():
        return []
    sites = [f"{patches.prefix}blocks.{i}.resid_pre" for i in range(len(patches.sizes))]
    sums: dict[str, dict[int, Tensor]] = {site: {} for site in sites}
    pictures = 0
    for here in batches(model, inputs, "averaging registers", progress):
        rec = read(model, here, sites)
        pictures += len(here)
        for site in sites:
            for position, values in _registers(rec[site]).items():
                sums[site][position] = sums[site].get(position, torch.zeros(())) + values.double().sum(0)
    note = {"mean over": f"{pictures} pictures"}
    return [
        Mean(site, total / pictures, note, where=Where(kinds=("register",), positions=(position,)))
        for site, totals in sums.items()
        for position, total in totals.items()
    ]


def _registers(activations: Activations) -> dict[int, Tensor]:
    position = column(activations, "position", -1).astype(int)
    registers = column(activations, "kind", "token").astype(str) == "register"
    values = activations.tensor.detach().cpu()
    return {int(p): values[torch.from_numpy(registers & (position == p))] for p in np.unique(position[registers])}
