"""One block resolved by arithmetic: which module computes what is read off one traced forward, never off class names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor, nn

from activarium.capture._cuts import Cut, read_cut
from activarium.capture._sites import Place
from activarium.capture._trace import AttentionCall, Call, Trace


@dataclass
class Block:
    """What was found in one block. Places are by short site name (`attn.q`); a name in `missing` maps to the reason.

    Attributes:
        algebra: `pre-norm`, `parallel`, `post-norm`, or `unknown`.
        modules: Role → module path: `attn.norm`, `attn.post`, `mlp.norm`, `mlp.post`, `mlp.activation`.
        weights: Weight name → (module path, cut along its output or input).
        attention: `attn` or `cross` → path of the module that calls the kernel.
        sizes: `heads kv_heads d_head` per attention, `d_mlp`, `d_model`.
    """

    algebra: str = "unknown"
    places: dict[str, Place] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    weights: dict[str, tuple[str, Cut]] = field(default_factory=dict)
    attention: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)
    turn: int = 0
    path: str = ""


def resolve_block(trace: Trace, call: Call) -> Block:
    """Everything that one execution of a block tells."""
    return _Resolver(trace, call).resolve()


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal bit for bit, up to flattening of the leading axes."""
    if a is None or b is None or a.numel() != b.numel() or a.shape[-1] != b.shape[-1] or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))


