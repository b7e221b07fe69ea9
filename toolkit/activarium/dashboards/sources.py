"""Where a feature of attention's output comes from: which position, through which head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.dashboards.contexts import TOP, Contexts
from activarium.dictionaries import SAE
from activarium.errors import InputError, UnknownSite, unknown
from activarium.recording import Recording


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares of some contexts, `head position` each, one after the other.

    Attributes:
        values: All of them, flat.
        place: Where those of each context begin, and where the last one's end.
        heads: Query heads.
    """

    values: np.ndarray
    place: np.ndarray
    heads: int

    def part(self, first: int, last: int) -> dict[str, np.ndarray]:
        """As arrays for the contexts from `first` to `last`."""
        place = self.place[first : last + 1]
        told = {"sources": self.values[place[0] : place[-1]], "sources_place": place - place[0]}
        return told | {"sources_heads": np.array([self.heads], np.int64)}


def sources_of(given: Any, recording: Recording, contexts: Contexts, features: Sequence[int]) -> Shares | None:
    """Shares of the largest contexts of some features; None where none are asked for.

    Raises:
        InputError: The dictionary does not read `attn.z` with one matrix, or a feature has no page.
        UnknownSite: The recording lacks the block's `attn.pattern` or `attn.v`.
    """
    if not features:
        return None
    place = {f: i for i, f in enumerate(given.features)}
    strange = [f for f in features if f not in place]
    if strange:
        raise InputError(f"sources= names feature {strange[0]}, of which no page is built. Name it in features= too.")
    wanted = {place[f]: f for f in features}
    parts, heads = [np.empty(0, np.float32)] * len(contexts.row), 0
    for i in np.flatnonzero(np.isin(contexts.feature, list(wanted)) & (contexts.band == TOP)):
        shares = source_shares(given.dictionary, recording, wanted[int(contexts.feature[i])], int(contexts.row[i]), given.site)
        parts[i], heads = shares.flatten().numpy().astype(np.float32), len(shares)
    return Shares(np.concatenate(parts), np.r_[0, np.cumsum([len(p) for p in parts])].astype(np.int64), heads)


@torch.no_grad()
def source_shares(dictionary: Any, recording: Recording, feature: int, row: int, site: str = "") -> Tensor:
    """A feature's value before its nonlinearity as a sum over heads and positions: A[h, t, s] · (v[h, s] · W_enc[h]), `head position`.

    Biases are left out: they come from no position. Where several query heads share keys and values, head h reads value head h // group.

    Args:
        dictionary: An SAE of `attn.z` that does not rescale rows.
        recording: Holds the block's `attn.pattern` and `attn.v`.
        feature: Which feature.
        row: Number of the row in the recording.
        site: The site, if the dictionary's origin does not say.

    Raises:
        InputError: The dictionary reads another site, or rescales rows.
        UnknownSite: The pattern or the values were not recorded.
    """
    site = site or getattr(getattr(dictionary, "origin", None), "site", "")
    if not site.endswith("attn.z") or not isinstance(dictionary, SAE) or dictionary.design.scaling != "none":
        raise InputError(
            f"Only what an SAE reads from `attn.z`, without rescaling rows, is a sum over positions and heads; this one reads {site or 'an unnamed site'}."
        )
    block = site.removesuffix(".z")
    for name in (f"{block}.pattern", f"{block}.v"):
        if name not in recording:
            raise unknown("site in this recording", name, list(recording), UnknownSite)
    index = recording[site].index
    if index is None:
        raise InputError(f"{site} has no row table, so the positions of a row's example are not known.")
    example = int(index["example"][row])
    query = row - index.span(example).start
    pattern = recording[f"{block}.pattern"].example(example, queries=query).tensor[:, 0].float()  # head key
    values = recording[f"{block}.v"].example(example).tensor.float()  # key value_head d_head
    reads = dictionary.encoder[feature].float().unflatten(0, (len(pattern), -1))  # head d_head
    values = values.repeat_interleave(len(pattern) // values.shape[1], dim=1)
    return pattern * torch.einsum("khd,hd->hk", values, reads)
