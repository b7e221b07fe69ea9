"""Which component writes before which one reads: the edges of a transformer, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from activarium.errors import InputError


@dataclass(frozen=True)
class Layer:
    """One block: how many heads write, how many keys and values are read, and what it has.

    Attributes:
        heads: Query heads; 0 in a block without attention.
        groups: Key/value heads; fewer than `heads` where they are grouped.
        mlp: Has it an MLP?
        parallel: Does its MLP read the stream before its attention has written?
    """

    heads: int
    groups: int
    mlp: bool = True
    parallel: bool = False

    @property
    def writers(self) -> int:
        """How many components of it write to the stream."""
        return self.heads + self.mlp


@dataclass(frozen=True)
class Reader:
    """One input slot: the query, key or value input of a head, the input of an MLP, or that of the logits.

    Attributes:
        name: `blocks.3.attn.q.2`, `blocks.3.mlp`, `logits`.
        layer: Its block; the number of blocks for the logits.
        before: How many writers have written when it reads; it reads exactly the first so many.
    """

    name: str
    layer: int
    before: int


class Wiring:
    """Writers `embed`, heads and MLPs; readers are the inputs of heads, MLPs and logits; an edge wherever one writes before the other reads.

    Attributes:
        layers: The blocks.
        writers: Names of all writers, in the order in which they write.
        readers: All readers, in the order in which they read.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.writers: tuple[str, ...] = ("embed", *(name for i in range(len(self.layers)) for name in self._writers_of(i)))
        self.readers: tuple[Reader, ...] = tuple(self._readers())

    def _writers_of(self, i: int) -> list[str]:
        layer = self.layers[i]
        return [f"blocks.{i}.attn.head.{h}" for h in range(layer.heads)] + [f"blocks.{i}.mlp"] * layer.mlp

    def _readers(self) -> Iterator[Reader]:
        for i, layer in enumerate(self.layers):
            before = self.first(i)
            for leaf, count in (("q", layer.heads), ("k", layer.groups), ("v", layer.groups)):
                yield from (Reader(f"blocks.{i}.attn.{leaf}.{h}", i, before) for h in range(count))
            if layer.mlp:
                yield Reader(f"blocks.{i}.mlp", i, before + (0 if layer.parallel else layer.heads))
        yield Reader("logits", len(self.layers), len(self.writers))

    def first(self, i: int) -> int:
        """Number of the first writer of a block: as many have written before it."""
        return 1 + sum(layer.writers for layer in self.layers[:i])

    def heads_of(self, i: int) -> slice:
        """Numbers of the writers that are heads of a block."""
        return slice(self.first(i), self.first(i) + self.layers[i].heads)

    def mlp_of(self, i: int) -> int:
        """Number of the writer that is the MLP of a block."""
        return self.first(i) + self.layers[i].heads

    def inputs_of(self, i: int) -> dict[str, slice]:
        """Numbers of a block's readers, by what they read for: `q k v mlp`."""
        start = sum(layer.heads + 2 * layer.groups + layer.mlp for layer in self.layers[:i])
        layer, found = self.layers[i], {}
        for leaf, count in (("q", layer.heads), ("k", layer.groups), ("v", layer.groups), ("mlp", int(layer.mlp))):
            found[leaf] = slice(start, start + count)
            start += count
        return found

    @cached_property
    def edges(self) -> np.ndarray:
        """Boolean `reader writer`: is there such an edge?"""
        return np.arange(len(self.writers)) < np.array([r.before for r in self.readers])[:, None]

    @cached_property
    def serves(self) -> np.ndarray:
        """Boolean `reader writer`: does this input feed this writer from within? The query input of a head serves that head."""
        found = np.zeros((len(self.readers), len(self.writers)), dtype=bool)
        for i, layer in enumerate(self.layers):
            inputs, first = self.inputs_of(i), self.first(i)
            for h in range(layer.heads):
                group = h * layer.groups // layer.heads
                found[[inputs["q"].start + h, inputs["k"].start + group, inputs["v"].start + group], first + h] = True
            if layer.mlp:
                found[inputs["mlp"].start, self.mlp_of(i)] = True
        return found


def wiring(model: Any) -> Wiring:
    """The wiring of a model.

    Raises:
        InputError: Its stream is not a sum of writers, or it has several stacks.
        MissingSite: It does not show the inputs of its heads.
    """
    stacks = getattr(getattr(model, "anatomy", None), "stacks", {})
    if list(stacks) != [""]:
        found = f"has stacks {', '.join(stacks)}" if stacks else "has no blocks that were recognised"
        raise InputError(f"Edges are those of one chain of blocks; {model.name} {found}. Patch nodes instead: activation_patching.")
    return Wiring([_layer(model, i, block) for i, block in enumerate(stacks[""].blocks)])


def _layer(model: Any, i: int, block: Any) -> Layer:
    if block.algebra not in ("pre-norm", "parallel", "single") or "cross" in block.writers:
        why = {"post-norm": "a norm follows every sum"}.get(block.algebra, "its sum was not found")
        raise InputError(
            f"blocks.{i} of {model.name}: the stream is not a sum of writers ({why}), so there are no edges. Patch nodes instead: activation_patching."
        )
    heads = groups = 0
    if "attn" in block.writers:
        for leaf in ("q", "k", "v", "z"):
            model.sites.find(f"blocks.{i}.attn.{leaf}")
            model.weight(f"blocks.{i}.attn.W_{'O' if leaf == 'z' else leaf.upper()}")
        heads, groups = (model.sites[f"blocks.{i}.attn.{leaf}"].shape[0] for leaf in "qk")
    return Layer(heads, groups, "mlp" in block.writers, block.algebra == "parallel")
