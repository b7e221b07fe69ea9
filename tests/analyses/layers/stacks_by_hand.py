"""Recordings whose states are written down: `embed` and what each block gives."""

import numpy as np
import torch

from activarium.activations import Activations
from activarium.recording import Recording
from activarium.rows import Rows


def table(lengths: tuple[int, ...], kinds: list[str] | None = None, **columns: list) -> Rows:
    """Rows of sequences of these lengths."""
    count = sum(lengths)
    made = {
        "example": np.repeat(np.arange(len(lengths)), lengths),
        "position": np.concatenate([np.arange(n) for n in lengths]),
        "kind": np.array(kinds or ["token"] * count, dtype=object),
    }
    return Rows(made | {name: np.array(values, dtype=object) for name, values in columns.items()})


def chain(*states: torch.Tensor, rows: Rows | None = None, cut: tuple[int, ...] = ()) -> Recording:
    """A stack whose first state is `embed` and whose later ones are what each block gives; `cut` into batches."""
    rows = rows or table((len(states[0]),))
    names = ["embed", *(f"blocks.{i}.resid_post" for i in range(len(states) - 1))]
    parts = [torch.tensor_split(s, list(cut)) if cut else s for s in states]
    return Recording({n: Activations(p, "row d_model", site=n, index=rows) for n, p in zip(names, parts, strict=True)}, {"": rows})


def of_lengths(*lengths: float, rows: int = 1) -> list[torch.Tensor]:
    """States of these lengths, all in one direction: a stack that only rescales."""
    return [torch.tensor([[3.0, 4.0]], dtype=torch.float64).repeat(rows, 1) / 5 * n for n in lengths]
