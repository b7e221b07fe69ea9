"""Attention and MLP of each block as blocks of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layers.block_ends import Blocks
from activarium.analyses.layers.redundancy import Pair, sums
from activarium.recording import Recording


def sublayers(recording: Recording, blocks: Blocks) -> dict[str, list[Pair]]:
    """Name → its input and output in each block; nothing where some block lacks the sites."""

    def all_blocks(ending: str) -> list[Activations] | None:
        return [recording[f"{b}.{ending}"] for b in blocks] if all(f"{b}.{ending}" in recording for b in blocks) else None

    before, after = [x for x, _ in blocks.values()], [y for _, y in blocks.values()]
    if mid := all_blocks("resid_mid"):
        cross = all_blocks("resid_cross")
        chain = [before, mid, *([cross] if cross else []), after]
        names = ["attention", *(["cross-attention"] if cross else []), "mlp"]
        return {n: [(x, (y,), False) for x, y in zip(a, b, strict=True)] for n, a, b in zip(names, chain[:-1], chain[1:], strict=True)}
    # Side by side there is no order: each is added to the block's own input.
    writes = {name: all_blocks(f"{short}.out") for name, short in (("attention", "attn"), ("mlp", "mlp"))}
    if not all(writes.values()):
        return {}
    return {f"{n} alone": [(x, (w,), True) for x, w in zip(before, found or (), strict=True)] for n, found in writes.items()}


def sublayer_sums(
    pairs: Mapping[str, list[Pair]], groups: Mapping[str, np.ndarray], without: Sequence[int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sublayer → summed influence and rows, `(sequence, block)`."""
    made = {}
    for name, per_block in pairs.items():
        found = [sums(pair, groups, without) for pair in per_block]
        made[name] = np.stack([f.above[:, 0, 0] for f in found], 1), np.stack([f.below[:, 0] for f in found], 1)
    return made
