"""How much attention each key receives, summed query by query in float64, and which sequences can be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activarium.analyses.changed_answers import AT_ONCE
from activarium.analyses.massive.seen import seen_keys
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.recording import Recording

USUAL, SHORTEST = 64, 16  # Gu et al. measure at 64 rows; below 16 uniform attention comes near their threshold
SAME = 0.5  # a sequence of which one token fills this share is repetitive


@dataclass(frozen=True, eq=False)
class Received:
    """What the keys of one sequence are given in one layer, in the first `length` rows.

    Attributes:
        importance: Mean attention of the queries that can see a key, `(head, key)`.
        even: What this would be if every query spread its attention evenly over what it sees, `(key,)`.
        late: Mean attention of all queries from `skip` on, `(head, key)`.
        late_even: The same for even attention, `(key,)`.
        queries: How many queries can see a key, `(key,)`.
    """

    importance: np.ndarray
    even: np.ndarray
    late: np.ndarray
    late_even: np.ndarray
    queries: np.ndarray


def received(recording: Recording, site: str, examples: Sequence[int], length: int, skip: int) -> dict[int, Received]:
    """Example → what its keys receive; the pattern is never held whole.

    Args:
        recording: Holds the pattern.
        site: Its name.
        examples: Those to look at.
        length: Rows that count, the first ones.
        skip: First query of `late`.
    """
    pattern = recording[site]
    assert pattern.index is not None
    places = {e: i for i, e in enumerate(pattern.index.examples)}
    sums: dict[int, list[np.ndarray]] = {}
    for tile in pattern.tiles(heads=1 << 20):  # heads of one query block: the mask is then looked up once for all
        if tile.example not in examples or tile.queries.start >= length:
            continue
        values = tile.values[:, : length - tile.queries.start, :length].double()
        seen = seen_keys(recording, site, tile, places[tile.example])[: values.shape[1]].double()
        even = seen[:, :length] / seen.sum(1, keepdim=True)
        late = torch.arange(tile.queries.start, tile.queries.start + values.shape[1]) >= skip
        parts = [values.sum(1), even.sum(0), seen[:, :length].sum(0), values[:, late].sum(1), even[late].sum(0)]
        before = sums.setdefault(tile.example, [np.zeros(p.shape) for p in parts])
        sums[tile.example] = [b + p.cpu().numpy() for b, p in zip(before, parts, strict=True)]
    made = {}
    for example, (given, even, queries, late, late_even) in sums.items():
        asking = np.maximum(queries, 1)
        made[example] = Received(given / asking, even / asking, late / (length - skip), late_even / (length - skip), queries)
    return made


def recordings(source: Runner | Recording, inputs: Any, read: Sequence[str], progress: bool) -> Iterator[Recording]:
    """The recording itself, or one of some inputs at a time."""
    if isinstance(source, Recording):
        yield source
        return
    encoded = source.inputs(inputs)
    with progress_bar(progress, "reading", len(encoded)) as advance:
        for start in range(0, len(encoded), AT_ONCE):
            here = encoded.select(range(start, min(start + AT_ONCE, len(encoded))))
            yield source.run(here, read=[name for name in read if name in source.sites])
            advance(len(here))


def common_length(lengths: Mapping[int, int], length: int | None, ahead: bool) -> int:
    """At how many rows sequences are compared: 64, or what half of them have.

    Raises:
        InputError: No sequence has that many rows.
    """
    sizes = np.array(list(lengths.values()))
    if length is None and ahead:  # nothing can be cut off: the most frequent length
        found, count = np.unique(sizes, return_counts=True)
        return int(found[count.argmax()])
    wanted = min(USUAL, int(np.median(sizes))) if length is None else length
    if not (sizes == wanted if ahead else sizes >= wanted).any():
        raise InputError(
            f"length={wanted} asks for {'exactly ' if ahead else ''}{wanted} rows; the sequences have {sizes.min()} to {sizes.max()}. "
            f"Give a length up to {sizes.max()}, or longer texts."
        )
    return wanted


def repetitive(tokens: np.ndarray) -> bool:
    """Is one token half of the sequence or more? Then rows cannot be told apart and the metric loses its meaning."""
    return len(tokens) > 1 and int(np.unique(tokens, return_counts=True)[1].max()) >= SAME * len(tokens)
