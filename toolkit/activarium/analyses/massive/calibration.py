"""What massive numbers usually are, per dimension and class of rows, and edits that put something else in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.massive.sequences import Columns
from activarium.analyses.massive.stacks import layer_of
from activarium.edits import Edit, Replace
from activarium.results import Ranking

MODES = ("zero", "mean", "median", "clip")
ANY = ""  # stands for every class of rows of a dimension


@dataclass(frozen=True, eq=False)
class Hits:
    """The massive numbers of one site over many sequences; every array has one entry per number.

    Attributes:
        example: Its sequence.
        position: Its row in that sequence.
        dim: Its dimension.
        where: The class of its row, see `position_classes`.
        value: Signed, in model units.
        median: Of |h| in its sequence.
    """

    example: np.ndarray
    position: np.ndarray
    dim: np.ndarray
    where: np.ndarray
    value: np.ndarray
    median: np.ndarray

    @classmethod
    def of(cls, columns: Columns) -> Hits:
        """From the columns of `describe_hits`."""
        example, position, dim, where, value = (columns[n] for n in ("example", "position", "dim", "where", "value"))
        return cls(example, position, dim, where, value, np.abs(value) / columns["ratio"])

    def __len__(self) -> int:
        return len(self.dim)


def usual_values(hits: Hits) -> dict[tuple[int, str], np.ndarray]:
    """(dimension, class of rows) → the signed values seen there; the class `ANY` holds all of a dimension."""
    found: dict[tuple[int, str], np.ndarray] = {}
    for dim in np.unique(hits.dim).tolist():
        here = hits.dim == dim
        found[dim, ANY] = hits.value[here]
        for kind in np.unique(hits.where[here].astype(str)).tolist():
            found[dim, kind] = hits.value[here & (hits.where.astype(str) == kind)]
    return found


def calibration_ranking(usual: Mapping[tuple[int, str], np.ndarray], site: str) -> Ranking:
    """Mean, spread and number of the values of each dimension and class, the most frequent first."""
    cells = sorted((cell for cell in usual if cell[1] != ANY), key=lambda cell: -len(usual[cell]))
    values = [usual[cell] for cell in cells]
    spread = [float(v.std() / abs(v.mean())) if len(v) > 1 and v.mean() else float("nan") for v in values]
    columns = {
        "variation": np.array(spread, dtype=np.float64),
        "hits": np.array([len(v) for v in values], dtype=np.int64),
        "dim": np.array([dim for dim, _ in cells], dtype=np.int64),
        "where": np.array([kind for _, kind in cells], dtype=object),
    }
    means = np.array([v.mean() for v in values], dtype=np.float64)
    names = tuple(f"dim {dim} · {kind}" for dim, kind in cells)
    return Ranking(names, means, columns, title=f"Usual massive values at {site}", unit="model units")


def replacements(
    mode: str, hits: Hits, usual: Mapping[tuple[int, str], np.ndarray], value: float | None, clip: float
) -> tuple[np.ndarray, np.ndarray]:
    """What each massive number becomes, and whether a `mean` was known for it (its own value stays where none was)."""
    known = np.ones(len(hits), bool)
    if mode == "zero":
        return np.zeros(len(hits)), known
    if mode == "value":
        return np.full(len(hits), value, dtype=np.float64), known
    if mode == "median":
        return np.sign(hits.value) * hits.median, known
    if mode == "clip":
        return np.sign(hits.value) * np.minimum(np.abs(hits.value), clip * hits.median), known
    cells = list(zip(hits.dim.tolist(), hits.where.astype(str).tolist(), strict=True))
    seen = [usual.get(cell, usual.get((cell[0], ANY))) for cell in cells]
    new = np.array([own if v is None else v.mean() for v, own in zip(seen, hits.value, strict=True)], dtype=np.float64)
    return new, np.array([v is not None for v in seen], dtype=bool)


def offsets(batch: Any, space: str) -> dict[int, tuple[int, int]]:
    """Example number → its first row and its number of rows, in the order in which an edit sees the rows of a batch."""
    lengths = np.asarray(batch.rows_of(space))
    starts = np.cumsum(lengths) - lengths
    return {int(e): (int(s), int(n)) for e, s, n in zip(batch.numbers, starts, lengths, strict=True)}


def edit_at(hits: Hits, new: np.ndarray, site: str, space: str) -> Callable[[Any], Sequence[Edit]]:
    """Batch → the edit that puts `new` in the place of its massive numbers, and touches nothing else."""

    def edits(batch: Any) -> Sequence[Edit]:
        first = offsets(batch, space)
        here = np.flatnonzero(np.isin(hits.example, list(first)))
        rows = torch.as_tensor([first[int(e)][0] + int(p) for e, p in zip(hits.example[here], hits.position[here], strict=True)])
        dims, values = torch.as_tensor(hits.dim[here]), torch.as_tensor(new[here])
        return [Replace(site, lambda h: placed(h, rows, dims, values))] if len(here) else []

    return edits


def placed(stream: Tensor, rows: Tensor, dims: Tensor, values: Tensor) -> Tensor:
    """The stream `row d_model` with `values` at (row, dimension)."""
    at = rows.to(stream.device), dims.to(stream.device)
    return stream.index_put(at, values.to(stream.device, stream.dtype))


def edit_online(site: str, space: str, absolute: float, ratio: float, new: Callable[[Hits], np.ndarray]) -> Callable[[Any], Sequence[Edit]]:
    """Batch → the edit that looks for massive numbers in what it is given, and replaces them in the same forward."""

    def edits(batch: Any) -> Sequence[Edit]:
        def by(stream: Tensor) -> Tensor:
            found = layer_of(Activations(stream, "row d_model", site=site, index=batch.batch.rows[space]), absolute, ratio).hits
            return placed(stream, torch.as_tensor(found["row"]), torch.as_tensor(found["dim"]), torch.as_tensor(new(Hits.of(found))))

        return [Replace(site, by)]

    return edits
