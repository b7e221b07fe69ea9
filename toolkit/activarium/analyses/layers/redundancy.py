"""How much a block changes what it is given, row by row: the numbers behind block influence, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, column, examples_of
from activarium.errors import InputError

MEASURES = ("influence", "relative update", "along", "across")
SPECIAL = ("bos", "cls", "register", "special")
CALM = "without first and special rows"
BINS = np.linspace(-1, 1, 81)  # edges of the histogram of cosines
AT_ONCE = 256  # examples whose last rows are held at one time

Pair = tuple[Activations, tuple[Activations, ...], bool]  # input; output or writes; are they writes?


def row_measures(x: Tensor, y: Tensor) -> Tensor:
    """`row measure` of inputs and outputs `row d_model` without zero vectors, in the order of `MEASURES`."""
    x, y = x.double(), y.double()
    size = x.norm(dim=1)
    # 1 - cos = |u - v|²/2 of unit vectors: exactly 0 for equal rows, and small angles keep their digits.
    influence = (_unit(x) - _unit(y)).square().sum(1) / 2
    update = y - x
    along = (update * x).sum(1) / size.square()
    across = (update - along[:, None] * x).norm(dim=1) / size
    return torch.stack([influence, update.norm(dim=1) / size, along, across], 1)


def angles(x: Tensor, y: Tensor) -> Tensor:
    """Angle between rows as a share of 180°, `row`; NaN where a row is zero."""
    u, v = _unit(x.double()), _unit(y.double())
    turn = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)) / torch.pi
    return torch.where(_nonzero(x) & _nonzero(y), turn, torch.nan)


def groups_of(index: Activations) -> dict[str, np.ndarray]:
    """Which rows are averaged together: all, those without first and special rows, and each kind where there are several."""
    kinds = column(index, "kind", "token").astype(str)
    first = np.diff(examples_of(index), prepend=-1) != 0
    if "patch" in kinds:
        first &= False  # the first patch is a patch like the others
    groups = {"all rows": np.ones(len(kinds), bool), CALM: ~first & ~np.isin(kinds, SPECIAL)}
    names = sorted(set(kinds))
    groups |= {f"{kind} rows": kinds == kind for kind in names} if len(names) > 1 else {}
    return {name: rows for name, rows in groups.items() if rows.any()}


@dataclass(frozen=True, eq=False)
class Sums:
    """What was added up over the rows of each sequence.

    Attributes:
        above: Sums of the measures, `(sequence, group, measure)`.
        below: The rows they are over, `(sequence, group)`.
        cosines: How many rows of all have a cosine in each of `BINS`.
        zeros: Rows left out because their input or output is zero.
    """

    above: np.ndarray
    below: np.ndarray
    cosines: np.ndarray
    zeros: int


def sums(pair: Pair, groups: Mapping[str, np.ndarray], without: Sequence[int]) -> Sums:
    """The measures of one block or sublayer.

    One example is in memory at a time, so the numbers do not depend on how the recording is cut into batches.
    """
    x, outputs, are_writes = pair
    member = np.stack(list(groups.values()), 1)
    found, counts, zeros, cosines = [], [], 0, np.zeros(len(BINS) - 1, np.int64)
    for (_, start, before), *others in zip(by_example(x), *map(by_example, outputs), strict=True):
        before = left_out(before, without)
        after = sum((left_out(values, without) for _, _, values in others), before * are_writes)
        assert isinstance(after, Tensor)
        real = _nonzero(before) & _nonzero(after)
        zeros += int((~real).sum())
        values = row_measures(before[real], after[real]).cpu().numpy()
        chosen = member[start : start + len(before)][real.cpu().numpy()].astype(np.float64)
        found.append(chosen.T @ values)
        counts.append(chosen.sum(0))
        cosines += np.histogram((1 - values[:, 0]).clip(-1, 1), BINS)[0]
    order = by_number(x)
    return Sums(np.stack(found)[order], np.stack(counts)[order], cosines, zeros)


def spans(
    inputs: Sequence[Activations], outputs: Sequence[Activations], without: Sequence[int], longest: int | None = None
) -> tuple[np.ndarray, str]:
    """Angles `(sequence, first block, blocks in the span)` at the rows that answer, NaN beyond the last block; and which rows. `longest`: most blocks in a span."""
    rows, said = answering_rows(inputs[0])
    depth = len(inputs)
    reach = min(longest or depth, depth)
    made = np.full((len(rows), depth, reach), np.nan)
    for start in range(0, len(rows), AT_ONCE):
        here = rows[start : start + AT_ONCE]
        flat, owner = np.concatenate(here), np.repeat(np.arange(len(here)), [len(r) for r in here])
        ends = [left_out(y.rows(flat), without) for y in outputs]
        for first, x in enumerate(inputs):
            begin = left_out(x.rows(flat), without)
            for last in range(first, min(first + reach, depth)):
                turned = angles(begin, ends[last]).cpu().numpy()
                made[start : start + len(here), first, last - first] = _means(turned, owner, len(here))
    return made[by_number(inputs[0])], said


def answering_rows(index: Activations) -> tuple[list[np.ndarray], str]:
    """The rows the answer is read at, for each example: the last one of a text, the cls of an image or else its patches."""
    kinds = column(index, "kind", "token").astype(str)
    edges = np.flatnonzero(np.diff(examples_of(index))) + 1
    each = np.split(np.arange(len(index)), edges)
    if "patch" not in kinds:
        return [rows[-1:] for rows in each], "the last row of each sequence"
    if "cls" in kinds:
        return [rows[kinds[rows] == "cls"] for rows in each], "the cls row of each image"
    return [rows[kinds[rows] == "patch"] for rows in each], "the patches of each image"


def check_width(activations: Activations, without: Sequence[int], argument: str = "without") -> None:
    """Refuse features that are not there.

    Raises:
        InputError: With the feature and the width.
    """
    width = activations.shape[-1]
    strange = [f for f in without if not 0 <= f < width]
    if strange:
        raise InputError(f"{activations.site} has features 0 to {width - 1}; {argument}= names {strange[0]}. Choose among those.")


def by_number(index: Activations) -> np.ndarray:
    """The places of the sequences in the order of their example numbers: a store may hold them in another one."""
    examples = examples_of(index)
    return np.argsort(examples[np.flatnonzero(np.diff(examples, prepend=-1))], kind="stable")


def _unit(x: Tensor) -> Tensor:
    # Scaled by the largest number first: the squares of very large or small rows would leave float64.
    x = x / x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return x / x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _nonzero(x: Tensor) -> Tensor:
    return (x != 0).any(1)


def left_out(x: Tensor, features: Sequence[int]) -> Tensor:
    """Rows in float64 with some features set to zero."""
    x = x.double()
    return x.index_fill(1, torch.tensor(list(features), device=x.device), 0) if len(features) else x


def _means(values: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """Mean of the known values of each example; NaN where it has none."""
    known = np.isfinite(values)
    above = np.bincount(owner[known], values[known], minlength=count)
    below = np.bincount(owner[known], minlength=count)
    return np.divide(above, below, out=np.full(count, np.nan), where=below > 0)
