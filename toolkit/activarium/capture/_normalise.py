"""A block's norm as a function of rows, away from any forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from activarium.errors import unknown

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

ROLES = ("attn.norm", "attn.post", "mlp.norm", "mlp.post")


def normalise(model: TorchRunner, name: str, rows: Tensor) -> Tensor:
    """See `TorchRunner.normalise`."""
    paths: dict[str, str | None] = {}
    for stack in model.anatomy.stacks.values():
        paths[f"{stack.prefix}final_norm"] = stack.final_norm
        for i, block in enumerate(stack.blocks):
            paths |= {f"{stack.prefix}blocks.{i}.{role}": block.modules.get(role) for role in ROLES}
    if name not in paths:
        raise unknown("norm", name, paths)
    path = paths[name]
    # Its own forward, past the hooks: this is no part of a run. Some classes want examples and positions.
    return rows if path is None else model.module(path).forward(rows[None])[0]
