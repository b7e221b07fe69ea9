"""One block of a TransformerLens model: which places fired, how they lie, how they add up. Decided by arithmetic."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from activarium.attention import AttentionSpec, scores_and_pattern
from activarium.capture._block import Block, same
from activarium.capture._cuts import read_cut
from activarium.capture._lens_places import NO_HOOK, NORMS, TILES
from activarium.capture._probe import AXES

if TYPE_CHECKING:
    from activarium.capture._lens_sites import Probe


class BlockReader:
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
        self.out.writers = ("attn", "mlp") if m is not None else ("attn",)
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