def is_linear(module: nn.Module) -> bool:
    """A leaf that multiplies by a matrix (Linear, Conv1D, quantised linears)."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding) and not list(module.children())


def place_of_input(call: Call, value: Tensor) -> Place | None:
    """Where this value enters a call."""
    key = next((k for k, t in call.inputs.items() if same(t, value)), None)
    return None if key is None else Place(call.path, "input", key, call.turn)


INNER = ("mlp.in", "mlp.pre", "mlp.act", "mlp.up", "mlp.post", "mlp.proj")


class _Resolver:
    def __init__(self, trace: Trace, call: Call) -> None:
        assert call.output is not None
        self.call, self.out = call, Block(turn=call.turn, path=call.path)
        self.y = call.output
        self.x = next(t for t in call.inputs.values() if t.shape == self.y.shape)
        self.calls = trace.inside(call)
        self.attention = [a for a in trace.attention if call.start < a.start <= call.end]
        self.projections: list[Call] = []
        self.down: Call | None = None
        self.out.sizes["d_model"] = self.x.shape[-1]

    def resolve(self) -> Block:
        out = self.out
        out.places["resid_pre"] = Place(self.call.path, "input", self._key(self.call, self.x), self.call.turn)
        out.places["resid_post"] = Place(self.call.path, "output", turn=self.call.turn)
        for name, attention in zip(("attn", "cross"), self.attention, strict=False):
            self._attention(name, attention)
        if not self.attention:
            self._lack(
                ("attn.q", "attn.k", "attn.v", "attn.z", "attn.proj", "attn.in"),
                "its attention does not pass through the attention interface",
            )
        self._mlp()
        self._sums()
        return out

    # --- attention

    def _attention(self, name: str, a: AttentionCall) -> None:
        heads, kv_heads, d = a.q.shape[1], a.k.shape[1], a.q.shape[-1]
        self.out.sizes |= {f"{name}.heads": heads, f"{name}.kv_heads": kv_heads, f"{name}.d_head": d, f"{name}.d_value": a.v.shape[-1]}
        self.out.attention[name] = a.path
        inner = [
            c for c in self.calls if is_linear(c.module) and c.path.startswith(a.path + ".") and c.start < a.start and c.output is not None
        ]
        # A module that ran earlier in this block for another attention is not ours.
        self._queries_keys_values(name, a, inner)
        self._output_projection(name, a)

    def _queries_keys_values(self, name: str, a: AttentionCall, inner: list[Call]) -> None:
        found = _fused(a, inner) or _separate(a, inner)
        if found is None:
            return self._lack([f"{name}.{n}" for n in "qkv"], "the query, key and value projections could not be told apart")
        for letter, (call, cut) in zip("qkv", found, strict=True):
            self.out.places[f"{name}.{letter}"] = Place(call.path, "output", turn=call.turn, cut=cut)
            self.out.weights[f"{name}.W_{letter.upper()}"] = (call.path, cut)
            rotated = {"q": a.q, "k": a.k}.get(letter)
            if rotated is not None and same(read_cut(call.output, cut), rotated.transpose(1, 2)):  # type: ignore[arg-type]
                self.out.equal[f"{name}.{letter}_rot"] = f"{name}.{letter}"
        self._input(name, [call for call, _ in (found if name == "attn" else found[:1])])

    def _input(self, name: str, readers: list[Call]) -> None:
        """What enters the sub-layer: written at the smallest module that contains all its readers."""
        value = next(iter(readers[0].inputs.values()))
        paths = [r.path.split(".") for r in readers]
        shared = [p for p, *rest in zip(*paths, strict=False) if all(r == p for r in rest)]
        stem = ".".join(paths[0][: len([1 for i, p in enumerate(shared) if paths[0][i] == p])])
        owner = next((c for c in self.calls if c.path == stem), None) if len({tuple(p) for p in paths}) > 1 else readers[0]
        place = place_of_input(owner, value) if owner else None
        if place:
            self.out.places[f"{name}.in"] = place
        else:
            self._lack([f"{name}.in"], "its readers share no module that takes it in")
        self._norm_before(name, value, readers[0].start, stem)

    def _norm_before(self, name: str, value: Tensor, start: int, stem: str) -> None:
        """The module whose output a sub-layer takes in, if it is not the stream itself."""
        outside = [c for c in self.calls if c.start < start and c.path != stem and not c.path.startswith(stem + ".")]
        norm = next((c for c in outside if same(c.output, value) and not same(next(iter(c.inputs.values()), None), value)), None)
        if norm is not None:
            self.out.modules[f"{name}.norm"] = norm.path

    def _output_projection(self, name: str, a: AttentionCall) -> None:
        flat = a.z.flatten(-2)
        proj = next(
            (c for c in self.calls if c.start > a.start and is_linear(c.module) and same(next(iter(c.inputs.values()), None), flat)), None
        )
        if proj is None:
            return self._lack([f"{name}.z", f"{name}.proj", f"{name}.out"], "no linear module takes in the mixed heads")
        self.projections.append(proj)
        heads = a.z.shape[-2]
        self.out.places[f"{name}.z"] = Place(proj.path, "input", self._key(proj, flat), proj.turn, ("heads", 0, flat.shape[-1], heads))
        self.out.places[f"{name}.proj"] = Place(proj.path, "output", turn=proj.turn)
        self.out.weights[f"{name}.W_O"] = (proj.path, ("heads", 0, flat.shape[-1], heads))

    # --- MLP

    def _mlp(self) -> None:
        attention_paths = tuple(p + "." for p in self.out.attention.values())
        used = {id(c) for c in self.projections}
        linear = [c for c in self.calls if is_linear(c.module) and not c.path.startswith(attention_paths) and id(c) not in used]
        down = [c for c in linear if c.output is not None and c.output.numel() == self.x.numel() and c.output.shape[-1] == self.x.shape[-1]]
        if not down:
            return self._lack(INNER, "no linear module projects back to the residual width (mixture of experts?)")
        down_call = max(down, key=lambda c: c.start)
        post = next(iter(down_call.inputs.values()))
        self.down = down_call
        self.out.sizes["d_mlp"] = post.shape[-1]
        self.out.places |= {
            "mlp.post": Place(down_call.path, "input", self._key(down_call, post), down_call.turn),
            "mlp.proj": Place(down_call.path, "output", turn=down_call.turn),
        }
        self.out.weights["mlp.W_down"] = (down_call.path, None)
        rows, width = self.x.numel() // self.x.shape[-1], post.shape[-1]
        up = [c for c in linear if c is not down_call and c.output is not None and c.output.numel() in (rows * width, 2 * rows * width)]
        self._branches(up, post, width)

    def _branches(self, up: list[Call], post: Tensor, width: int) -> None:
        options = [(c, cut) for c in up for cut in _halves(c, width)]
        gate = next(((c, cut, act) for c, cut in options if (act := self._activation(read_cut(c.output, cut)))), None)  # type: ignore[arg-type]
        rest = [(c, cut) for c, cut in options if gate is None or (c, cut) != gate[:2]]
        if len(options) == 1:
            call, cut = options[0]
            self.out.places["mlp.pre"] = Place(call.path, "output", turn=call.turn, cut=cut)
            self.out.weights["mlp.W_in"] = (call.path, cut)
            self.out.equal["mlp.act"] = "mlp.post"
            self.out.missing["mlp.up"] = "its MLP has no gate"
            if gate:
                self.out.modules["mlp.activation"] = gate[2].path
        elif gate and len(rest) == 1:
            self._gated(gate, rest[0])
        else:
            self._lack(
                ("mlp.pre", "mlp.act", "mlp.up"), "no module computes the activation on its own, so its branches cannot be told apart"
            )
        if up:
            self._input("mlp", list({c.path: c for c, _ in options}.values()))

    def _gated(self, gate: tuple[Call, Cut, Call], linear: tuple[Call, Cut]) -> None:
        call, cut, act = gate
        self.out.places["mlp.pre"] = Place(call.path, "output", turn=call.turn, cut=cut)
        self.out.places["mlp.act"] = Place(act.path, "output", turn=act.turn)
        self.out.places["mlp.up"] = Place(linear[0].path, "output", turn=linear[0].turn, cut=linear[1])
        self.out.weights |= {"mlp.W_gate": (call.path, cut), "mlp.W_in": (linear[0].path, linear[1])}
        self.out.modules["mlp.activation"] = act.path

    def _activation(self, pre: Tensor) -> Call | None:
        return next(
            (
                c
                for c in self.calls
                if not is_linear(c.module)
                and same(next(iter(c.inputs.values()), None), pre)
                and c.output is not None
                and c.output.shape[-1] == pre.shape[-1]
            ),
            None,
        )

    # --- what is added to the stream

    def _sums(self) -> None:
        if len(self.projections) != len(self.attention) or not self.attention:
            return self._lack(("attn.out", "mlp.out", "resid_mid"), "its writers were not all found")
        found = self._sequential() or self._parallel()
        if found is None:
            self._lack(("attn.out", "mlp.out", "resid_mid"), "the block's sum was not found among its modules")

    def _sequential(self) -> bool | None:
        for post in (False, True):
            stream, middle, writes = self.x, [], []
            for proj in self.projections:
                step = self._join(stream, proj)
                if step is None:
                    break
                write, joined, place, norm = step
                writes.append(write)
                if post and norm is not None and norm.output is not None:
                    stream, place = norm.output, Place(norm.path, "output", turn=norm.turn)
                else:
                    stream = joined
                middle.append(place)
            else:
                last = self._last_write(stream, post)
                if last is not None:
                    self._keep("post-norm" if post else "pre-norm", [*writes, last], middle)
                    return True
        return None

    def _join(self, stream: Tensor, proj: Call) -> tuple[Call, Tensor, Place, Call | None] | None:
        """The write that, added to the stream, is what a later module takes in."""
        for write in self._after(proj):
            joined = stream + write.output.reshape(stream.shape)  # type: ignore[union-attr]
            for call in self.calls:
                if call.start > proj.start and (place := place_of_input(call, joined)):
                    return write, joined, place, call
        return None

    def _last_write(self, stream: Tensor, post: bool) -> Call | None:
        for write in self._mlp_writes():
            joined = stream + write.output.reshape(stream.shape)  # type: ignore[union-attr]
            if not post and same(joined, self.y):
                return write
            if post:
                norm = next((c for c in self.calls if same(next(iter(c.inputs.values()), None), joined) and same(c.output, self.y)), None)
                if norm is not None:
                    self.out.modules["mlp.end"] = norm.path
                    return write
        return None

    def _parallel(self) -> bool | None:
        for a in self._after(self.projections[0]):
            for b in self._mlp_writes():
                u, v = a.output.reshape(self.x.shape), b.output.reshape(self.x.shape)  # type: ignore[union-attr]
                if any(same(p + q + r, self.y) for p, q, r in permutations((self.x, u, v))):
                    self._keep("parallel", [a, b], [])
                    self.out.missing["resid_mid"] = "its attention and MLP run in parallel"
                    return True
        return None

    def _keep(self, algebra: str, writes: list[Call], middle: list[Place]) -> None:
        self.out.algebra = algebra
        names = [*self.out.attention, "mlp"]
        for name, write in zip(names, writes, strict=True):
            if f"{name}.proj" not in self.out.places:
                self._whole_mlp(write)
            elif same(write.output, self._output_of(f"{name}.proj")):
                self.out.equal[f"{name}.out"] = f"{name}.proj"
            else:
                self.out.places[f"{name}.out"] = Place(write.path, "output", turn=write.turn)
                proj = self._output_of(f"{name}.proj")
                if same(next(iter(write.inputs.values()), None), proj):
                    self.out.modules[f"{name}.post"] = write.path
        for name, place in zip(("resid_mid", "resid_cross"), middle, strict=False):
            self.out.places[name] = place
        if middle and algebra == "post-norm":
            self.out.modules["attn.end"] = middle[0].path
            entrance = self.out.places.get("attn.in")
            if entrance and middle[0].path.startswith(entrance.path + "."):
                del self.out.places["attn.in"]
                self._lack(["attn.in"], "its attention module takes the stream in and adds it again; edit q, k or v")

    def _mlp_writes(self) -> Iterator[Call]:
        """What the MLP may add: from its down projection on, or (experts) any module after the attention."""
        if self.down is not None:
            return self._after(self.down)
        last = self.projections[-1]
        return (c for c in self._after(last) if c.start > last.start)

    def _whole_mlp(self, write: Call) -> None:
        """Experts: only what enters and leaves the whole of them has one row per token."""
        self.out.places["mlp.out"] = Place(write.path, "output", turn=write.turn)
        value = next(iter(write.inputs.values()), None)
        if value is not None and value.numel() == self.x.numel():
            self.out.places["mlp.in"] = Place(write.path, "input", self._key(write, value), write.turn)
            self.out.missing.pop("mlp.in", None)
            self._norm_before("mlp", value, write.start, write.path)

    def _output_of(self, name: str) -> Tensor | None:
        place = self.out.places[name]
        return next(c.output for c in self.calls if c.path == place.path and c.turn == place.turn)

    def _after(self, proj: Call) -> Iterator[Call]:
        """Calls that end no earlier than a projection and have the stream's shape, the projection first, equal values once."""
        seen: list[Tensor] = []
        for call in sorted((c for c in self.calls if c.end >= proj.end), key=lambda c: (c is not proj, c.end, -c.start)):
            value = call.output
            if value is None or value.numel() != self.x.numel() or value.shape[-1] != self.x.shape[-1]:
                continue
            if not any(same(value, s) for s in seen):
                seen.append(value)
                yield call

    def _key(self, call: Call, value: Tensor) -> int | str:
        return next(k for k, t in call.inputs.items() if same(t, value))

    def _lack(self, names: tuple[str, ...] | list[str], reason: str) -> None:
        self.out.missing |= {n: reason for n in names if n not in self.out.places}


