"""The gradient at each reader's own input, before its norm: from gradients at queries, keys and values, without split inputs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from activarium.analyses.patching.norms import Norm
from activarium.analyses.patching.sides import wide
from activarium.analyses.patching.wiring import Wiring


class Readers:
    """The readers of a model.

    Attributes:
        wiring: Their order.
        sites: What a run must read for `gradient`.
        frozen: Hold the scales of norms (the LN-rule).
    """

    def __init__(self, model: Any, wiring: Wiring, frozen: bool = False) -> None:
        self.model, self.wiring, self.frozen = model, wiring, frozen
        self.sites: list[str] = []
        for i, layer in enumerate(wiring.layers):
            self.sites += [f"blocks.{i}.resid_pre"]
            self.sites += [f"blocks.{i}.attn.{n}" for n in ("q", "k", "v", "out") if layer.heads]
            if layer.mlp:
                self.sites += [f"blocks.{i}.mlp.in", f"blocks.{i}.mlp.out"]
        self.last = f"blocks.{len(wiring.layers) - 1}.resid_post"
        self.sites += [self.last]
        self.norms: dict[str, Norm] = {}

    def norm(self, name: str, rows: Tensor) -> Norm:
        """One of the model's norms, tried when it is first met."""
        if name not in self.norms:
            self.norms[name] = Norm(partial(self.model.normalise, name), rows[:4].to(self.model.dtype), name)
        return self.norms[name]

    def stream(self, recording: Any, i: int, room: str) -> Tensor:
        """The stream `row d_model` that a block's attention or MLP reads; of the block after the last, what the logits read."""
        if i == len(self.wiring.layers):
            return wide(recording[self.last].tensor.detach())
        entering = wide(recording[f"blocks.{i}.resid_pre"].tensor.detach())
        layer = self.wiring.layers[i]
        if room == "attn" or layer.parallel or not layer.heads:
            return entering
        return entering + wide(recording[f"blocks.{i}.attn.out"].tensor.detach())

    def gradient(self, recording: Any, gradient: Any, i: int, room: str) -> Tensor:
        """Gradient `reader row d_model` at the inputs of block i: of `attn` its query, key and value inputs, of `mlp` one."""
        if i == len(self.wiring.layers):
            return wide(gradient[self.last].tensor)[None]
        rows = self.stream(recording, i, room)
        norm = self.norm(f"blocks.{i}.{room}.norm", rows)
        if room == "mlp":
            return norm.back(rows, wide(gradient[f"blocks.{i}.mlp.in"].tensor)[None], frozen=self.frozen)
        found = []
        for leaf in ("q", "k", "v"):
            weight, slope = wide(self.model.weight(f"blocks.{i}.attn.W_{leaf.upper()}")), wide(gradient[f"blocks.{i}.attn.{leaf}"].tensor)
            found.append(norm.back(rows, torch.einsum("rhd,hmd->hrm", slope, weight), frozen=self.frozen))
        return torch.cat(found)
