"""Reading every row once, in stored order or mixed: long reads, then batches drawn at random from many blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.errors import InputError
from activarium.recording import is_pattern
from activarium.store._shard import raw_rows
from activarium.store._stored import span_of

if TYPE_CHECKING:
    from activarium.store._derived import Captured

BLOCK_BYTES = 1 << 20  # long enough for a disk to read at full speed, short enough for many to fit in a buffer


def epoch(recording: Captured, site: str | Sequence[str], batch: int, shuffle_blocks: int, seed: int, rows: bool) -> Iterator[Any]:
    """See `Captured.iter_batches`."""
    names = [site] if isinstance(site, str) else list(site)
    groups = [list(recording[name].layers().values()) for name in names]
    sites = [member for group in groups for member in group]
    _check(sites, names, batch, shuffle_blocks)
    sizes = [len(group) if is_pattern(name) else 0 for name, group in zip(names, groups, strict=True)]
    read = _mixed(sites, _blocks(sites), batch, shuffle_blocks, seed) if shuffle_blocks else _in_order(sites, batch)
    return (_shaped(values, index, sizes, isinstance(site, str), rows) for values, index in read)


def _check(sites: Sequence[Activations], names: Sequence[str], batch: int, shuffle_blocks: int) -> None:
    if not sites:
        raise InputError("iter_batches needs a site, or several.")
    if batch < 1 or shuffle_blocks < 0:
        raise InputError(f"batch is {batch} and shuffle_blocks {shuffle_blocks}; wanted at least 1 row, and 0 blocks or more.")
    for one in sites:
        if one.axes[0] not in ("row", "example"):
            raise InputError(
                f"{one.site} has axes {' '.join(one.axes)!r} and so no rows to go through. Read it by .example(e) or .batches()."
            )
        if one.index is not sites[0].index or [p.shape[0] for p in one._parts] != [p.shape[0] for p in sites[0]._parts]:
            raise InputError(
                f"{', '.join(names)} lie on different rows: {sites[0].site} has {len(sites[0])}, {one.site} {len(one)}. Go through one row space at a time."
            )


def _blocks(sites: Sequence[Activations]) -> np.ndarray:
    """Part, first row in it, last row, number of the first row: one line per block."""
    row = sum(int(np.prod(s.shape[1:])) * s.dtype.itemsize for s in sites)
    step = max(1, BLOCK_BYTES // max(row, 1))
    lines, start = [], 0
    for number, part in enumerate(sites[0]._parts):
        size = int(part.shape[0])
        first = np.arange(0, size, step)
        lines.append(np.stack([np.full_like(first, number), first, np.minimum(first + step, size), start + first], axis=1))
        start += size
    return np.concatenate(lines)


def _in_order(sites: Sequence[Activations], batch: int) -> Iterator[tuple[list[Tensor], np.ndarray]]:
    starts = np.cumsum([0, *(int(p.shape[0]) for p in sites[0]._parts)])
    for start in range(0, int(starts[-1]), batch):
        stop = min(start + batch, int(starts[-1]))
        there = range(int(np.searchsorted(starts, start, side="right")) - 1, int(np.searchsorted(starts, stop)))
        cuts = [(p, max(start - int(starts[p]), 0), int(min(stop, starts[p + 1]) - starts[p])) for p in there]
        pieces = [[span_of(site._parts[p], first, last) for p, first, last in cuts] for site in sites]
        yield [torch.cat(p) if len(p) > 1 else p[0].clone() for p in pieces], np.arange(start, stop)


def _mixed(
    sites: Sequence[Activations], blocks: np.ndarray, batch: int, mixed: int, seed: int
) -> Iterator[tuple[list[Tensor], np.ndarray]]:
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(blocks))
    rest: list[Tensor] = []
    numbers = np.empty(0, np.int64)
    for at in range(0, len(order), mixed):
        group = [[rest[i]] if len(numbers) else [] for i in range(len(sites))]
        places = [numbers]
        for part, first, last, start in blocks[order[at : at + mixed]].tolist():
            for site, views in zip(sites, group, strict=True):
                views.append(_present(span_of(site._parts[part], first, last)))
            places.append(np.arange(start, start + last - first))
        numbers = np.concatenate(places)
        shuffled = generator.permutation(len(numbers))
        whole = len(numbers) if at + mixed >= len(order) else len(numbers) - len(numbers) % batch
        for first in range(0, whole, batch):
            chosen = np.sort(shuffled[first : min(first + batch, whole)])
            yield [_gathered(views, chosen) for views in group], numbers[chosen]
        # What is left of a last, short batch joins the next group.
        left = np.sort(shuffled[whole:])
        rest, numbers = [_gathered(views, left) for views in group], numbers[left]


def _present(values: Tensor) -> Tensor:
    """A mapped block whose pages are there: a disk reads one long stretch now, and not a row here and there later."""
    values.contiguous().view(-1).view(torch.uint8).numpy()[::4096].max(initial=0)
    return values


def _gathered(views: Sequence[Tensor], chosen: np.ndarray) -> Tensor:
    """Rows of several tensors, counted through, in ascending order; each is copied once."""
    made = torch.empty((len(chosen), *views[0].shape[1:]), dtype=views[0].dtype)
    if made.numel():
        target, starts = raw_rows(made), np.cumsum([0, *map(len, views)])
        cuts = np.searchsorted(chosen, starts).tolist()
        for view, start, first, last in zip(views, starts.tolist(), cuts, cuts[1:], strict=False):
            if last > first:  # in range already: clipping spares numpy a buffer for the check
                raw_rows(view).take(chosen[first:last] - start, out=target[first:last], mode="clip")
    return made


def _shaped(values: list[Tensor], index: np.ndarray, sizes: Sequence[int], single: bool, rows: bool) -> Any:
    made, at = [], 0
    for size in sizes:
        made.append(torch.stack(values[at : at + size]) if size else values[at])
        at += size or 1
    found = made[0] if single else tuple(made)
    return (found, torch.from_numpy(index)) if rows else found
