"""How much attention later layers give to some rows of each sequence, with and without an intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.changed_answers import AT_ONCE, Change
from activarium.analyses.massive.seen import seen_keys
from activarium.protocols import Runner
from activarium.results import Series

FULL, UNIFORM = "as it is", "uniform attention"


def sink_mass(
    model: Runner, inputs: Any, changes: Mapping[str, Change], rows: Mapping[int, Sequence[int]], sites: Mapping[int, str], back: bool
) -> Series:
    """Mean share of attention that the queries behind certain rows give to these, per later block, averaged over heads.

    Args:
        model: The model; left as it was.
        inputs: What it runs on.
        changes: Name → edits, as for `changed_answers`.
        rows: Example → positions that may be sinks. Other examples are not run.
        sites: Block → its `attn.pattern`.
        back: Queries see only what came before; then those in front of the first of these rows are left out.

    Returns:
        One curve for the model as it is, one per change, and what attention spread evenly over the visible keys would give.
    """
    encoded = model.inputs(inputs)
    runs: dict[str, Change] = {FULL: (), **changes}
    chosen = [i for i, e in enumerate(encoded.numbers) if int(e) in rows]
    sums = {name: np.zeros((len(sites), 2)) for name in (*runs, UNIFORM)}
    for start in range(0, len(chosen), AT_ONCE):
        here = encoded.select(chosen[start : start + AT_ONCE])
        for name, change in runs.items():
            recording = model.run(here, read=list(sites.values()), edits=change(here) if callable(change) else change)
            for at, site in enumerate(sites.values()):
                for tile in recording[site].tiles(heads=1 << 20):
                    keys = sorted(set(rows[tile.example]))
                    query = torch.arange(tile.queries.start, tile.queries.start + tile.values.shape[-2])
                    asks = query > keys[0] if back else ~torch.isin(query, torch.tensor(keys))
                    given = tile.values[:, asks][:, :, keys].double().sum(-1)
                    sums[name][at] += float(given.sum()), given.numel()
                    if name == FULL:
                        seen = seen_keys(recording, site, tile, list(here.numbers).index(tile.example))[asks].double()
                        even = seen[:, keys].sum(1) / seen.sum(1)
                        sums[UNIFORM][at] += float(even.sum()), len(even)
    curves = {name: np.divide(s[:, 0], s[:, 1], out=np.full(len(s), np.nan), where=s[:, 1] > 0) for name, s in sums.items()}
    return Series(np.array(list(sites)), curves, "block", title="Attention that later rows give to the massive rows", unit="share")
