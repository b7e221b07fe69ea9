"""Rows whose features are known, and recordings of rows that no model made: what dictionaries are tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from activarium.recording import Recording


def planted_rows(
    count: int = 60_000, *, width: int = 64, atoms: int = 128, active: float = 5, noise: float = 0.01, seed: int = 987
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that are sums of a few of many unit atoms, and a little noise.

    Args:
        count: How many rows.
        width: Numbers in a row.
        atoms: How many atoms there are.
        active: How many of them a row has on average, each with a size around 1.
        noise: Standard deviation of the noise in each number.
        seed: Draws everything; the default is none that first weights are drawn with.

    Returns:
        Atoms `feature d_model` of length 1, rows `row d_model`, sizes `row feature`.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(atoms, width, generator=generator), dim=1)
    on = torch.rand(count, atoms, generator=generator) < active / atoms
    sizes = on * (0.7 + 0.3 * torch.randn(count, atoms, generator=generator).abs())
    return unit, sizes @ unit + noise * torch.randn(count, width, generator=generator), sizes


def recording_of(
    sites: Mapping[str, Tensor], *, kinds: Sequence[str] | None = None, example: Sequence[int] | None = None, **columns: Any
) -> Recording:
    """A recording of rows that no model made.

    Args:
        sites: Site → `row d_model`, the same number of rows in each.
        kinds: Kind of each row; all are tokens where nothing is said.
        example: Example of each row, ascending; one example where nothing is said.
        columns: Further columns of the row table, `text=[…]`.
    """
    from activarium.activations import Activations
    from activarium.recording import Recording
    from activarium.rows import Rows

    rows = len(next(iter(sites.values())))
    owner = np.zeros(rows, int) if example is None else np.asarray(example)
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    position = np.arange(rows) - np.repeat(first, np.diff(np.r_[first, rows]))
    table = Rows(
        {"example": owner, "position": position, "kind": np.array(list(kinds or ["token"] * rows), dtype=object)}
        | {name: np.asarray(values) for name, values in columns.items()}
    )
    return Recording({name: Activations(v, "row d_model", site=name, index=table) for name, v in sites.items()}, {"": table})
