"""One traced forward: what went into and came out of every module, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One execution of one module.

    Attributes:
        path: Dotted module path.
        module: The module itself.
        start: Position in the order of starts.
        turn: How often this module had run before (shared layers run many times).
        inputs: Tensor arguments by their place: position or keyword.
        output: The first tensor that came out.
        container: True if it came out inside a tuple.
        changed: Sides (`input`, `output`) whose tensors were changed in place later in the forward.
    """

    path: str
    module: nn.Module
    start: int
    turn: int
    inputs: dict[int | str, Tensor]
    output: Tensor | None = None
    container: bool = False
    end: int = -1
    changed: set[str] = field(default_factory=set)


@dataclass
class AttentionCall:
    """One execution of the attention function: `q k v` are `batch head row d_head`, `z` is `batch row head d_head`.

    Attributes:
        causal: Whether a query saw no key after its own position.
    """

    path: str
    start: int
    q: Tensor
    k: Tensor
    v: Tensor
    z: Tensor
    causal: bool


@dataclass
class Trace:
    """All calls of one forward, by start; `output` is what the model returned."""

    calls: list[Call] = field(default_factory=list)
    attention: list[AttentionCall] = field(default_factory=list)
    output: Any = None

    def inside(self, call: Call) -> list[Call]:
        """Calls that ran while this one ran, itself excluded."""
        return [c for c in self.calls if call.start < c.start <= call.end]


def first_tensor(value: Any) -> Tensor | None:
    """The tensor a module returned, alone or as the first tensor of a tuple."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)):
        return next((v for v in value if isinstance(v, Tensor)), None)
    return None


@contextmanager
def tracing(model: nn.Module, trace: Trace) -> Iterator[Callable[[], int]]:
    """Hooks on every module while the block runs; yields the clock that orders events."""
    clock, turns, open_calls, handles = [0], {}, [], []
    held: list[tuple[Call, str, Tensor, int]] = []  # torch counts every change in place

    def tick() -> int:
        clock[0] += 1
        return clock[0]

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            places = [*enumerate(args), *kwargs.items()]
            inputs = {k: v.detach().clone() for k, v in places if isinstance(v, Tensor)}
            call = Call(path, module, tick(), turns.get(path, 0), inputs)
            turns[path] = call.turn + 1
            held.extend((call, "input", v, v._version) for _, v in places if isinstance(v, Tensor) and not v.is_inference())
            trace.calls.append(call)
            open_calls.append(call)

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = open_calls.pop()
        tensor = first_tensor(output)
        call.output = None if tensor is None else tensor.detach().clone()
        if tensor is not None and not tensor.is_inference():
            held.append((call, "output", tensor, tensor._version))
        call.container, call.end = isinstance(output, (tuple, list)), clock[0]

    try:
        for path, module in model.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        with torch.no_grad():
            yield tick
    finally:
        for call, side, value, version in held:
            if value._version != version:
                call.changed.add(side)
        for handle in handles:
            handle.remove()
