"""Queries, keys and values of one block: projections told apart by what the attention kernel received."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from activarium.capture._block import Inside, first_input, is_linear, key_of, same
from activarium.capture._cuts import Cut, read_cut
from activarium.capture._entrances import find_entrance
from activarium.capture._sites import Place
from activarium.capture._trace import AttentionCall, Call

OUTSIDE = "its attention does not pass through the attention interface"
ALIKE = 0.6  # mean cosine at position 0: rotation does nothing there, a norm's gains little; other projections give about 0


def find_attention(at: Inside) -> None:
    """Self-attention, then cross-attention, of one block."""
    names = [f"attn.{n}" for n in ("q", "k", "v", "z", "proj", "in")]
    if not at.attention:
        return at.lack(names, OUTSIDE)
    paths = [a.path for a in at.attention]
    cross = at.attention[1:]
    if len(set(paths)) < len(paths) or len(paths) > 2 or any(a.q.shape[2] == a.k.shape[2] for a in cross):
        at.attention = []
        return at.lack(names, f"its attention runs the kernel {len(paths)} times in one block")
    for name, attention in zip(("attn", "cross"), at.attention, strict=False):
        _one(at, name, attention)


def _one(at: Inside, name: str, a: AttentionCall) -> None:
    heads, kv_heads, d = a.q.shape[1], a.k.shape[1], a.q.shape[-1]
    at.out.sizes |= {f"{name}.heads": heads, f"{name}.kv_heads": kv_heads, f"{name}.d_head": d, f"{name}.d_value": a.v.shape[-1]}
    at.out.attention[name] = a.path
    # A module that ran earlier in this block for another attention is not ours.
    inner = [c for c in at.calls if is_linear(c.module) and c.path.startswith(a.path + ".") and c.start < a.start and c.output is not None]
    found = _tell_apart(a, inner)
    for letter, (call, cut) in found.items():
        at.out.places[f"{name}.{letter}"] = Place(call.path, "output", turn=call.turn, cut=cut)
        rotated = {"q": a.q, "k": a.k}.get(letter)
        if rotated is not None and same(read_cut(call.output, cut), rotated.transpose(1, 2)):  # type: ignore[arg-type]
            at.out.equal[f"{name}.{letter}_rot"] = f"{name}.{letter}"
    _entrance(at, name, a, found, inner)
    if "v" not in found and inner:
        at.out.kernel.add(f"{name}.v")
    at.lack([f"{name}.{n}" for n in "qkv"], "no single projection gives it; what enters the scores is there")
    _output_projection(at, name, a)


def _entrance(at: Inside, name: str, a: AttentionCall, found: dict[str, tuple[Call, Cut]], inner: list[Call]) -> None:
    """The sub-layer's input, and the weights that take it in directly."""
    own = [c for letter, (c, _) in found.items() if name == "attn" or letter == "q"]
    fits = [c for c in (own if len(found) == 3 else inner) if (v := first_input(c)) is not None and v.numel() == at.x.numel()]
    if not fits:
        return at.lack([f"{name}.in"], "its readers share no module that takes it in")
    value = first_input(fits[0])
    find_entrance(at, name, [c for c in fits if same(first_input(c), value)])
    for letter, (call, cut) in found.items():
        if name == "cross" or same(first_input(call), value):
            at.out.weights[f"{name}.W_{letter.upper()}"] = (call.path, cut)


def _output_projection(at: Inside, name: str, a: AttentionCall) -> None:
    flat, heads = a.z.flatten(-2), a.z.shape[-2]
    later = [c for c in at.calls if c.start > a.start and is_linear(c.module)]
    proj = next((c for c in later if same(first_input(c), flat)), None)
    if proj is not None:
        cut: Cut = ("heads", 0, flat.shape[-1], heads)
        at.out.places[f"{name}.z"] = Place(proj.path, "input", key_of(proj, flat), proj.turn, cut)
        at.out.weights[f"{name}.W_O"] = (proj.path, cut)
    else:
        proj = next((c for c in later if c.path.startswith(a.path + ".") and at.wide(c.output)), None)
        if proj is None:
            return at.lack([f"{name}.z", f"{name}.proj", f"{name}.out"], "no linear module takes in the mixed heads")
        at.out.kernel.add(f"{name}.z")
        at.out.missing[f"{name}.head_out"] = "a gate or a norm stands between its mixed heads and the output projection"
    at.projections.append(proj)
    at.out.places[f"{name}.proj"] = Place(proj.path, "output", turn=proj.turn)


def _tell_apart(a: AttentionCall, inner: Sequence[Call]) -> dict[str, tuple[Call, Cut]]:
    """Values are told by equality; queries and keys by position 0, where rotation does nothing."""
    exact = next((o for o in _options(inner, a.v) if torch.equal(_seen(*o, a.v), a.v)), None)
    found = {} if exact is None else {"v": exact}
    for letter, wanted in (("q", a.q), ("k", a.k)):
        free = [o for o in _options(inner, wanted) if o not in found.values()]
        likeness = [_likeness(_seen(*o, wanted), wanted) for o in free]
        best = max(range(len(free)), key=likeness.__getitem__, default=None)
        if best is not None and likeness[best] >= ALIKE:
            found[letter] = free[best]
    return {letter: found[letter] for letter in "qkv" if letter in found}


def _seen(call: Call, cut: Cut, like: Tensor) -> Tensor:
    """A projection's heads as the kernel takes them, `batch head row d_head`."""
    assert call.output is not None
    batch, heads, rows, d = like.shape
    return read_cut(call.output, cut).reshape(batch, rows, heads, d).transpose(1, 2)


def _options(inner: Sequence[Call], like: Tensor) -> Iterator[tuple[Call, Cut]]:
    """Every way in which a projection may hold heads of this shape: alone, side by side with others, or head by head."""
    batch, heads, rows, d = like.shape
    for call in inner:
        assert call.output is not None
        width = call.output.shape[-1]
        if tuple(call.output.shape[:-1]) not in ((batch, rows), (batch * rows,)):
            continue
        for start in range(0, width - heads * d + 1, d):
            yield call, ("heads", start, start + heads * d, heads)
        if width % heads == 0 and width > heads * d:
            for start in range(0, width // heads - d + 1, _step(width // heads, d)):
                yield call, ("within", heads, start, start + d)


def _step(width: int, d: int) -> int:
    """Parts of a head's share begin at multiples of their common measure."""
    return next(n for n in range(d, 0, -1) if width % n == 0 and d % n == 0)


def _likeness(ours: Tensor, rotated: Tensor) -> float:
    """Mean cosine per head at position 0 between a projection and what entered the scores."""
    return float(torch.nn.functional.cosine_similarity(ours[:, :, 0].float(), rotated[:, :, 0].float(), dim=-1).mean())
