"""Which keys a query can see at all: what uniform attention would be, and where attention can be looked for."""

from __future__ import annotations

import torch
from torch import Tensor

from activarium._parts import Tile
from activarium.attention import opened, visible
from activarium.recording import Recording


def seen_keys(recording: Recording, site: str, tile: Tile, place: int) -> Tensor:
    """Boolean `query key`: may these queries look at these keys?

    Taken from the mask that the attention ran under. Where that was not recorded, a key that no head looks at counts as hidden.

    Args:
        recording: Holds the pattern.
        site: Its name, `blocks.3.attn.pattern`.
        tile: Some heads and queries of it.
        place: Which example of the recording this is, counted from 0.
    """
    spec = recording.attention.get(site.rpartition(".")[0])
    *_, asking, keys = tile.values.shape
    if spec is None:
        return (tile.values != 0).flatten(0, -3).any(0)
    queries = range(tile.queries.start, tile.queries.start + asking)
    mask = visible(queries, range(keys), spec, tile.values.device)
    if spec.mask is None:
        return mask
    own = opened(spec.mask[min(place, len(spec.mask) - 1)][:, tile.queries, :keys]).any(0)
    return mask & own.to(mask.device) if own.shape == mask.shape else mask & torch.broadcast_to(own.to(mask.device), mask.shape)


def rows_ahead(recording: Recording, site: str) -> bool:
    """Can a query of this attention see keys behind it?"""
    for tile in recording[site].tiles(queries=1 << 30, heads=1 << 20):
        if tile.values.shape[-1] > 1:
            return bool(seen_keys(recording, site, tile, 0).triu(1).any())
    return False
