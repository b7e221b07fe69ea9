"""Secants in the place of gradients (DeepLIFT): the second half of a batch is the reference of the first half.

Every component becomes affine in the first half, with the slope between the two halves, so that what goes in and what comes out differ
by the same amounts as in the model: summation to delta, component by component.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from activarium.attention import AttentionSpec, repeat_heads, scores_of
from activarium.capture._cuts import read_cut
from activarium.capture._gradients import checked, slope_of
from activarium.capture._rule_modules import NormForm
from activarium.capture._rules import BoundRules
from activarium.capture._sites import Place
from activarium.errors import InputError
from activarium.rules import Rules

if TYPE_CHECKING:
    from activarium.capture._masks import Span
    from activarium.capture._runner import TorchRunner

EVERYTHING = Rules(norms=True, activations=True, gates=True, attention="quarter", qk_norms=True)
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-6}  # closer than this, the slope is that of the tangent


class BoundSecant(BoundRules):
    """Secant slopes for one forward.

    Raises:
        InputError: The model has a component through which no secant passes.
    """

    def __init__(self, model: TorchRunner) -> None:
        super().__init__(model, EVERYTHING)
        notes = [words for rule in self._found.notes.values() for words in rule]
        if not model.watches:
            notes = ["its attention is TransformerLens' own code; wrap the Hugging Face model"]
        if notes:
            raise InputError(f"{model.name} has parts that no secant passes: {'; '.join(notes)}. Choose another method, such as 'relp-ah'.")

    def report(self) -> dict[str, Any]:
        """How many modules had their slope taken."""
        return {"name": "secant", "fields": {}} | {n: len(paths) for n, paths in self.fired.items()} | {"notes": []}

    @property
    def explicit(self) -> bool:
        """Always."""
        return True

    def attended(self, path: str, *values: Tensor) -> list[Tensor]:
        """Queries, keys and values as they are; the slopes are taken at the mix."""
        self.fired["attention"].add(path)
        return list(values)

    # --- components

    def _norm(self, path: str, module: nn.Module, form: NormForm, x: Tensor, y: Tensor) -> Tensor:
        """`c r` with centred `c` and scale `r(v)`: the product rule, and the secant of r over the variance v."""
        centred = form.centre(x)
        (c, c_base), (r, r_base) = _halves(centred, path), _halves(form.scale(module, form.gained(module, centred), y), path)
        v, v_base = (t.detach().square().mean(-1, keepdim=True) for t in (c, c_base))
        change = c - c_base.detach()
        change_v = ((c + c_base).detach() * change).mean(-1, keepdim=True)
        tangent = -(((r + r_base) / 2) ** 3) / 2
        bend = torch.where((v - v_base).abs() <= CLOSE.get(v.dtype, 1e-6) * v, tangent, (r - r_base) / (v - v_base))
        made = (r + r_base) / 2 * change + (c + c_base).detach() / 2 * bend * change_v
        return _paired(form.gained(module, made).to(y.dtype), y, path)

    def _activation(self, path: str, module: nn.Module, slope: float, x: Tensor, y: Tensor) -> Tensor:
        return _paired(_step(x, y, slope_of(y, x), path), y, path)

    def _branches(self, functional: bool) -> tuple[str, ...]:
        return ("mlp.pre", "mlp.up") if functional else ("mlp.act", "mlp.up")

    def _post(self, post: Tensor, places: dict[str, Place], seen: dict[str, Tensor], functional: bool, gated: bool) -> Tensor:
        path = places["mlp.post"].path

        def cut(raw: Tensor, leaf: str) -> Tensor:
            return read_cut(raw, places[leaf].cut).reshape(post.shape)

        if functional:
            self.fired["activations"].add(path)
            raw = seen.pop("mlp.pre")
            bent = cut(slope_of(post, raw), "mlp.pre")
            if not gated:
                return _paired(_step(cut(raw, "mlp.pre"), post, bent, path), post, path)
            raw_up = seen.pop("mlp.up")
            up, act = cut(raw_up, "mlp.up"), cut(slope_of(post, raw_up), "mlp.up")
            stepped = _step(cut(raw, "mlp.pre"), act, (bent / up).nan_to_num(0.0, 0.0, 0.0).detach(), path)
            act = torch.cat([_halves(act, path)[1].detach() + stepped, _halves(act, path)[1].detach()])
        elif gated:
            act, up = cut(seen.pop("mlp.act"), "mlp.act"), cut(seen.pop("mlp.up"), "mlp.up")
        else:
            return post
        self.fired["gates"].add(path)
        (a, a_base), (u, u_base) = _halves(act, path), _halves(up, path)
        change = (a + a_base).detach() / 2 * (u - u_base.detach()) + (u + u_base).detach() / 2 * (a - a_base.detach())
        return _paired(change, post, path)

    # --- attention

    def mixed(self, path: str, z: Tensor, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, spans: list[Span]) -> Tensor:
        """The mix `example query head d_head`, affine in queries, keys and values of the first half."""
        count = len(spans) // 2
        changes = (_halves(z, path)[0] - _halves(z, path)[1]).detach()  # rows of padding stay what they are
        for i, span in enumerate(spans[:count]):
            queries, keys, values = (_two(t, i, i + count, at) for t, at in ((q, span.queries), (k, span.keys), (v, span.keys)))
            change = _attention_change(queries, keys, values, spec, i, count)
            changes = changes.index_put((torch.tensor(i), torch.arange(span.queries.start, span.queries.stop)), change.to(z.dtype))
        return _paired(changes, z, path)


Two = tuple[Tensor, Tensor]  # of the first half, in the graph, and of the reference


def _attention_change(q: Two, k: Two, v: Two, spec: AttentionSpec, i: int, count: int) -> Tensor:
    """How the mix of one example differs from its reference: products by their rule, the softmax by logarithmic means.

    With L the logarithmic mean of a key's two shares, `ΔA = L (ΔS - Σ L ΔS / Σ L)` holds exactly, and its slopes stay bounded
    where those through the exponential and the reciprocal do not.
    """
    plain = AttentionSpec(spec.scaling, causal=False)
    change = scores_of(q[0] - q[1], _mean(k), plain) + scores_of(_mean(q), k[0] - k[1], plain)
    with torch.no_grad():
        s, s_base = (scores_of(q[n], k[n], spec, example=i + n * count) for n in (0, 1))
        cap = 1.0
        if spec.softcap is not None:
            tangent = 1 - (scores_of(q[0], k[0], replace(plain, softcap=spec.softcap)) / spec.softcap) ** 2
            apart = torch.where(s.isfinite(), s - s_base, 0.0)
            cap = torch.where(change.abs() <= CLOSE.get(s.dtype, 1e-6), tangent, apart / change)
        sink = s.new_full(s.shape[:2], -torch.inf) if spec.sinks is None else spec.sinks.to(s)[:, None].expand(s.shape[:2])
        logs, logs_base = (torch.cat([t, sink[..., None]], -1).log_softmax(-1) for t in (s, s_base))
        means = logarithmic_mean(logs, logs_base)
        pattern = (logs.exp() + logs_base.exp())[..., :-1] / 2
    change = torch.where(s.isfinite(), cap * change, 0.0)
    part = means[..., :-1]
    change_p = part * (change - (part * change).sum(-1, keepdim=True) / means.sum(-1, keepdim=True))
    values, values_base = (repeat_heads(t, q[0].shape[1]).to(change.dtype) for t in v)
    by_values = torch.einsum("hqk,khd->qhd", pattern, values - values_base)
    return by_values + torch.einsum("hqk,khd->qhd", change_p, (values + values_base).detach() / 2)


def logarithmic_mean(a: Tensor, b: Tensor) -> Tensor:
    """`(e^a - e^b) / (a - b)`, of logarithms; by its series where they are near, zero where both are -inf."""
    half = torch.where(a.isfinite() & b.isfinite(), a - b, torch.where(a == b, 0.0, torch.inf)) / 2
    near = (half.clamp(-0.5, 0.5)) ** 2
    series = ((a + b) / 2).exp() * (1 + near / 6 * (1 + near / 20 * (1 + near / 42 * (1 + near / 72))))
    return torch.where(half.abs() < 0.5, series, (a.exp() - b.exp()) / (2 * half))


def _two(values: Tensor, first: int, second: int, rows: slice) -> Two:
    """One example and its reference, each `row head …`."""
    return values[first, :, rows].transpose(0, 1), values[second, :, rows].transpose(0, 1).detach()


def _mean(two: Two) -> Tensor:
    return (two[0] + two[1]).detach() / 2


def _step(x: Tensor, y: Tensor, tangent: Tensor, path: str) -> Tensor:
    """How an activation's output differs from its reference: the secant times how its input does."""
    (x, x_base), (y, y_base), tangent = _halves(x, path), _halves(y, path), _halves(tangent, path)[0]
    apart = (x - x_base).detach()
    slope = torch.where(apart.abs() <= CLOSE.get(x.dtype, 1e-6), tangent, (y - y_base).detach() / apart)
    return slope.detach() * (x - x_base.detach())


def _halves(value: Tensor, path: str) -> Two:
    if len(value) % 2:
        raise InputError(f"Secants need a batch whose second half is the reference of the first; {path} was given {len(value)} lines.")
    first, second = value.chunk(2)
    return first, second


def _paired(change: Tensor, value: Tensor, path: str) -> Tensor:
    """`value`, its first half with the gradient of reference plus change, its second half with none."""
    base = _halves(value, path)[1].detach()
    return checked(torch.cat([base + change, base]), value, path)
