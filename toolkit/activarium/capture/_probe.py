"""Sites found in a model: blocks from what its class declares, roles by arithmetic on one traced forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from activarium.capture._block import Block, first_input, is_linear, same
from activarium.capture._chains import find_chains, stack_names, unfit
from activarium.capture._heads import OUTSIDE
from activarium.capture._inputs import Space
from activarium.capture._interface import Kernel, watching
from activarium.capture._masks import Span, is_causal
from activarium.capture._resolve import resolve_block
from activarium.capture._sites import Place, Site, SiteTable
from activarium.capture._trace import AttentionCall, Call, Trace, tracing


@dataclass
class Stack:
    """One chain of blocks: `""`, `encoder`, `decoder`, `vision` or `text`."""

    name: str
    blocks: list[Block]
    container: bool
    final_norm: str | None = None

    @property
    def prefix(self) -> str:
        """What its site names start with."""
        return f"{self.name}." if self.name else ""


@dataclass
class Anatomy:
    """Everything the probe found out about a model.

    Attributes:
        sites: The site table.
        stacks: Row space → its blocks.
        embeddings: Row space → path of the embedding module.
        rows: Row space → rows per example in the probe.
        causal: Row spaces in which no row sees a later one.
    """

    sites: SiteTable
    stacks: dict[str, Stack] = field(default_factory=dict)
    embeddings: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    causal: set[str] = field(default_factory=set)


class _Seen:
    """Records attention kernels during a trace."""

    def __init__(self, trace: Trace, tick: Any, paths: Mapping[int, str], eager: bool) -> None:
        self.trace, self.tick, self.paths, self.eager = trace, tick, paths, eager

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernel: Kernel, options: dict[str, Any]
    ) -> Any:
        start = self.tick()
        z, weights = kernel(module, q, k, v, mask, **options)
        spans = [Span(e, slice(0, q.shape[2]), slice(0, k.shape[2])) for e in range(q.shape[0])]
        causal = q.shape[2] == k.shape[2] and is_causal(module, mask, options, self.eager, spans)
        seen = [t.detach().clone() for t in (q, k, v, z)]
        self.trace.attention.append(AttentionCall(self.paths[id(module)], start, seen[0], seen[1], seen[2], seen[3], causal))
        return z, weights


def trace_model(model: Any, arguments: Mapping[str, Any]) -> Trace:
    """One forward with everything recorded."""
    trace = Trace()
    paths = {id(m): p for p, m in model.named_modules()}
    with (
        tracing(model, trace) as tick,
        watching(model, _Seen(trace, tick, paths, (model.config._attn_implementation or "eager") == "eager")),
    ):
        trace.output = model(**arguments)
    return trace


def find_sites(model: nn.Module, trace: Trace, arguments: Mapping[str, Any], spaces: Mapping[str, Space], title: str) -> Anatomy:
    """The site table of a model from one trace."""
    chains = find_chains(model, trace)
    names = stack_names([c[0].path for c in chains], spaces)
    reason = unfit(chains, names, spaces, arguments)
    if reason:
        answer = _answer(trace.output, [*spaces][-1])
        vocabulary = {"embed": "row d_model", "token_embed": "row d_model", **{f"blocks.0.{n}": a for n, a in AXES.items()}}
        prefixes = [f"{name}." if name else "" for name in spaces]
        missing = f"{reason}; only module:PATH can be read"
        return Anatomy(SiteTable([Site(p + n, a, missing=missing) for p in prefixes for n, a in vocabulary.items()] + answer, title))
    anatomy = Anatomy(SiteTable([], title))
    sites: list[Site] = []
    for name, chain in zip(names, chains, strict=True):
        stack = Stack(name, [resolve_block(trace, call) for call in chain], chain[0].container)
        anatomy.stacks[name], anatomy.rows[name] = stack, chain[0].output.shape[1]  # type: ignore[union-attr]
        width = chain[0].output.shape[-1]  # type: ignore[union-attr]
        own = [a for a in trace.attention if chain[0].start < a.start <= chain[-1].end and a.q.shape[2] == a.k.shape[2]]
        if own and all(a.causal for a in own):
            anatomy.causal.add(name)
        sites += _entrance(trace, chain[0], spaces[name], arguments, anatomy, width)
        for i in range(len(chain)):
            sites += _block_sites(stack, i, "encoder" if name == "decoder" else name)
        if spaces[name].length:
            sites = [_no_pattern(s) if s.rows == name else s for s in sites]
        sites.append(_final_norm(trace, chain[-1], stack, width))
    sites += _answer(trace.output, [*spaces][-1])
    anatomy.sites = SiteTable(sites, title)
    return anatomy


def _entrance(trace: Trace, first: Call, space: Space, arguments: Mapping[str, Any], anatomy: Anatomy, width: int) -> list[Site]:
    prefix = f"{space.name}." if space.name else ""
    given = arguments[space.argument]
    sites = []
    if space.modality == "vision":
        outer = next((c for c in trace.calls for t in c.inputs.values() if t.shape == given.shape and torch.equal(t, given)), None)
        key = next((k for k, t in outer.inputs.items() if t.shape == given.shape), 0) if outer else 0
        place = Place(outer.path, "input", key) if outer else None
        sites.append(
            Site(
                f"{prefix}pixels",
                "example channel height width",
                "example",
                tuple(given.shape[1:]),
                place,
                missing=None if place else "no module takes the pixels in",
            )
        )
    embedding = _embedding_call(trace, given, first)
    rows = f"{prefix}patch" if space.modality == "vision" else space.name
    if embedding is not None:
        anatomy.embeddings[space.name] = embedding.path
        grid = embedding.output.ndim == 4  # type: ignore[union-attr]
        shape = (embedding.output.shape[1 if grid else -1],)  # type: ignore[union-attr]
        place = Place(embedding.path, "output", cut=("grid",) if grid else None)
        sites.append(Site(f"{prefix}token_embed", "row d_model", rows, shape, place, note="patches only" if rows.endswith("patch") else ""))
    else:
        sites.append(Site(f"{prefix}token_embed", "row d_model", rows, missing="no embedding of these inputs was seen"))
    sites.append(Site(f"{prefix}embed", "row d_model", space.name, (width,), same_as=f"{prefix}blocks.0.resid_pre"))
    return sites


def _embedding_call(trace: Trace, given: Tensor, first: Call) -> Call | None:
    """The last module before the blocks that takes ids or pixels and gives one vector per token or patch."""
    before = [
        c for c in trace.calls if c.start < first.start and c.end < first.start and c.output is not None and c.output.is_floating_point()
    ]
    fits = [c for c in before if any(t.shape == given.shape and torch.equal(t, given) for t in c.inputs.values())]
    fits = [c for c in fits if c.output.shape[0] == given.shape[0] and c.output.ndim > 2]  # type: ignore[union-attr]
    if not given.is_floating_point():
        fits = [c for c in fits if _looks_up(c, given)]
    return fits[-1] if fits else None


def _looks_up(call: Call, ids: Tensor) -> bool:
    """Does it give every id its own row of the table? Position tables take ids too, for their shape alone."""
    table = getattr(call.module, "weight", None)
    if not isinstance(call.module, nn.Embedding) or not isinstance(table, Tensor) or int(ids.max()) >= len(table):
        return False
    rows = table[ids].float()
    if rows.shape != call.output.shape:  # type: ignore[union-attr]
        return False
    return bool((torch.nn.functional.cosine_similarity(rows, call.output.float(), dim=-1) > 0.99).all())  # type: ignore[union-attr]


AXES = {
    "resid_pre": "row d_model", "attn.in": "row d_model", "attn.q": "row head d_head", "attn.k": "row head d_head", "attn.v": "row head d_head",
    "attn.q_rot": "row head d_head", "attn.k_rot": "row head d_head", "attn.scores": "head query key", "attn.pattern": "head query key",
    "attn.z": "row head d_head", "attn.head_out": "row head d_model", "attn.proj": "row d_model", "attn.out": "row d_model",
    "resid_mid": "row d_model", "resid_cross": "row d_model", "mlp.in": "row d_model", "mlp.pre": "row d_mlp", "mlp.act": "row d_mlp",
    "mlp.up": "row d_mlp", "mlp.post": "row d_mlp", "mlp.proj": "row d_model", "mlp.out": "row d_model", "resid_post": "row d_model",
}  # fmt: skip


def _order(block: Block) -> list[tuple[str, str]]:
    """Short names in reading order, cross-attention after self-attention."""
    names = list(AXES.items())
    if "cross" in block.attention:
        at = next(i for i, (n, _) in enumerate(names) if n == "resid_cross")
        names[at:at] = [(n.replace("attn.", "cross."), a) for n, a in names if n.startswith("attn.")]
        return names
    return [(n, a) for n, a in names if n != "resid_cross"]


def _block_sites(stack: Stack, i: int, key_rows: str) -> list[Site]:
    block, prefix = stack.blocks[i], f"{stack.prefix}blocks.{i}."
    return [_block_site(stack, block, i, prefix, short, axes, key_rows) for short, axes in _order(block)]


def _block_site(stack: Stack, block: Block, i: int, prefix: str, short: str, axes: str, key_rows: str) -> Site:
    room, _, leaf = short.partition(".")
    site = Site(prefix + short, axes, stack.name, _shape(block, room, leaf), block.places.get(short), missing=block.missing.get(short))
    if room == "cross" and leaf in ("k", "v", "k_rot"):
        site = replace(site, rows=key_rows)
    if short == "resid_pre" and i > 0:
        return replace(site, same_as=f"{stack.prefix}blocks.{i - 1}.resid_post")
    if short in block.equal:
        rotary = leaf.endswith("_rot")
        return replace(
            site, same_as=prefix + block.equal[short], kind="rotary" if rotary else "place", note=f"equals {leaf[0]}" if rotary else ""
        )
    if leaf in ("q_rot", "k_rot") or short in block.kernel:
        return replace(site, kind="rotary", missing=None if room in block.attention else block.missing.get(f"{room}.q", OUTSIDE))
    if leaf in ("scores", "pattern", "head_out"):
        needed = ("z",) if leaf == "head_out" else ("v", "z")  # without them a pattern cannot be proven
        lacking = site.missing or next((r for n in needed if (r := block.missing.get(f"{room}.{n}"))), None)
        return replace(site, kind="derived", missing=lacking if room in block.attention else block.missing.get(f"{room}.q", OUTSIDE))
    if site.place is None and not site.missing:
        return replace(site, missing="it was not found in this block")
    return site


def _no_pattern(site: Site) -> Site:
    if site.name.rpartition(".")[2] not in ("scores", "pattern"):
        return site
    return replace(site, missing="this tower pads every text to full length and attends to its pads, which are no rows")


def _shape(block: Block, room: str, leaf: str) -> tuple[int, ...]:
    sizes = block.sizes
    if leaf in ("q", "q_rot", "z", "k", "k_rot", "v"):
        width = sizes.get(f"{room}.d_value" if leaf in ("z", "v") else f"{room}.d_head", 0)
        return (sizes.get(f"{room}.kv_heads" if leaf[0] in "kv" else f"{room}.heads", 0), width)
    if leaf in ("scores", "pattern"):
        return ()
    if leaf == "head_out":
        return (sizes.get(f"{room}.heads", 0), sizes["d_model"])
    return (sizes.get("d_mlp", 0) if room == "mlp" and leaf in ("pre", "act", "up", "post") else sizes["d_model"],)


def _final_norm(trace: Trace, last: Call, stack: Stack, width: int) -> Site:
    """What the head reads: the norm after the last block, on all rows or on the pooled one."""
    name, y = f"{stack.prefix}final_norm", last.output
    assert y is not None
    for call in (c for c in trace.calls if c.start > last.end and c.output is not None and not any(map(is_linear, c.module.modules()))):
        value = first_input(call)
        if value is None or value.shape != call.output.shape:  # type: ignore[union-attr]
            continue
        if value.shape == y.shape and same(value, y) and not same(call.output, y):
            stack.final_norm = call.path
            return Site(name, "row d_model", stack.name, (width,), Place(call.path, "output", turn=call.turn))
        if value.ndim == 2 and same(value, y[:, 0]):
            stack.final_norm = call.path
            return Site(name, "example d_model", "example", (width,), Place(call.path, "output", turn=call.turn), note="pooled")
    last_post = f"{stack.prefix}blocks.{len(stack.blocks) - 1}.resid_post"
    return Site(name, "row d_model", stack.name, (width,), same_as=last_post, note="no norm after the last block")


def _answer(output: Any, last_space: str) -> list[Site]:
    for attribute in ("logits", "logits_per_image"):
        value = getattr(output, attribute, None)
        if isinstance(value, Tensor):
            rowwise = value.ndim == 3
            axes, rows = ("row vocab", last_space) if rowwise else ("example class", "example")
            return [Site("logits", axes, rows, (value.shape[-1],), Place("", "output", attribute), kind="answer")]
    return [
        Site("logits", "row vocab", missing="this class has no head; load the class that has one (…ForCausalLM, …ForImageClassification)")
    ]
