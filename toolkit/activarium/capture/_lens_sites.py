"""Our sites in a TransformerLens model: which hook points may hold them, as data, and one probe that decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from activarium.attention import AttentionSpec, scores_and_pattern
from activarium.capture._block import Block, same
from activarium.capture._cuts import read_cut
from activarium.capture._probe import AXES, Anatomy, Stack
from activarium.capture._sites import Place, Site, SiteTable
from activarium.capture._trace import first_tensor

TILES = ("attn.scores", "attn.pattern")


def _out(path: str) -> Place:
    return Place(path, "output")


# Short name → where it may live in a block, best first. HookedTransformer norms the stream three times, for queries, keys
# and values; its `hook_normalized` comes before gain and bias and is none of our sites.
HOOKED: dict[str, tuple[Place, ...]] = {
    "resid_pre": (_out("hook_resid_pre"),),
    "attn.in": (Place("attn", "input", "query_input", also=("key_input", "value_input")),),
    "attn.q": (_out("attn.hook_q"),),
    "attn.k": (_out("attn.hook_k"),),
    "attn.v": (_out("attn.hook_v"),),
    "attn.q_rot": (_out("attn.hook_rot_q"),),
    "attn.k_rot": (_out("attn.hook_rot_k"),),
    "attn.scores": (_out("attn.hook_attn_scores"),),
    "attn.pattern": (_out("attn.hook_pattern"),),
    "attn.z": (_out("attn.hook_z"),),
    "attn.proj": (_out("attn"),),
    "attn.out": (_out("hook_attn_out"),),
    "resid_mid": (_out("hook_resid_mid"),),
    "mlp.in": (Place("mlp", "input", 0),),
    "mlp.pre": (_out("mlp.hook_pre"),),
    "mlp.act": (_out("mlp.hook_mid"),),
    "mlp.up": (_out("mlp.hook_pre_linear"),),
    "mlp.post": (_out("mlp.hook_post"),),
    "mlp.proj": (_out("mlp"),),
    "mlp.out": (_out("hook_mlp_out"),),
    "resid_post": (_out("hook_resid_post"),),
}
BRIDGE: dict[str, tuple[Place, ...]] = {
    "resid_pre": (_out("hook_in"),),
    "attn.in": (_out("attn.hook_in"),),
    "attn.q": (_out("attn.q.hook_out"),),
    "attn.k": (_out("attn.k.hook_out"),),
    "attn.v": (_out("attn.v.hook_out"),),
    "attn.q_rot": (_out("attn.hook_rot_q"),),
    "attn.k_rot": (_out("attn.hook_rot_k"),),
    "attn.scores": (_out("attn.hook_attn_scores"),),
    "attn.pattern": (_out("attn.hook_pattern"),),
    "attn.z": (_out("attn.o.hook_in"),),
    "attn.proj": (_out("attn.o.hook_out"),),
    "attn.out": (_out("ln1_post.hook_out"), _out("attn.hook_out")),
    "resid_mid": (_out("ln2.hook_in"),),
    "mlp.in": (_out("mlp.hook_in"),),
    "mlp.pre": (_out("mlp.gate.hook_out"), _out("mlp.in.hook_out")),
    "mlp.up": (_out("mlp.in.hook_out"),),
    "mlp.post": (_out("mlp.out.hook_in"),),
    "mlp.proj": (_out("mlp.out.hook_out"),),
    "mlp.out": (_out("ln2_post.hook_out"), _out("mlp.hook_out"), _out("mlp.out.hook_out")),
    "resid_post": (_out("hook_out"),),
}
ENDS = {
    "token_embed": (_out("hook_embed"), _out("embed.hook_out")),
    "final_norm": (Place("unembed", "input", 0), _out("ln_final.hook_out")),
}
# Which norms may stand before a sub-layer and after it.
NORMS = {"attn": (("ln1",), ("ln1_post", "ln1")), "mlp": (("ln2", "ln1"), ("ln2_post", "ln2"))}
NO_HOOK = "TransformerLens has no hook point there"


@dataclass
class LensAnatomy(Anatomy):
    """What the probe found out about a TransformerLens model.

    Attributes:
        attention: `blocks.3.attn` → how its pattern follows from queries and keys, where that was seen to hold.
    """

    attention: dict[str, AttentionSpec] = field(default_factory=dict)


class Probe:
    """One forward on a few tokens, with every place that may hold a site watched."""

    def __init__(self, model: Any, table: Mapping[str, tuple[Place, ...]], forward: Callable[[Tensor], Tensor], ids: Tensor) -> None:
        self.model, self.table, self.shape = model, table, tuple(ids.shape)
        self.modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self.seen: dict[Place, list[Tensor]] = {}
        self.container = False
        self.depth = len(model.blocks)
        watched = [p for places in ENDS.values() for p in places]
        watched += [replace(p, path=f"blocks.{i}.{p.path}") for i in range(self.depth) for places in table.values() for p in places]
        with self._watching([p for p in dict.fromkeys(watched) if p.path in self.modules]), torch.no_grad():
            self.logits = forward(ids)

    @contextmanager
    def _watching(self, places: list[Place]) -> Iterator[None]:
        handles = [self.modules["blocks.0"].register_forward_hook(self._note_container)]

        def see(place: Place, value: Any) -> None:
            tensor = first_tensor(value)
            if tensor is not None:
                self.seen.setdefault(place, []).append(tensor.detach().clone())

        try:
            for place in places:
                module = self.modules[place.path]
                if place.side == "output":
                    handles.append(module.register_forward_hook(lambda _m, _a, out, p=place: see(p, out)))
                else:
                    handles.append(module.register_forward_pre_hook(lambda _m, a, k, p=place: see(p, _given(p, a, k)), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_container(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.container = isinstance(output, (tuple, list))

    def find(self, places: tuple[Place, ...], prefix: str = "") -> tuple[Place, Tensor] | None:
        """The first place that fired exactly once, with what it held."""
        for place in (replace(p, path=prefix + p.path) for p in places):
            if len(self.seen.get(place, ())) == 1:
                return place, self.seen[place][0]

    def anatomy(self, cfg: Any, describe: Callable[[Any], AttentionSpec | None], title: str) -> LensAnatomy:
        """Sites, blocks and attention of the whole model."""
        found = LensAnatomy(SiteTable([], title))
        stack = found.stacks[""] = Stack("", [], self.container, "ln_final" if "ln_final" in self.modules else None)
        sites = [*self._entrance(found)]
        for i in range(self.depth):
            block = _BlockReader(self, i, cfg, describe(self.model.blocks[i])).read(found.attention)
            stack.blocks.append(block)
            sites += _block_sites(block, i)
        sites += [self._end(cfg)]
        sites += [Site("logits", "row vocab", "", (self.logits.shape[-1],), Place("", "output", "logits"), kind="answer")]
        found.sites, found.rows[""] = SiteTable(sites, title), self.shape[1]
        return found

    def _entrance(self, found: LensAnatomy) -> Iterator[Site]:
        hit = self.find(ENDS["token_embed"])
        width = (hit[1].shape[-1],) if hit else ()
        yield Site("token_embed", "row d_model", "", width, hit[0] if hit else None, missing=None if hit else NO_HOOK)
        yield Site("embed", "row d_model", "", width, same_as="blocks.0.resid_pre")
        if "embed" in self.modules:
            found.embeddings[""] = "embed"

    def _end(self, cfg: Any) -> Site:
        hit = self.find(ENDS["final_norm"])
        return Site("final_norm", "row d_model", "", (cfg.d_model,), hit[0] if hit else None, missing=None if hit else NO_HOOK)


def _given(place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(place.argument, int):
        return args[place.argument] if len(args) > place.argument else None
    return kwargs.get(place.argument)


class _BlockReader:
    """One block: which candidates fired, how they lie, how they add up."""

    def __init__(self, probe: Probe, i: int, cfg: Any, spec: AttentionSpec | None) -> None:
        self.probe, self.prefix, self.cfg, self.spec = probe, f"blocks.{i}.", cfg, spec
        self.out = Block(path=f"blocks.{i}", sizes={"d_model": int(cfg.d_model)})
        self.values: dict[str, Tensor] = {}

    def read(self, attention: dict[str, AttentionSpec]) -> Block:
        """Everything found."""
        for short, places in self.probe.table.items():
            hit = self.probe.find(places, self.prefix)
            if hit is not None and self._fits(short, hit[1]):
                self.out.places[short] = replace(hit[0], cut=self._cut(short, hit[1]))
                self.values[short] = self._rowwise(read_cut(hit[1], self.out.places[short].cut))
            else:
                self.out.missing[short] = NO_HOOK
        self.out.attention["attn"] = f"{self.prefix}attn"
        self._sizes()
        self._mlp()
        self._sums()
        self._norms()
        self._rotation(attention)
        return self.out

    def _fits(self, short: str, value: Tensor) -> bool:
        examples, rows = self.probe.shape
        if short in TILES:
            return value.ndim == 4 and value.shape[0] == examples and tuple(value.shape[2:]) == (rows, rows)
        if value.ndim == 2:  # some models flatten examples and positions
            return value.shape[0] == examples * rows and AXES[short] != "row head d_head"
        return value.ndim in (3, 4) and value.shape[0] == examples and rows in value.shape[1:3] and self._width_fits(short, value)

    def _rowwise(self, value: Tensor) -> Tensor:
        return value.unflatten(0, self.probe.shape) if value.ndim == 2 else value

    def _width_fits(self, short: str, value: Tensor) -> bool:
        return AXES[short] != "row d_model" or (value.ndim == 3 and value.shape[-1] == self.cfg.d_model)

    def _cut(self, short: str, value: Tensor) -> tuple[str | int, ...] | None:
        if AXES[short] != "row head d_head":
            return None
        if value.ndim == 3:
            return ("heads", 0, value.shape[-1], value.shape[-1] // int(self.cfg.d_head))
        return None if value.shape[1] == self.probe.shape[1] else ("swapped",)

    def _sizes(self) -> None:
        sizes = self.out.sizes
        for name, short in (("heads", "attn.q"), ("kv_heads", "attn.k")):
            if short in self.values:
                sizes[f"attn.{name}"] = self.values[short].shape[2]
        sizes["attn.d_head"] = sizes["attn.d_value"] = int(self.cfg.d_head)
        if "mlp.post" in self.values:
            sizes["d_mlp"] = self.values["mlp.post"].shape[-1]

    def _mlp(self) -> None:
        """A gate makes `up` a site of its own; without one the activation's output is what goes down."""
        places = self.out.places
        for short in ("mlp.pre", "mlp.up", "mlp.act"):
            # A router is called gate, too: neurons are as many as go down.
            if short in places and ("mlp.post" not in places or self.values[short].shape[-1] != self.values["mlp.post"].shape[-1]):
                self._drop(short, "inside its MLP there is no row per token (mixture of experts?)")
        if "mlp.up" in places and ("mlp.pre" not in places or places["mlp.up"].path == places["mlp.pre"].path):
            self._drop("mlp.up", "its MLP has no gate")
        gated = "mlp.up" in places
        if not gated and {"mlp.pre", "mlp.post"} <= places.keys() and "mlp.act" not in places:
            self.out.equal["mlp.act"] = "mlp.post"
            self.out.missing.pop("mlp.act", None)
        elif gated:
            self._drop("mlp.act", "TransformerLens multiplies the activation and the linear branch in one step; read mlp.post")
        elif "mlp.act" not in places:
            self.out.missing["mlp.act"] = NO_HOOK
        if not gated:
            self.out.missing["mlp.up"] = "its MLP has no gate"

    def _drop(self, short: str, reason: str) -> None:
        self.out.places.pop(short, None)
        self.values.pop(short, None)
        self.out.missing[short] = reason

    # --- how it adds up

    def _sums(self) -> None:
        have = {"resid_pre", "attn.out", "resid_post"} <= self.values.keys()
        x, a, y = (self.values.get(n) for n in ("resid_pre", "attn.out", "resid_post"))
        m = self.values.get("mlp.out")
        if not have or not self._near(y, x + a + (m if m is not None else 0)):  # type: ignore[operator]
            for short in ("attn.out", "mlp.out", "resid_mid"):
                self._drop(short, "the block's sum was not found among its hook points")
            return
        middle = self.values.get("resid_mid")
        if middle is not None and self._near(middle, x + a):  # type: ignore[operator]
            self.out.algebra = "pre-norm"
        else:
            self.out.algebra = "parallel" if m is not None else "pre-norm"
            self._drop("resid_mid", "its attention and MLP run in parallel" if m is not None else "it has no MLP")
        for room in ("attn", "mlp"):
            if same(self.values.get(f"{room}.out"), self.values.get(f"{room}.proj")):
                self.out.equal[f"{room}.out"] = f"{room}.proj"

    def _near(self, a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None or a.shape != b.shape:
            return False
        size = 1e-4 if a.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((a.double() - b.double()).abs().max() <= size * a.double().abs().max())

    def _norms(self) -> None:
        """A norm is one if it makes what follows of what comes before."""
        before = {"attn": "resid_pre", "mlp": "resid_pre" if self.out.algebra == "parallel" else "resid_mid"}
        for room, (entering, leaving) in NORMS.items():
            self._norm(f"{room}.norm", entering, before[room], f"{room}.in")
            if f"{room}.out" not in self.out.equal:
                self._norm(f"{room}.post", leaving, f"{room}.proj", f"{room}.out")

    def _norm(self, role: str, names: tuple[str, ...], source: str, target: str) -> None:
        stream, wanted = self.values.get(source), self.values.get(target)
        if stream is None or wanted is None:
            return
        for path in (self.prefix + n for n in names if self.prefix + n in self.probe.modules):
            module = self.probe.modules[path]
            with torch.no_grad(), suppress(RuntimeError):
                if self._near(wanted, type(module).forward(module, stream)):
                    self.out.modules[role] = path
                    return

    def _rotation(self, attention: dict[str, AttentionSpec]) -> None:
        """What enters the scores: the rotated queries and keys if there are any, else the projections, if the scores say so."""
        rotated = {"attn.q_rot", "attn.k_rot"} <= self.values.keys()
        q, k = (self.values.get(f"attn.{n}_rot" if rotated else f"attn.{n}") for n in "qk")
        follows = self.spec is not None and q is not None and k is not None and self._scores_follow(q, k)
        if follows:
            attention[f"{self.prefix}attn"] = self.spec  # type: ignore[assignment]
        if rotated:
            return
        for n in "qk":
            self._drop(f"attn.{n}_rot", "what enters the scores passes no hook point in this model")
            if follows:
                self.out.equal[f"attn.{n}_rot"] = f"attn.{n}"
                del self.out.missing[f"attn.{n}_rot"]

    def _scores_follow(self, q: Tensor, k: Tensor) -> bool:
        pattern = self.values.get("attn.pattern")
        if pattern is None:
            return False
        made = torch.stack([scores_and_pattern(a, b, self.spec)[1] for a, b in zip(q, k, strict=True)])  # type: ignore[arg-type]
        return self._near(pattern, made.to(pattern.dtype))


def _block_sites(block: Block, i: int) -> list[Site]:
    return [_block_site(block, i, short, axes) for short, axes in AXES.items() if short != "resid_cross"]


def _block_site(block: Block, i: int, short: str, axes: str) -> Site:
    prefix, (room, _, leaf) = f"blocks.{i}.", short.partition(".")
    site = Site(prefix + short, axes, "", _shape(block, room, leaf), block.places.get(short), missing=block.missing.get(short))
    if short == "attn.head_out":
        return replace(site, kind="derived", missing=block.missing.get("attn.z"))
    if short == "resid_pre" and i > 0:
        return replace(site, same_as=f"blocks.{i - 1}.resid_post")
    if short in block.equal:
        return replace(site, same_as=prefix + block.equal[short], note=f"equals {leaf[0]}" if leaf.endswith("_rot") else "")
    return site


def _shape(block: Block, room: str, leaf: str) -> tuple[int, ...]:
    sizes = block.sizes
    if leaf in ("q", "q_rot", "z", "k", "k_rot", "v"):
        return (sizes.get("attn.kv_heads" if leaf[0] in "kv" else "attn.heads", 0), sizes["attn.d_head"])
    if leaf in ("scores", "pattern"):
        return ()
    if leaf == "head_out":
        return (sizes.get("attn.heads", 0), sizes["d_model"])
    return (sizes.get("d_mlp", 0) if room == "mlp" and leaf in ("pre", "act", "up", "post") else sizes["d_model"],)
