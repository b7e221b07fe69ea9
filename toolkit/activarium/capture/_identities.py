"""The algebra of a block: what every site must equal, computed from other sites and the weights, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from activarium.attention import AttentionSpec, scores_and_pattern
from activarium.capture._block import Block
from activarium.capture._writes import per_feature
from activarium.recording import Recording

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


SOFTMAX = 1e-6  # many models compute the softmax of their patterns in float32, whatever their own type


@dataclass(frozen=True)
class Identity:
    """`site` was read as `got`; from other sites and weights it must be `wanted`. `floor` is the least gap that shows anything."""

    name: str
    site: str
    got: Tensor
    wanted: Tensor
    floor: float = 0.0

    @property
    def gap(self) -> float:
        """Largest difference relative to the site's largest value."""
        got, wanted = self.got.double(), self.wanted.double()
        if not torch.isfinite(wanted).all() or not torch.isfinite(got).all():
            return float("inf")
        return float((got - wanted).abs().max() / got.abs().max().clamp_min(1e-30)) if got.numel() else 0.0


class BlockAlgebra:
    """All identities of one block in one recording."""

    def __init__(self, model: TorchRunner, recording: Recording, stack: str, i: int) -> None:
        self.model, self.rec = model, recording
        self.block: Block = model.anatomy.stacks[stack].blocks[i]
        self.prefix = f"{model.anatomy.stacks[stack].prefix}blocks.{i}."
        self.stack = stack

    def has(self, *names: str) -> bool:
        """Are all of these sites there?"""
        return all(self.prefix + n in self.model.sites for n in names)

    def known(self, name: str) -> bool:
        """Can this weight be named?"""
        return self.prefix + name in self.model.weights

    def value(self, name: str) -> Tensor:
        """A site's rows in float64."""
        return self.rec[self.prefix + name].tensor.double()

    def equal(self, name: str, site: str, wanted: Callable[[], Tensor], needs: tuple[str, ...]) -> Iterator[Identity]:
        """One identity, if the sites it is about exist."""
        if self.has(site, *needs):
            yield Identity(name, self.prefix + site, self.value(site), wanted())

    def all(self) -> Iterator[Identity]:
        """Every identity of the block, in the order of its computation."""
        for room in self.block.attention:
            yield from self._entrance(room)
            yield from self._projections(room)
            yield from self._attention(room)
        yield from self._entrance("mlp")
        yield from self._mlp()
        yield from self._sums()

    def _entrance(self, room: str) -> Iterator[Identity]:
        stream = self._stream_before(room)
        role = f"{room}.norm"
        if self.block.algebra == "post-norm" or (role not in self.block.modules and self.block.algebra != "unknown"):
            yield from self.equal("reads the stream itself", f"{room}.in", lambda: self.value(stream), (stream,))
        elif role in self.block.modules:
            yield from self.equal("reads norm(stream)", f"{room}.in", lambda: self._module(role, stream), (stream,))

    def _stream_before(self, room: str) -> str:
        if room == "attn" or self.block.algebra in ("parallel", "single"):
            return "resid_pre"
        return "resid_cross" if room == "mlp" and "cross" in self.block.attention else "resid_mid"

    def _module(self, role: str, site: str) -> Tensor:
        return self._through(role, self.rec[self.prefix + site].tensor)

    def _through(self, role: str, values: Tensor) -> Tensor:
        """The model's own module on given rows; hooks and wrappers around it stay out."""
        module = self.model.module(self.block.modules[role])
        with torch.no_grad():
            return type(module).forward(module, values.to(self.model.dtype)[None])[0].double()

    def _projections(self, room: str) -> Iterator[Identity]:
        for letter in "qkv":
            name = f"{room}.{letter}"
            # Latent attention has other weights in between, quantised layers have none to give.
            if self.has(name) and self.known(f"{room}.W_{letter.upper()}") and (source := self._source(room, letter)) is not None:
                wanted = torch.einsum("rm,hmd->rhd", source, self._weight(f"{room}.W_{letter.upper()}")) + self._bias(
                    f"{room}.b_{letter.upper()}"
                )
                yield Identity(f"{letter} = in W_{letter.upper()} + b", self.prefix + name, self.value(name), wanted)

    def _source(self, room: str, letter: str) -> Tensor | None:
        if room == "cross" and letter in "kv":
            return self.rec["encoder.final_norm"].tensor.double() if "encoder.final_norm" in self.rec else None
        return self.value(f"{room}.in") if self.has(f"{room}.in") else None

    def _weight(self, name: str) -> Tensor:
        return self.model.weight(self.prefix + name).double()

    def _bias(self, name: str) -> Tensor | float:
        return self._weight(name) if self.prefix + name in self.model.weights else 0.0

    def _attention(self, room: str) -> Iterator[Identity]:
        if self.has(f"{room}.pattern", f"{room}.z", f"{room}.v"):
            yield from self._mixing(room)
        if self.has(f"{room}.z", f"{room}.proj") and self.known(f"{room}.W_O"):
            wanted = torch.einsum("rhd,hdm->rm", self.value(f"{room}.z"), self._weight(f"{room}.W_O")) + self._bias(f"{room}.b_O")
            yield Identity("proj = sum of head_out + b_O", f"{self.prefix}{room}.proj", self.value(f"{room}.proj"), wanted)
        yield from self._after(room)

    def _mixing(self, room: str) -> Iterator[Identity]:
        pattern, v, z = (self.rec[f"{self.prefix}{room}.{n}"] for n in ("pattern", "v", "z"))
        mixed, sums = [], []
        for example in z.index.examples:  # type: ignore[union-attr]
            share = pattern.example(example).tensor.double()
            values = v.tensor[v.index.span(example)].double()  # type: ignore[union-attr]
            values = values.repeat_interleave(share.shape[0] // values.shape[1], dim=1)
            mixed.append(torch.einsum("hqk,khd->qhd", share, values))
            sums.append(share.sum(-1).T)
        yield Identity("pattern @ v = z", f"{self.prefix}{room}.z", z.tensor.double(), torch.cat(mixed))
        total = torch.cat(sums)
        spec = self.rec.attention.get(f"{self.prefix}{room}")
        wanted = torch.ones_like(total) if spec is not None and spec.sinks is None else total.clamp(0, 1)
        floor = SOFTMAX if self.model.sites[f"{self.prefix}{room}.pattern"].kind == "place" else 0.0
        yield Identity("pattern rows sum to 1 with the sink", f"{self.prefix}{room}.pattern", total, wanted, floor)
        if spec is not None and floor:
            yield self._described(room, spec)

    def _described(self, room: str, spec: AttentionSpec) -> Identity:
        """A pattern that the model computed itself must follow from its queries and keys, as a store will compute it."""
        name = f"{self.prefix}{room}.pattern"
        pattern, q, k = (self.rec[f"{self.prefix}{room}.{n}"] for n in ("pattern", "q_rot", "k_rot"))
        got, wanted = [], []
        for example in q.index.examples:  # type: ignore[union-attr]
            rows = q.index.span(example)  # type: ignore[union-attr]
            got.append(pattern.example(example).tensor.double().flatten())
            wanted.append(scores_and_pattern(q.tensor[rows].double(), k.tensor[rows].double(), spec)[1].flatten())
        return Identity("pattern = softmax(scaled q_rot k_rot)", name, torch.cat(got), torch.cat(wanted), SOFTMAX)

    def _after(self, room: str) -> Iterator[Identity]:
        role = f"{room}.post"
        if role in self.block.modules:
            yield from self.equal("out = post(proj)", f"{room}.out", lambda: self._module(role, f"{room}.proj"), (f"{room}.proj",))
        elif room in self.block.gained:
            yield from self.equal(
                "out = proj scaled per feature", f"{room}.out", lambda: self._scaled(room), (f"{room}.proj", f"{room}.out")
            )

    def _scaled(self, room: str) -> Tensor:
        """The projection under the one factor per feature that fits all rows best."""
        proj = self.value(f"{room}.proj")
        return proj * per_feature(proj, self.value(f"{room}.out"))

    def _mlp(self) -> Iterator[Identity]:
        gated = self.has("mlp.up")
        if self.has("mlp.in", "mlp.pre") and self.known("mlp.W_gate" if gated else "mlp.W_in"):
            wanted = self.value("mlp.in") @ self._weight("mlp.W_gate" if gated else "mlp.W_in") + self._bias(
                "mlp.b_gate" if gated else "mlp.b_in"
            )
            yield Identity("pre = in W + b", f"{self.prefix}mlp.pre", self.value("mlp.pre"), wanted)
        if gated and self.has("mlp.in") and self.known("mlp.W_in"):
            yield Identity(
                "up = in W_in + b",
                f"{self.prefix}mlp.up",
                self.value("mlp.up"),
                self.value("mlp.in") @ self._weight("mlp.W_in") + self._bias("mlp.b_in"),
            )
        if "mlp.activation" in self.block.modules:
            yield from self.equal("act = activation(pre)", "mlp.act", lambda: self._module("mlp.activation", "mlp.pre"), ("mlp.pre",))
        if gated and self.has("mlp.act"):
            yield from self.equal("post = act * up", "mlp.post", lambda: self.value("mlp.act") * self.value("mlp.up"), ("mlp.act",))
        if self.has("mlp.post", "mlp.proj") and self.known("mlp.W_down"):
            wanted = self.value("mlp.post") @ self._weight("mlp.W_down") + self._bias("mlp.b_down")
            yield Identity("proj = post W_down + b", f"{self.prefix}mlp.proj", self.value("mlp.proj"), wanted)
        yield from self._after("mlp")

    def _sums(self) -> Iterator[Identity]:
        rooms = self.block.writers
        if not rooms or not self.has(*(f"{r}.out" for r in rooms)):
            return
        if self.block.algebra == "parallel":
            total = self.value("resid_pre") + sum(self.value(f"{r}.out") for r in rooms)
            yield Identity("resid_post = resid_pre + attn.out + mlp.out", f"{self.prefix}resid_post", self.value("resid_post"), total)
            return
        stream = "resid_pre"
        for room, after in zip(rooms, [*(["resid_mid", "resid_cross"][: len(rooms) - 1]), "resid_post"], strict=True):
            total = self.value(stream) + self.value(f"{room}.out")
            end = f"{room}.end"
            if end in self.block.modules:
                yield Identity(f"{after} = norm({stream} + {room}.out)", self.prefix + after, self.value(after), self._through(end, total))
            else:
                yield Identity(f"{after} = {stream} + {room}.out", self.prefix + after, self.value(after), total)
            stream = after


def exit_identities(model: TorchRunner, recording: Recording, stacks: Sequence[str]) -> Iterator[Identity]:
    """What follows the last block of these stacks: the final norm, and the head where it reads single rows."""
    for stack in (model.anatomy.stacks[name] for name in stacks):
        name, last = f"{stack.prefix}final_norm", f"{stack.prefix}blocks.{len(stack.blocks) - 1}.resid_post"
        if stack.final_norm is None or name not in recording:
            continue
        stream = recording[last]
        rows = stream.tensor
        if model.sites[name].rows == "example":
            rows = rows[[stream.index.span(e).start for e in stream.index.examples]]  # type: ignore[union-attr]
        module = model.module(stack.final_norm)
        with torch.no_grad():
            yield Identity(
                "final_norm = norm(last resid_post)", name, recording[name].tensor.double(), type(module).forward(module, rows).double()
            )
    answer = model.sites["logits"] if "logits" in recording else None
    if answer is not None and answer.axes == "row vocab" and answer.rows in stacks:
        stack = model.anatomy.stacks[answer.rows]
        last = f"{stack.prefix}blocks.{len(stack.blocks) - 1}.resid_post"
        yield Identity("logits = readout(last resid_post)", "logits", recording["logits"].tensor, model.readout(recording[last].tensor))
