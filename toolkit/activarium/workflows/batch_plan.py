"""Which examples run together: a function of their lengths and one setting, so that a repetition rounds alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from activarium.errors import InputError

BATCH_TOKENS = 4096
BUCKET = 8  # lengths that differ by less share a batch: a little padding for batches that stay full


@dataclass(frozen=True)
class Batch:
    """Examples that run together.

    Attributes:
        members: Their places in the inputs.
        padded: Length that they are padded to, in rows of the first row space.
    """

    members: tuple[int, ...]
    padded: int


def batch_plan(lengths: Sequence[int] | np.ndarray, batch_tokens: int = BATCH_TOKENS) -> tuple[Batch, ...]:
    """Which examples run together? A function of lengths and setting alone.

    Examples are sorted into buckets of like length, longest first, and keep their order within a bucket.

    Args:
        lengths: Rows of each example.
        batch_tokens: Most rows of a batch, padding included; an example longer than that runs alone.

    Raises:
        InputError: A length or the setting is not positive.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; wanted at least 1. The default is {BATCH_TOKENS}.")
    if (lengths < 1).any():
        raise InputError(f"Example {int(np.argmax(lengths < 1))} has no rows. Leave out empty examples, or encode them with a BOS token.")
    order = np.argsort(-lengths // BUCKET, kind="stable")
    batches, members, longest = [], [], 0
    for i in order.tolist():
        grown = max(longest, int(lengths[i]))
        if members and grown * (len(members) + 1) > batch_tokens:
            batches.append(Batch(tuple(members), longest))
            members, grown = [], int(lengths[i])
        members.append(i)
        longest = grown
    return (*batches, Batch(tuple(members), longest)) if members else ()


def portions(batches: Sequence[Batch], sizes: Sequence[int], limit: int) -> list[list[tuple[int, Batch]]]:
    """Which batches share shards? Successive ones of at most `limit` bytes together, each with its place in the plan.

    No shard holds rows of two portions, so that portions can be run anywhere and in any order and give the same files.
    """
    made: list[list[tuple[int, Batch]]] = []
    at, room = 0, 0
    for batch, size in zip(batches, sizes, strict=True):
        if not made or size > room:
            made.append([])
            room = limit
        made[-1].append((at, batch))
        at, room = at + len(batch.members), room - size
    return made


def plan_hash(batches: Sequence[Batch], lengths: np.ndarray, batch_tokens: int) -> str:
    """A hash that differs wherever two plans do."""
    words = json.dumps([batch_tokens, [[b.members, b.padded] for b in batches], lengths.tolist()])
    return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()
