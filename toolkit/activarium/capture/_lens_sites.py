"""Our sites in a TransformerLens model, from one probe that watches every place that may hold one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from activarium.attention import AttentionSpec
from activarium.capture._block import Block
from activarium.capture._lens_block import BlockReader
from activarium.capture._lens_places import ENDS, NO_HOOK
from activarium.capture._probe import AXES, Anatomy, Stack
from activarium.capture._sites import Place, Site, SiteTable
from activarium.capture._trace import first_tensor


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
            block = BlockReader(self, i, cfg, describe(self.model.blocks[i])).read(found.attention)
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
