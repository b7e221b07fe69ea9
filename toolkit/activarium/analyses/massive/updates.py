"""What an attention head writes because of its sinks: the part of its update that comes from some keys, and how constant it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from activarium.attention import repeat_heads
from activarium.recording import Recording


def split_update(pattern: Tensor, values: Tensor, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`query head d_head` from these keys, and from all others; together they are the head's output.

    Args:
        pattern: `head query key`.
        values: `key kv_head d_head`; each query head takes the values of its own group.
        keys: Positions of the keys.
    """
    own = repeat_heads(values, pattern.shape[0]).to(pattern.dtype)
    inside = torch.zeros(pattern.shape[-1], dtype=torch.bool, device=pattern.device)
    inside[list(keys)] = True
    first, rest = (torch.einsum("hqk,khd->qhd", pattern[..., chosen], own[chosen]) for chosen in (inside, ~inside))
    return first, rest


def constancy(update: Tensor) -> np.ndarray:
    """Mean distance of the updates `query head d_head` from their mean, over its length, per head; 0 is a constant (a bias)."""
    mean = update.mean(0)
    away = (update - mean).norm(dim=-1).mean(0)
    return (away / mean.norm(dim=-1)).cpu().numpy()


def sink_updates(
    recording: Recording, block: str, example: int, sinks: Sequence[int], others: Sequence[Sequence[int]], length: int, skip: int
) -> dict[str, np.ndarray]:
    """One sequence in one layer, the queries from `skip` on.

    Args:
        recording: Holds `attn.pattern` and `attn.v`.
        block: `blocks.3.attn`.
        example: Number of the sequence.
        sinks: Their positions.
        others: Random sets of as many positions.
        length: Rows that count, the first ones.
        skip: First query.

    Returns:
        Per head: `sinks` and `random` (constancy), `share` (length of the sinks' update over the sum of both lengths); per key/value
        head: `sink norm` and `other norm` (mean length of the values).
    """
    pattern = recording[f"{block}.pattern"].example(example, queries=slice(skip, length)).tensor.double()[..., :length]
    values = recording[f"{block}.v"].example(example).tensor.double()[:length]
    first, rest = split_update(pattern, values, sinks)
    size = first.norm(dim=-1)
    norm = values.norm(dim=-1)
    inside = torch.zeros(length, dtype=torch.bool)
    inside[list(sinks)] = True
    random = [constancy(split_update(pattern, values, keys)[0]) for keys in others]
    return {
        "sinks": constancy(first),
        "random": np.mean(random, 0) if random else np.full(pattern.shape[0], np.nan),
        "share": (size / (size + rest.norm(dim=-1))).mean(0).cpu().numpy(),
        "sink norm": norm[inside].mean(0).cpu().numpy(),
        "other norm": norm[~inside].mean(0).cpu().numpy(),
    }


def random_sets(sinks: Sequence[int], length: int, skip: int, ahead: bool, count: int, seed: int) -> list[list[int]]:
    """As many positions as there are sinks, none of them a sink, all visible to every query that counts."""
    pool = np.setdiff1d(np.arange(length if ahead else skip + 1), list(sinks))
    random = np.random.default_rng(seed)
    return [random.choice(pool, len(sinks), replace=False).tolist() for _ in range(count)] if len(pool) >= len(sinks) else []
