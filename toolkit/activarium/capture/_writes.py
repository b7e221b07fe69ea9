"""What a block adds to its stream: the module outputs whose sum, found by search, is what the block returns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from activarium.capture._block import Inside, distinct, first_input, is_linear, key_of, place_of_input, row_wise, same
from activarium.capture._entrances import find_norm
from activarium.capture._neurons import INNER
from activarium.capture._sites import Place
from activarium.capture._trace import Call

PARALLEL = "its attention and MLP run in parallel"
EXPERTS = "experts, or a gate, make what it adds; no one projection of neurons does"
ALONE = "this block has one sub-layer"
Write = tuple[Call, float]  # a module's output, and the factor that the block puts before it


def find_writes(at: Inside) -> None:
    """Sequential sums, sums with a norm after each, parallel sums, and blocks of one sub-layer."""
    firsts: list[Call | None] = [*at.projections] if at.attention and len(at.projections) == len(at.attention) else [None]
    for scaled in (False, True):
        if _sequential(at, firsts, scaled) or _parallel(at, firsts[0]) or _single(at, scaled):
            return
    unknown = "something else than its sub-layers is added inside the block"
    at.lack(("attn.out", "mlp.out", "resid_mid"), unknown)
    at.drop([n for n in INNER if n in at.out.places or n in at.out.equal], f"{unknown}, so these may not be all of its neurons")


def _sequential(at: Inside, firsts: Sequence[Call | None], scaled: bool) -> bool:
    for post in (False, True):
        stream, middle, writes = at.x, [], []
        for first in firsts:
            step = _join(at, stream, first, scaled, post)
            if step is None:
                break
            write, stream, place = step
            writes.append(write)
            middle.append(place)
        else:
            last = _last(at, stream, writes[-1][0], post, scaled)
            if last is not None:
                _keep(at, "post-norm" if post else "pre-norm", _rooms(firsts), [*writes, last], middle)
                return True
    return False


def _rooms(firsts: Sequence[Call | None]) -> list[str]:
    return [*("attn", "cross")[: len(firsts)], "mlp"]


def _join(at: Inside, stream: Tensor, first: Call | None, scaled: bool, post: bool) -> tuple[Write, Tensor, Place] | None:
    """The write that, added to the stream, is what a later module takes in; with `post`, what that module gives goes on."""
    for write in _candidates(at, first):
        for call in at.calls:
            if call.start <= (first or write).start:
                continue
            for value in call.inputs.values():
                factor = _factor(stream, write.output, value, scaled)
                if factor is None:
                    continue
                place = place_of_input(call, value)
                if not post:
                    return (write, factor), value.reshape(stream.shape), place  # type: ignore[return-value]
                if call.output is not None and call.output.numel() == stream.numel() and row_wise(call):
                    return (write, factor), call.output.reshape(stream.shape), Place(call.path, "output", turn=call.turn)
    return None


def _candidates(at: Inside, first: Call | None) -> list[Call]:
    if first is not None:
        return list(at.after(first))
    # No kernel was seen: whatever ran before the MLP may be its mixer's write.
    until = at.down.start if at.down is not None else float("inf")
    return [c for c in distinct([c for c in at.calls if c.start < until and at.wide(c.output)]) if not same(c.output, at.x)]


def _factor(stream: Tensor, write: Tensor | None, total: Tensor, scaled: bool) -> float | None:
    """The factor with which a write and the stream add up to this total, or None."""
    assert write is not None
    if total.numel() != stream.numel() or total.shape[-1] != stream.shape[-1] or total.dtype != stream.dtype:
        return None
    write, total = write.reshape(stream.shape), total.reshape(stream.shape)
    if not scaled:
        return 1.0 if torch.equal(stream + write, total) else None
    rest = (total - stream).double()
    size = float((rest * write.double()).sum() / write.double().square().sum().clamp_min(1e-30))
    for digits in (3, 6):  # configurations write such factors with few digits
        factor = round(size, digits)
        if factor and torch.allclose(stream + write * factor, total, rtol=0, atol=1e-6 * float(total.abs().max())):
            return factor
    return size if size and torch.allclose((write.double() * size), rest, rtol=0, atol=1e-6 * float(total.abs().max())) else None


def _last(at: Inside, stream: Tensor, before: Call, post: bool, scaled: bool) -> Write | None:
    options = list(at.after(at.down)) if at.down is not None else [c for c in at.after(before) if c.start > before.start]
    for write in options:
        if not post:
            if (factor := _factor(stream, write.output, at.y, scaled)) is not None:
                return write, factor
            continue
        ends = [c for c in at.calls if same(c.output, at.y) and row_wise(c)]
        for norm in ends:
            value = first_input(norm)
            if value is not None and (factor := _factor(stream, write.output, value, scaled)) is not None:
                at.out.modules["mlp.end"] = norm.path
                return write, factor
    return None


def _parallel(at: Inside, first: Call | None) -> bool:
    for a in _candidates(at, first):
        for b in at.after(at.down) if at.down is not None else _candidates(at, None):
            if a is b:
                continue
            u, v = a.output.reshape(at.x.shape), b.output.reshape(at.x.shape)  # type: ignore[union-attr]
            if any(same(p + q + r, at.y) for p, q, r in permutations((at.x, u, v))):
                _keep(at, "parallel", ["attn", "mlp"], [(a, 1.0), (b, 1.0)], [])
                at.out.missing["resid_mid"] = PARALLEL
                return True
    return False


def _single(at: Inside, scaled: bool) -> bool:
    """A block that is one sub-layer alone: attention, a mixer of another kind, or an MLP."""
    if len(at.attention) > 1:
        return False
    for write in distinct(sorted((c for c in at.calls if at.wide(c.output)), key=lambda c: (c.end, -c.start))):
        factor = _factor(at.x, write.output, at.y, scaled)
        if factor is None:
            continue
        room = "mlp" if at.down is not None and not at.attention else "attn"
        if room == "attn":
            at.drop(INNER, ALONE)
            at.down = None
        _keep(at, "single", [room], [(write, factor)], [])
        at.out.missing["resid_mid"] = ALONE
        at.lack(["mlp.out"] if room == "attn" else [n for n in at.out.missing if n.startswith("attn.")], ALONE)
        return True
    return False


def _keep(at: Inside, algebra: str, rooms: list[str], writes: list[Write], middle: list[Place]) -> None:
    out = at.out
    out.algebra, out.writers = algebra, tuple(rooms)
    for room, (write, factor) in zip(rooms, writes, strict=True):
        place = Place(write.path, "output", turn=write.turn, cut=None if factor == 1.0 else ("times", factor))
        linked = f"{room}.proj" in out.places and _linked(at, room, write)
        if room == "mlp" and not linked:
            _whole(at, write, place)
        elif linked and factor == 1.0 and same(write.output, at.output_of(f"{room}.proj")):
            out.equal[f"{room}.out"] = f"{room}.proj"
        else:
            out.places[f"{room}.out"] = place
    for name, place in zip(("resid_mid", "resid_cross"), middle, strict=False):
        out.places[name] = place
    if middle and algebra == "post-norm":
        _post_norm(at, rooms, middle)


def _linked(at: Inside, room: str, write: Call) -> bool:
    """Is the write the projection itself, or one module that takes in nothing but it?"""
    proj = at.output_of(f"{room}.proj")
    if same(write.output, proj):
        return True
    if same(first_input(write), proj) and row_wise(write):
        at.out.modules[f"{room}.post"] = write.path
        return True
    assert write.output is not None
    assert proj is not None
    rows, ours = write.output.reshape(-1, write.output.shape[-1]), proj.reshape(-1, proj.shape[-1])
    if torch.allclose(ours * per_feature(ours, rows), rows, rtol=1e-4, atol=1e-6):
        at.out.gained.add(room)  # LayerScale without a module
        return True
    return False


def _post_norm(at: Inside, rooms: list[str], middle: list[Place]) -> None:
    for room, place in zip(rooms, middle, strict=False):
        at.out.modules[f"{room}.end"] = place.path
    entrance = at.out.places.get("attn.in")
    if entrance and middle[0].path.startswith(entrance.path + "."):
        at.drop(["attn.in"], "its attention module takes the stream in and adds it again; edit q, k or v")


def per_feature(before: Tensor, after: Tensor) -> Tensor:
    """The factor per feature that turns one matrix `row d_model` best into another."""
    return (before * after).sum(0) / before.square().sum(0).clamp_min(1e-30)


def _whole(at: Inside, write: Call, place: Place) -> None:
    """Experts: only what enters and leaves the whole of them has one row per token."""
    at.drop(INNER, EXPERTS)
    for role in ("mlp.activation", "mlp.norm"):
        at.out.modules.pop(role, None)
    for weight in [w for w in at.out.weights if w.startswith("mlp.")]:
        del at.out.weights[weight]
    at.out.places["mlp.out"] = place
    experts = _before_norms(at, write)
    value = first_input(experts)
    if value is not None and value.numel() == at.x.numel():
        at.out.places["mlp.in"] = Place(experts.path, "input", key_of(experts, value), experts.turn)
        at.out.missing.pop("mlp.in", None)
        find_norm(at, "mlp", value, experts.start, experts.path)


def _before_norms(at: Inside, write: Call) -> Call:
    """The experts themselves, where a norm follows them."""
    if any(map(is_linear, write.module.modules())) or not row_wise(write):
        return write
    value = first_input(write)
    return next((c for c in at.calls if c.start < write.start and same(c.output, value) and first_input(c) is not None), write)
