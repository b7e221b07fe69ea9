"""How the length of each row's state goes on from layer to layer, and which layers bring it too little: voids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, layer_number, refuse_strange
from activarium.analyses.layers.block_ends import block_ends
from activarium.analyses.layers.redundancy import by_number, check_width
from activarium.errors import InputError
from activarium.recording import Recording


def lengths(values: Tensor, exclude: Sequence[int] = ()) -> Tensor:
    """Length of each row of `row d_model` without some dimensions, in float64."""
    values = values.detach().double()
    if len(exclude):
        values = values.index_fill(1, torch.tensor(list(exclude), device=values.device), 0)
    return values.norm(dim=1)


def thresholds(progress: Tensor, alpha: float) -> Tensor:
    """What each layer's progress is held against, `row layer`: `alpha` times the range of those before it.

    Of no progress or a single one there is no range: the first two layers are held against 0, whatever else is in the batch.
    """
    span = torch.zeros_like(progress)
    span[:, 1:] = (progress.cummax(1).values - progress.cummin(1).values)[:, :-1]
    return alpha * span


def active(progress: Tensor, alpha: float) -> Tensor:
    """Which layers are no voids, boolean `row layer`."""
    return progress >= thresholds(progress, alpha)


def states_of(recording: Recording, stack: str, sites: Mapping[str, Activations], exclude: Sequence[int]) -> dict[str, Activations]:
    """What enters the first block, then what leaves each block, all finite.

    Raises:
        InputError: Blocks are missing, or a dimension that is left out.
        NotFinite: NaN or infinite numbers.
    """
    numbers = [layer_number(site, i) for i, site in enumerate(sites)]
    if numbers != list(range(len(numbers))):
        raise InputError(
            f"The range goes over all layers before one, but this recording has blocks {', '.join(map(str, numbers))}. "
            'Read all of them: model.run(inputs, read=["embed", "blocks.*.resid_post"]).'
        )
    ends = block_ends(recording, stack, sites)
    states = {"": next(iter(ends.values()))[0]} | {name: output for name, (_, output) in ends.items()}
    check_width(states[""], exclude, "exclude_dims")
    for state in states.values():
        refuse_strange(state, "Its length is not known.")
    return states


def progress_by_example(states: Sequence[Activations], exclude: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
    """Example, its first row, and how much longer each layer made its rows, `row layer` in float64.

    One example is in memory at a time, so the numbers do not depend on how the recording is cut into batches.

    Args:
        states: What enters the first block, then what leaves each block.
        exclude: Dimensions left out of every length.
    """
    for (example, start, first), *later in zip(*map(by_example, states), strict=True):
        rows = torch.stack([lengths(v, exclude) for v in (first, *(values for _, _, values in later))], 1)
        yield example, start, rows.diff(dim=1).cpu()


@dataclass(frozen=True, eq=False)
class Tally:
    """Whole numbers, counted sequence by sequence in the order of their example numbers.

    Attributes:
        active: How many rows each layer is active for, `(sequence, group, layer)`.
        rows: How many rows there are, `(sequence, group)`.
        sweep: Active layers of all rows together at each alpha, `(sequence, group, alpha)`.
        used: How many rows use 0, 1, … all layers, `(sequence, group, layers + 1)`.
        progress: Of the example that is shown, `row layer`.
    """

    active: np.ndarray
    rows: np.ndarray
    sweep: np.ndarray
    used: np.ndarray
    progress: Tensor


def tally(
    states: Sequence[Activations],
    groups: Mapping[str, np.ndarray],
    alpha: float,
    alphas: Sequence[float],
    exclude: Sequence[int],
    shown: int,
) -> Tally:
    """Count the active layers of every group of rows."""
    member = np.stack(list(groups.values()), 1).astype(np.int64)
    found: list[tuple[np.ndarray, ...]] = []
    kept = torch.empty(0)
    for example, start, progress in progress_by_example(states, exclude):
        here = member[start : start + len(progress)]
        verdict = active(progress, alpha).numpy()
        swept = np.stack([active(progress, a).sum(1).numpy() for a in alphas], 1)
        used = np.eye(verdict.shape[1] + 1, dtype=np.int64)[verdict.sum(1)]
        found.append((here.T @ verdict, here.sum(0), here.T @ swept, here.T @ used))
        kept = progress if example == shown else kept
    order = by_number(states[0])
    return Tally(*(np.stack(column)[order] for column in zip(*found, strict=True)), progress=kept)
