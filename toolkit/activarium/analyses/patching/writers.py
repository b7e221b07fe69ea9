"""What each component adds to the stream, so that the stream is their sum: the embedding, every head, every MLP."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from activarium.analyses.patching.norms import Norm
from activarium.analyses.patching.sides import wide
from activarium.analyses.patching.wiring import Wiring
from activarium.errors import InputError


class AttentionWrite:
    """How a block's heads become what its attention adds to the stream.

    Attributes:
        weight: Output projection, `head d_head d_model`.
        bias: Its bias, or 0.
        post: The norm or gain that follows it.
        factor: A further factor per feature, or 1.
    """

    def __init__(self, model: Any, i: int, proj: Tensor, out: Tensor) -> None:
        room = f"blocks.{i}.attn"
        self.weight = wide(model.weight(f"{room}.W_O"))
        self.bias = wide(model.weight(f"{room}.b_O")) if f"{room}.b_O" in model.weights else self.weight.new_zeros(())
        self.post = Norm(partial(model.normalise, f"{room}.post"), proj[:4], f"{room}.post")
        self.factor = self.weight.new_ones(())
        made, wanted = self(wide(proj)), wide(out)
        if not torch.allclose(made, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max())):
            self.factor = (made * wanted).sum(0) / made.square().sum(0).clamp_min(1e-30)
            if not torch.allclose(self(wide(proj)), wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max())):
                raise InputError(f"What {room} adds to the stream does not follow from its heads in {model.name}. Patch nodes instead.")

    def heads(self, z: Tensor) -> Tensor:
        """Raw head outputs `row head d_model`."""
        return torch.einsum("rhd,hdm->rhm", z.to(self.weight.dtype), self.weight)

    def __call__(self, proj: Tensor) -> Tensor:
        """What is added to the stream for a result of the output projection."""
        return self.factor * self.post(proj)

    def parts(self, z: Tensor) -> Tensor:
        """Each head's part of what is added, `row head d_model`; a norm after the projection has the scale of this run."""
        heads = self.heads(z)
        scale = self.post.scale(heads.sum(1) + self.bias)[:, None]
        return self.factor * self.post.frozen(scale, heads)


class Writers:
    """The writers of a model.

    Attributes:
        wiring: Their order.
        sites: What a recording must hold for `of`.
        attention: Block number → how its heads are written.
    """

    def __init__(self, model: Any, wiring: Wiring) -> None:
        self.model, self.wiring = model, wiring
        self.sites: list[str] = ["blocks.0.resid_pre"]
        for i, layer in enumerate(wiring.layers):
            self.sites += [f"blocks.{i}.attn.z", f"blocks.{i}.attn.proj", f"blocks.{i}.attn.out"] * bool(layer.heads)
            self.sites += [f"blocks.{i}.mlp.out"] * layer.mlp
        self.attention: dict[int, AttentionWrite] = {}

    def learn(self, recording: Any) -> None:
        """Find out how heads are written, from any run."""
        for i, layer in enumerate(self.wiring.layers):
            if layer.heads and i not in self.attention:
                proj, out = (recording[f"blocks.{i}.attn.{n}"].tensor.detach() for n in ("proj", "out"))
                self.attention[i] = AttentionWrite(self.model, i, proj, out)

    def of(self, recording: Any, i: int) -> Tensor:
        """What the writers of block i add, `writer row d_model`; of block -1, the embedding."""
        if i < 0:
            return wide(recording["blocks.0.resid_pre"].tensor.detach())[None]
        layer, found = self.wiring.layers[i], []
        if layer.heads:
            found.append(self.attention[i].parts(wide(recording[f"blocks.{i}.attn.z"].tensor.detach())).transpose(0, 1))
        if layer.mlp:
            found.append(wide(recording[f"blocks.{i}.mlp.out"].tensor.detach())[None])
        return torch.cat(found)


class Differences:
    """What the writers of one run add less what those of another add; kept per block as long as they fit."""

    def __init__(self, writers: Writers, base: Any, source: Any, memory: int) -> None:
        self.writers, self.base, self.source, self.left = writers, base, source, memory
        self._kept: dict[int, Tensor] = {}

    def of(self, i: int) -> Tensor:
        """Source less base, `writer row d_model`, of block i; of block -1, the embedding's."""
        if i in self._kept:
            return self._kept[i]
        found = self.writers.of(self.source, i) - self.writers.of(self.base, i)
        if found.nbytes <= self.left:
            self.left -= found.nbytes
            self._kept[i] = found
        return found
