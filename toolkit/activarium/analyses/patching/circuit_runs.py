"""A circuit run exactly: every reader sees the present values of the writers it is connected to, and the source's of all others."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.reader_inputs import Readers
from activarium.analyses.patching.sides import Sides, measured, wide
from activarium.analyses.patching.wiring import Wiring
from activarium.analyses.patching.writers import Writers
from activarium.edits import Replace


class Circuits:
    """Circuits of one model over one batch of pairs.

    Attributes:
        base: The metric of the run that is patched, per pair: what the circuit of all edges gives.
        source: The metric of the other run: what the empty circuit gives.
    """

    def __init__(self, model: Any, sides: Sides, wiring: Wiring) -> None:
        self.model, self.sides, self.wiring = model, sides, wiring
        self.readers, self.writers = Readers(model, wiring), Writers(model, wiring)
        sites = [*dict.fromkeys([*self.writers.sites, *(s for s in self.readers.sites if s.endswith(("resid_pre", "resid_post")))])]
        base, self._source = sides.run(model, sides.base, sites), sides.run(model, sides.source, self.writers.sites)
        self.base, self.source = measured(base), measured(self._source)
        self.writers.learn(base)
        for i, layer in enumerate(wiring.layers):  # tried now, for nothing can be tried in the midst of a forward
            for room in ["attn"] * bool(layer.heads) + ["mlp"] * layer.mlp:
                self.readers.norm(f"blocks.{i}.{room}.norm", self.readers.stream(base, i, room))

    def metric(self, circuit: np.ndarray) -> np.ndarray:
        """The metric per pair with the edges of a circuit, boolean `reader writer`."""
        forward = _Forward(self, self.wiring.edges & ~circuit)
        return measured(self.sides.run(self.model, self.sides.base, edits=forward.edits()))

    def empty_error(self) -> float:
        """Without edges every writer must write what it wrote in the source run: the largest gap, as a share of the largest value there."""
        forward = _Forward(self, self.wiring.edges)
        self.sides.run(self.model, self.sides.base, edits=forward.edits())
        gaps = [0.0]
        for site, change in forward.change.items():
            if site != "blocks.0.resid_pre":  # the embedding reads nothing
                size = (
                    self.values(site)
                    if site.endswith("mlp.out")
                    else self.writers.attention[int(site.split(".")[1])].heads(self.values(site))
                )
                gaps.append(float(change.abs().max()) / max(float(size.abs().max()), 1e-30))
        return max(gaps)

    def values(self, site: str) -> Tensor:
        """What a writer's site held in the source run."""
        return wide(self._source[site].tensor)


class _Forward:
    """One forward: what has been written so far, and the inputs made of it."""

    def __init__(self, circuits: Circuits, cut: np.ndarray) -> None:
        self.made, self.wiring, self.cut = circuits, circuits.wiring, cut
        self.stream = torch.empty(0)  # what enters the present block
        self.after_attention = torch.empty(0)
        self.proj: dict[int, Tensor] = {}  # block → present result of its output projection
        self.change: dict[str, Tensor] = {}  # writer's site → present less source; of heads `row head d_model`

    def edits(self) -> list[Replace]:
        """In the order of the forward."""
        made = []
        for i, layer in enumerate(self.wiring.layers):
            room = f"blocks.{i}"
            made.append(Replace(f"{room}.resid_pre", partial(self.enter, i)))
            if layer.heads:
                made += [Replace(f"{room}.attn.{leaf}", partial(self.head_inputs, i, leaf)) for leaf in ("q", "k", "v")]
                made.append(Replace(f"{room}.attn.z", partial(self.see_heads, i)))
            if layer.mlp:
                made += [
                    Replace(f"{room}.mlp.in", partial(self.mlp_input, i)),
                    Replace(f"{room}.mlp.out", partial(self.see, f"{room}.mlp.out")),
                ]
        return [*made, Replace(self.made.readers.last, self.logits_input)]

    # --- what is written

    def see(self, site: str, values: Tensor) -> Tensor:
        """Remember what a writer writes."""
        self.change[site] = wide(values) - self.made.values(site)
        return values

    def enter(self, i: int, values: Tensor) -> Tensor:
        """Remember the stream that a block takes in."""
        self.stream = self.after_attention = wide(values)
        return self.see("blocks.0.resid_pre", values) if i == 0 else values

    def see_heads(self, i: int, values: Tensor) -> Tensor:
        """Remember what the heads of a block write."""
        write, site = self.made.writers.attention[i], f"blocks.{i}.attn.z"
        heads = write.heads(wide(values))
        self.proj[i] = heads.sum(1) + write.bias
        self.change[site] = heads - write.heads(self.made.values(site))
        if not self.wiring.layers[i].parallel:
            self.after_attention = self.stream + write(self.proj[i])
        return values

    # --- what is read

    def head_inputs(self, i: int, leaf: str, values: Tensor) -> Tensor:
        """Queries, keys or values of a block, each of its own mixture."""
        readers = self.wiring.inputs_of(i)[leaf]
        if not self.cut[readers].any():
            return values
        model, room = self.made.model, f"blocks.{i}.attn"
        rows = self.made.readers.norms[f"{room}.norm"](self.mixture(self.stream, readers))
        found = torch.einsum("hrm,hmd->rhd", rows, wide(model.weight(f"{room}.W_{leaf.upper()}")))
        bias = f"{room}.b_{leaf.upper()}"
        return found + wide(model.weight(bias)) if bias in model.weights else found

    def mlp_input(self, i: int, values: Tensor) -> Tensor:
        """What the MLP of a block takes in."""
        readers = self.wiring.inputs_of(i)["mlp"]
        if not self.cut[readers].any():
            return values
        return self.made.readers.norms[f"blocks.{i}.mlp.norm"](self.mixture(self.after_attention, readers)[0])

    def logits_input(self, values: Tensor) -> Tensor:
        """The stream that the final norm takes in."""
        readers = slice(len(self.wiring.readers) - 1, len(self.wiring.readers))
        return self.mixture(wide(values), readers)[0] if self.cut[readers].any() else values

    def mixture(self, stream: Tensor, readers: slice) -> Tensor:
        """`reader row d_model`: the present stream, with the source's values of the writers that are cut off."""
        cut = torch.as_tensor(self.cut[readers], dtype=stream.dtype, device=stream.device)
        found = stream - cut[:, 0, None, None] * self.change["blocks.0.resid_pre"]
        for i, layer in enumerate(self.wiring.layers):
            heads, mlp = cut[:, self.wiring.heads_of(i)], cut[:, self.wiring.mlp_of(i)] if layer.mlp else cut[:, :0]
            if heads.any():
                # A norm after attention takes in the mixed sum, so heads are exchanged before it.
                write, proj = self.made.writers.attention[i], self.proj[i]
                found = found - (write(proj) - write(proj - torch.einsum("nh,rhm->nrm", heads, self.change[f"blocks.{i}.attn.z"])))
            if mlp.any():
                found = found - mlp[:, None, None] * self.change[f"blocks.{i}.mlp.out"]
        return found
