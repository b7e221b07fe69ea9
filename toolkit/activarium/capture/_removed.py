"""Blocks that do not run at all: each hands its input on, in the type it would have returned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from activarium.errors import InputError

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


@contextmanager
def standing_out(model: TorchRunner, names: Sequence[str]) -> Iterator[None]:
    """See `TorchRunner.removed`. The list of blocks stays as it is: a cache counts its entries by their places in it."""
    keys: dict[str, dict[int, int | str]] = {}  # path → turn → where the stream comes in
    for name in names:
        entry = model.block_entry(name)
        prefix, _, number = name.rpartition("blocks.")
        stack = model.anatomy.stacks[prefix.rstrip(".")]
        if stack.container:
            raise InputError(
                f"{name} hands on more than the stream, so it must run for the blocks after it. Use SkipBlock({name!r}), which saves no time."
            )
        block = stack.blocks[int(number)]
        keys.setdefault(block.path, {})[block.turn] = entry.argument
    turns = {path: sum(b.path == path for s in model.anatomy.stacks.values() for b in s.blocks) for path in keys}
    bound: list[tuple[nn.Module, Any]] = []
    try:
        for path, out in keys.items():
            module = model.module(path)
            bound.append((module, module.__dict__.get("forward")))
            # Past the module's own __setattr__: wrappers of other libraries pass what is set on to what they wrap.
            module.__dict__["forward"] = _handing_on(module.forward, out, turns[path])
        yield
    finally:
        for module, own in bound:
            if own is None:
                module.__dict__.pop("forward", None)  # the class's own forward shows again
            else:
                module.__dict__["forward"] = own  # somebody had replaced it already


def _handing_on(forward: Any, keys: dict[int, int | str], turns: int) -> Any:
    """Modules that several blocks share take turns, and begin again with the next forward."""
    seen = [0]

    def substitute(*args: Any, **kwargs: Any) -> Any:
        turn, seen[0] = seen[0] % turns, seen[0] + 1
        if turn not in keys:
            return forward(*args, **kwargs)
        key = keys[turn]
        return args[key] if isinstance(key, int) else kwargs[key]

    return substitute
