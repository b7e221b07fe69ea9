"""How a site's values lie in a module's raw tensor: whole, cut into heads, or one part of a fused projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from activarium.capture._trace import first_tensor

Cut = tuple[str | int | float, ...] | None


def read_cut(raw: Tensor, cut: Cut) -> Tensor:
    """The site's view of a raw tensor `… width`; never a copy where a view will do.

    Cuts: `None` whole; `("part", start, stop)` a slice; `("heads", start, stop, heads)` a slice in heads;
    `("within", heads, start, stop)` a slice of every head's own share (fused projections that lie head by head);
    `("times", factor)` a write that the block scales before it adds it;
    `("swapped",)` heads before positions, `example head position d_head`;
    `("grid",)` a convolution's `example channel height width`, whose cells are the rows.
    """
    if cut is None:
        return raw
    if cut[0] == "grid":
        return raw.flatten(2).transpose(1, 2)
    if cut[0] == "swapped":
        return raw.transpose(1, 2)
    if cut[0] == "part":
        return raw[..., cut[1] : cut[2]]  # type: ignore[misc]
    if cut[0] == "heads":
        return raw[..., cut[1] : cut[2]].unflatten(-1, (cut[3], -1))  # type: ignore[misc,arg-type]
    if cut[0] == "times":
        return raw * float(cut[1])
    _, heads, start, stop = cut
    return raw.unflatten(-1, (heads, -1))[..., start:stop]  # type: ignore[arg-type,misc]


def write_cut(raw: Tensor, values: Tensor, cut: Cut) -> Tensor:
    """A raw tensor with the site's values replaced; the original is left alone and gradients flow."""
    if cut is None:
        return values
    if cut[0] == "grid":
        return values.transpose(1, 2).reshape(raw.shape)
    if cut[0] == "swapped":
        return values.transpose(1, 2)
    if cut[0] == "times":
        return values / float(cut[1])
    if cut[0] == "within":
        _, heads, start, stop = cut
        share = raw.unflatten(-1, (heads, -1))  # type: ignore[arg-type]
        return torch.cat([share[..., :start], values, share[..., stop:]], -1).flatten(-2)  # type: ignore[misc]
    flat = values.flatten(-2) if cut[0] == "heads" else values
    return torch.cat([raw[..., : cut[1]], flat, raw[..., cut[2] :]], -1)  # type: ignore[misc]


def replace_first(output: Any, tensor: Tensor) -> Any:
    """A module's output with its first tensor replaced, in the container it came in."""
    if isinstance(output, Tensor):
        return tensor
    items = list(output)
    at = next(i for i, v in enumerate(items) if v is first_tensor(output))
    items[at] = tensor
    return type(output)(items)
