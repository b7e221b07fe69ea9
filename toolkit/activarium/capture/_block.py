"""What was found in one block, and what ran inside it: the ground on which roles are told by arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from activarium.capture._cuts import Cut
from activarium.capture._sites import Place
from activarium.capture._trace import AttentionCall, Call, Trace


@dataclass
class Block:
    """What was found in one block. Places are by short site name (`attn.q`); a name in `missing` maps to the reason.

    Attributes:
        algebra: `pre-norm`, `parallel`, `post-norm`, `single` (one sub-layer), or `unknown`.
        modules: Role → module path: `attn.norm`, `attn.post`, `mlp.norm`, `mlp.post`, `mlp.activation`.
        weights: Weight name → (module path, cut along its output or input).
        attention: `attn` or `cross` → path of the module that calls the kernel.
        writers: Sub-layers that add to the stream, in order: `attn`, `cross`, `mlp`.
        gained: Sub-layers whose projection is scaled per feature, by no module, before it is added.
        kernel: Sites that only the attention kernel shows (`attn.v` where it is joined from several projections).
        sizes: `heads kv_heads d_head` per attention, `d_mlp`, `d_model`.
    """

    algebra: str = "unknown"
    places: dict[str, Place] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    weights: dict[str, tuple[str, Cut]] = field(default_factory=dict)
    attention: dict[str, str] = field(default_factory=dict)
    writers: tuple[str, ...] = ()
    gained: set[str] = field(default_factory=set)
    kernel: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)
    turn: int = 0
    path: str = ""


class Inside:
    """One execution of a block: the stream before and after, and every call in between."""

    def __init__(self, trace: Trace, call: Call) -> None:
        assert call.output is not None
        self.call, self.out = call, Block(turn=call.turn, path=call.path)
        self.y = call.output
        self.x = next(t for t in call.inputs.values() if t.shape == self.y.shape)
        self.calls = trace.inside(call)
        self.attention: list[AttentionCall] = [a for a in trace.attention if call.start < a.start <= call.end]
        self.projections: list[Call] = []
        self.down: Call | None = None
        self.out.sizes["d_model"] = self.x.shape[-1]

    def wide(self, value: Tensor | None) -> bool:
        """Has it the stream's rows and width?"""
        if value is None or value.numel() != self.x.numel() or value.shape[-1] != self.x.shape[-1]:
            return False
        return value.ndim == 2 or value.shape[:2] == self.x.shape[:2]  # some code puts positions before examples

    def output_of(self, name: str) -> Tensor | None:
        """What a site's module gave."""
        place = self.out.places[name]
        return next(c.output for c in self.calls if c.path == place.path and c.turn == place.turn)

    def after(self, first: Call) -> Iterator[Call]:
        """Calls that end no earlier than one and have the stream's shape, that one first, equal values once."""
        return distinct(
            sorted((c for c in self.calls if c.end >= first.end and self.wide(c.output)), key=lambda c: (c is not first, c.end, -c.start))
        )

    def lack(self, names: Sequence[str], reason: str) -> None:
        """These sites are missing, unless they were found."""
        self.out.missing |= {n: reason for n in names if n not in self.out.places and n not in self.out.kernel}

    def drop(self, names: Sequence[str], reason: str) -> None:
        """These sites were found, but are not what their names say."""
        for name in names:
            self.out.places.pop(name, None)
            self.out.equal.pop(name, None)
            self.out.missing[name] = reason


def distinct(calls: Sequence[Call]) -> Iterator[Call]:
    """Calls without those whose values were seen before."""
    seen: list[Tensor] = []
    for call in calls:
        if call.output is not None and not any(same(call.output, s) for s in seen):
            seen.append(call.output)
            yield call


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal bit for bit, up to flattening of the leading axes."""
    if a is None or b is None or a.numel() != b.numel() or a.shape[-1] != b.shape[-1] or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))


def first_input(call: Call) -> Tensor | None:
    """The first tensor that a call was given."""
    return next(iter(call.inputs.values()), None)


def is_linear(module: nn.Module) -> bool:
    """A leaf that multiplies by a matrix (Linear, Conv1D, quantised linears)."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding) and not list(module.children())


def key_of(call: Call, value: Tensor) -> int | str:
    """Under which position or keyword a value was given."""
    return next(k for k, t in call.inputs.items() if same(t, value))


def place_of_input(call: Call, value: Tensor) -> Place | None:
    """Where this value enters a call."""
    key = next((k for k, t in call.inputs.items() if same(t, value)), None)
    return None if key is None else Place(call.path, "input", key, call.turn)


def row_wise(call: Call) -> bool:
    """Does this module treat every row for itself? Tried: its last row alone gives what it gave among the others."""
    value = first_input(call)
    if value is None or call.output is None or value.ndim < 2:
        return False
    try:
        with torch.no_grad():
            alone = type(call.module).forward(call.module, value[..., -1:, :])
    except Exception:  # it takes more than one row, or more than rows
        return False
    wanted = call.output[..., -1:, :]
    return isinstance(alone, Tensor) and alone.shape == wanted.shape and torch.allclose(alone, wanted, rtol=1e-4, atol=1e-5)