def _halves(call: Call, width: int) -> list[Cut]:
    assert call.output is not None
    return [None] if call.output.shape[-1] == width else [("part", 0, width), ("part", width, 2 * width)]


def _fused(a: AttentionCall, inner: list[Call]) -> list[tuple[Call, Cut]] | None:
    """One projection for queries, keys and values: side by side, or head by head."""
    heads, kv_heads, d = a.q.shape[1], a.k.shape[1], a.q.shape[-1]
    value = a.v.transpose(1, 2)
    q, k = heads * d, kv_heads * d
    side: list[Cut] = [("heads", 0, q, heads), ("heads", q, q + k, kv_heads), ("heads", q + k, q + 2 * k, kv_heads)]
    mixed: list[Cut] = [("interleaved", part, 3, heads) for part in range(3)]
    for call in inner:
        assert call.output is not None
        if call.output.shape[-1] != q + 2 * k:
            continue
        for layout in (side, mixed):
            if (layout is side or heads == kv_heads) and same(read_cut(call.output, layout[2]), value):
                return [(call, cut) for cut in layout]
    return None


def _separate(a: AttentionCall, inner: list[Call]) -> list[tuple[Call, Cut]] | None:
    """Three projections. Values are told by equality; queries and keys by position 0, where rotation does nothing."""
    value = next((c for c in inner if same(c.output, a.v.transpose(1, 2).flatten(-2))), None)
    if value is None:
        return None
    best: tuple[float, Call, Call] | None = None
    others = [c for c in inner if c is not value]
    for q, k in permutations(others, 2):
        score = _likeness(q, a.q) + _likeness(k, a.k)
        if best is None or score > best[0]:
            best = (score, q, k)
    if best is None or best[0] < 1.0:
        return None

    def heads(call: Call, like: Tensor) -> tuple[Call, Cut]:
        return call, ("heads", 0, like.shape[1] * like.shape[-1], like.shape[1])

    return [heads(best[1], a.q), heads(best[2], a.k), heads(value, a.v)]


def _likeness(call: Call, rotated: Tensor) -> float:
    """Mean cosine per head at position 0 between a projection and what entered the scores."""
    batch, heads, rows, d = rotated.shape
    if call.output is None or call.output.numel() != rotated.numel():
        return -2.0
    ours = call.output.reshape(batch, rows, heads, d)[:, 0].float()
    return float(torch.nn.functional.cosine_similarity(ours, rotated[:, :, 0].float(), dim=-1).mean())
