"""One block resolved by arithmetic: which module computes what is read off one traced forward, never off class names."""

from __future__ import annotations

from dataclasses import replace

from activarium.capture._block import Block, Inside, key_of
from activarium.capture._heads import find_attention
from activarium.capture._neurons import find_neurons
from activarium.capture._sites import Place
from activarium.capture._trace import Call, Trace
from activarium.capture._writes import find_writes


def resolve_block(trace: Trace, call: Call) -> Block:
    """Everything that one execution of a block tells."""
    at = Inside(trace, call)
    at.out.places["resid_pre"] = Place(call.path, "input", key_of(call, at.x), call.turn)
    at.out.places["resid_post"] = Place(call.path, "output", turn=call.turn)
    find_attention(at)
    find_neurons(at)
    find_writes(at)
    out = at.out
    out.missing = {n: reason for n, reason in out.missing.items() if n not in out.places and n not in out.equal}
    changed = {(c.path, c.turn, side) for c in (call, *at.calls) for side in c.changed}
    out.places = {n: replace(p, copied=(p.path, p.turn, p.side) in changed) for n, p in out.places.items()}
    return out
