"""The MLP of one block: its neurons are what the down projection takes in, if they follow row by row from what went before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from activarium.capture._block import Inside, first_input, is_linear, key_of, same
from activarium.capture._cuts import Cut, read_cut
from activarium.capture._entrances import find_entrance
from activarium.capture._sites import Place
from activarium.capture._trace import Call

INNER = ("mlp.in", "mlp.pre", "mlp.act", "mlp.up", "mlp.post", "mlp.proj")
BRANCHES = ("mlp.pre", "mlp.act", "mlp.up")
UNGATED = "its MLP has no gate"
Branch = tuple[Call, Cut]


def find_neurons(at: Inside) -> None:
    """The down projection and the branches that lead to it."""
    attention = tuple(p + "." for p in at.out.attention.values())
    used = {id(c) for c in at.projections}
    linear = [c for c in at.calls if is_linear(c.module) and not c.path.startswith(attention) and id(c) not in used]
    downs = sorted((c for c in linear if at.wide(c.output)), key=lambda c: -c.start)
    if not downs:
        return at.lack(INNER, "no linear module projects back to the residual width (mixture of experts?)")
    # Without the kernel, attention's own output projection is among them: an MLP is one whose neurons are accounted for.
    down = downs[0] if at.attention else next((c for c in downs if _branches(at, c, linear)), None)
    if down is None:
        return at.lack(INNER, "no linear module takes in what an activation gives, row by row")
    at.down = down
    post = first_input(down)
    assert post is not None
    at.out.sizes["d_mlp"] = post.shape[-1]
    at.out.places["mlp.post"] = Place(down.path, "input", key_of(down, post), down.turn)
    at.out.places["mlp.proj"] = Place(down.path, "output", turn=down.turn)
    at.out.weights["mlp.W_down"] = (down.path, None)
    found = _branches(at, down, linear)
    if found is None:
        return at.lack((*BRANCHES, "mlp.in"), "its neurons are no product of an activation and a branch that can be told apart")
    _keep(at, *found)


def _keep(at: Inside, gate: Branch, up: Branch | None, activation: Call | None) -> None:
    """Write down the branches."""
    (call, cut), out = gate, at.out
    out.places["mlp.pre"] = Place(call.path, "output", turn=call.turn, cut=cut)
    out.weights["mlp.W_in" if up is None else "mlp.W_gate"] = (call.path, cut)
    if activation is not None:
        out.modules["mlp.activation"] = activation.path
    if up is None:
        out.equal["mlp.act"] = "mlp.post"
        out.missing["mlp.up"] = UNGATED
    else:
        out.places["mlp.up"] = Place(up[0].path, "output", turn=up[0].turn, cut=up[1])
        out.weights["mlp.W_in"] = (up[0].path, up[1])
        if activation is not None:
            out.places["mlp.act"] = Place(activation.path, "output", turn=activation.turn)
        at.lack(["mlp.act"], "no module computes the activation on its own; it is post divided by up")
    find_entrance(at, "mlp", list({c.path: c for c, _ in (gate, *([up] if up else []))}.values()))


def _branches(at: Inside, down: Call, linear: list[Call]) -> tuple[Branch, Branch | None, Call | None] | None:
    """Gate (or the only branch), linear branch and activation module that together give the neurons."""
    post = first_input(down)
    if post is None or post.numel() % post.shape[-1]:
        return None
    options = [(c, cut) for c in linear if c.start < down.start for cut in _halves(c, post)]
    for branch in options:
        for call in _activations(at, read_cut(branch[0].output, branch[1])):  # type: ignore[arg-type]
            if same(call.output, post):
                return branch, None, call
            up = next((u for u in options if u != branch and _near(call.output, u, post)), None)
            if up is not None:
                return branch, up, call
    return _functional(options, post)


def _halves(call: Call, post: Tensor) -> Iterator[Cut]:
    """The whole of a projection, or either half of one that holds both branches."""
    rows, width = post.numel() // post.shape[-1], post.shape[-1]
    if call.output is None or call.output.numel() // call.output.shape[-1] != rows:
        return
    if call.output.shape[-1] == width:
        yield None
    elif call.output.shape[-1] == 2 * width:
        yield from (("part", 0, width), ("part", width, 2 * width))


def _activations(at: Inside, pre: Tensor) -> Iterator[Call]:
    for call in at.calls:
        if (
            not is_linear(call.module)
            and same(first_input(call), pre)
            and call.output is not None
            and call.output.shape[-1] == pre.shape[-1]
        ):
            yield call


def _near(act: Tensor | None, up: Branch, post: Tensor) -> bool:
    """Is the product of both branches what the down projection takes in?"""
    assert act is not None
    product = act.reshape(post.shape) * read_cut(up[0].output, up[1]).reshape(post.shape)  # type: ignore[arg-type]
    return torch.allclose(product, post, rtol=1e-4, atol=1e-5)


def _functional(options: list[Branch], post: Tensor) -> tuple[Branch, Branch | None, None] | None:
    """An activation that no module computes shows as a smooth curve: one output for every input."""
    values = [(b, read_cut(b[0].output, b[1]).reshape(post.shape)) for b in options]  # type: ignore[arg-type]
    for branch, pre in values:
        if _curve(pre, post):
            return branch, None, None
    for branch, pre in values:
        for other, up in values:
            large = up.abs() > up.abs().median()
            if other != branch and _curve(pre[large], post[large] / up[large]):
                return branch, other, None
    return None


def _curve(x: Tensor, y: Tensor) -> bool:
    """Does y follow from x? Walk along x: a function rises and falls a few times, anything else zigzags."""
    x, y = x.flatten().double(), y.flatten().double()
    if len(x) < 64 or not torch.isfinite(y).all():
        return False
    walked = y[x.argsort()]
    return bool(walked.diff().abs().sum() < 6 * (y.max() - y.min()))
