"""One pass from the bottom to the top in which branches join at their own block: rows grow, nothing below a branch is run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from activarium.capture._cuts import read_cut, replace_first, write_cut
from activarium.capture._probe import Stack
from activarium.capture._sites import Place
from activarium.capture._trace import first_tensor
from activarium.metrics import Metric
from activarium.recording import Recording

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


@dataclass
class Base:
    """The untouched forward of examples of one length, from which branches leave.

    Attributes:
        arguments: The model's arguments for the first of them: without pads, what blocks are told is the same for all.
        streams: What enters each block, and after the last block what leaves it, `example position d_model`.
        keys: Rotated keys of each block, `example head position d_head`, where positions can be reused.
        values: Values of each block, likewise.
        metric: The metric of each example.
        encoded: What a decoder is given of its encoder, `example position d_model`.
    """

    arguments: dict[str, Any]
    streams: list[Tensor]
    metric: np.ndarray
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    encoded: Tensor | None = None


@dataclass
class Entry:
    """Branches that join before one block.

    Attributes:
        number: Number of each branch among those of the walk.
        example: Its example.
        stream: What enters the block, `branch position d_model`, from the walk's first position on.
        writes: Places inside the block, and what is put there: branch and position of each new row, and its values.
    """

    number: np.ndarray
    example: np.ndarray
    stream: Tensor
    writes: list[tuple[Place, np.ndarray, np.ndarray, Tensor]] = field(default_factory=list)


class _Top(Exception):  # not an error: nothing above the last block is needed
    """The last block was run."""


class Walk:
    """One staircase.

    Attributes:
        number: Which branch each row of the stream belongs to.
        example: Which example it is a variant of.
        stream: `branch position d_model` after the last block.
        block_rows: Rows that blocks were run on: positions × branches, summed over blocks.
    """

    def __init__(self, model: TorchRunner, stack: Stack, base: Base, start: int) -> None:
        self.model, self.stack, self.base, self.start = model, stack, base, start
        self.number, self.example = np.empty(0, int), np.empty(0, int)
        self.stream: Tensor | None = None
        self.block_rows = 0
        self._block = -1
        self._entries: dict[int, list[Entry]] = {}
        self._encoded = None if base.encoded is None else base.encoded[:1]  # told to the model for its first example

    def run(self, entries: Mapping[int, Sequence[Entry]]) -> None:
        """Walk up; `entries` say who joins before which block, after the last block too."""
        self._entries = {b: list(e) for b, e in entries.items()}
        depth = len(self.stack.blocks)
        if any(b < depth for b in self._entries):
            arguments, more = self._arguments()
            try:
                with self._climbing(), self._writing(), torch.no_grad():
                    self.model.call(**arguments, **{**self.model._encoder.quiet, **more})
            except _Top:
                pass
        self._join(depth)

    def _arguments(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self._encoded is not None:
            from transformers.modeling_outputs import BaseModelOutput

            return self.base.arguments, {"encoder_outputs": BaseModelOutput(self._encoded)}  # type: ignore[arg-type]
        if not self.start:
            return self.base.arguments, {}
        cut = {k: v[:, self.start :] if v.ndim == 2 else v for k, v in self.base.arguments.items()}
        whole = self.base.streams[0].shape[1]
        positions = torch.arange(self.start, whole, device=self.model.device)[None]
        return cut, {"past_key_values": _prefix(self), "use_cache": True, "position_ids": positions}

    # --- rows

    def _join(self, block: int) -> None:
        new = self._entries.get(block, [])
        if not new:
            return
        streams = ([] if self.stream is None else [self.stream]) + [e.stream for e in new]
        self.stream = streams[0] if len(streams) == 1 else torch.cat(streams)
        self.number = np.concatenate([self.number, *(e.number for e in new)])
        self.example = np.concatenate([self.example, *(e.example for e in new)])

    @contextmanager
    def _climbing(self) -> Iterator[None]:
        """The blocks' forwards are replaced by ours for the length of the walk, on the instances; undone however it ends."""
        bound: list[tuple[nn.Module, Any]] = []
        try:
            for path in dict.fromkeys(b.path for b in self.stack.blocks):
                module = self.model.module(path)
                turns = {b.turn: i for i, b in enumerate(self.stack.blocks) if b.path == path}
                bound.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = self._climb(module.forward, turns)
            yield
        finally:
            for module, own in bound:
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own

    def _climb(self, forward: Any, turns: Mapping[int, int]) -> Any:
        seen = [0]

        def substitute(*args: Any, **kwargs: Any) -> Any:
            block = turns[seen[0]]
            seen[0] += 1
            key = self.stack.blocks[block].places["resid_pre"].argument
            given = args[key] if isinstance(key, int) else kwargs[key]
            if self.stream is not None:
                self.stream = given
            self._join(block)
            if self.stream is None:  # nobody is here yet
                return forward(*args, **kwargs) if self.stack.container else given
            if isinstance(key, int):
                args = (*args[:key], self.stream, *args[key + 1 :])
            else:
                kwargs = {**kwargs, key: self.stream}
            if self._encoded is not None:
                args, kwargs = self._told(args, kwargs)
            self._block = block
            output = forward(*args, **kwargs)
            self._block = -1
            self.block_rows += self.stream.shape[0] * self.stream.shape[1]
            found = first_tensor(output)
            assert found is not None
            self.stream = found
            if block == len(self.stack.blocks) - 1:
                raise _Top
            return replace_first(output, found)

        return substitute

    def _told(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Every branch attends to the encoder's output of its own example."""
        assert self.base.encoded is not None
        if not any(v is self._encoded for v in (*args, *kwargs.values())):
            raise RuntimeError("a block of the decoder is not given the encoder's output as it was handed to the model")
        own = self.base.encoded[torch.as_tensor(self.example, device=self.base.encoded.device)]
        return tuple(own if a is self._encoded else a for a in args), {k: own if v is self._encoded else v for k, v in kwargs.items()}

    # --- writes inside a block

    @contextmanager
    def _writing(self) -> Iterator[None]:
        handles = []
        try:
            for block, entries in self._entries.items():
                for entry in entries:
                    for place, owner, position, values in entry.writes:
                        module = self.model.module(place.path)
                        hook = self._write(block, entry, place, owner, position, values)
                        if place.side == "input":
                            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                        else:
                            handles.append(module.register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _write(self, block: int, entry: Entry, place: Place, owner: np.ndarray, position: np.ndarray, values: Tensor) -> Any:
        def put(raw: Tensor) -> Tensor:
            first = int(np.flatnonzero(self.number == entry.number[0])[0])  # branches of an entry lie together
            lines, places = torch.as_tensor(first + owner, device=raw.device), torch.as_tensor(position - self.start, device=raw.device)
            count, rows = self.stream.shape[:2]  # type: ignore[union-attr]
            view = read_cut(raw, place.cut)
            flat = view.ndim < 3 or view.shape[:2] != (count, rows)
            new = (view.unflatten(0, (count, rows)) if flat else view).clone()
            new[lines, places] = values.to(new.dtype)
            return write_cut(raw, new.flatten(0, 1) if flat else new, place.cut)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._block != block:
                return None
            key = place.argument
            value = args[key] if isinstance(key, int) else kwargs[key]
            new = put(value)
            args = tuple(new if a is value else a for a in args)
            return args, {k: new if a is value or k in place.also else a for k, a in kwargs.items()}

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._block != block:
                return None
            value = first_tensor(output)
            assert value is not None
            return replace_first(output, put(value))

        return before if place.side == "input" else after


def _prefix(walk: Walk) -> Any:
    """The model's own cache, which gives every branch the earlier keys and values of its example."""
    from transformers import DynamicCache

    base, start = walk.base, walk.start

    class Earlier(DynamicCache):
        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            here = (
                torch.as_tensor(walk.example, device=key_states.device)
                if len(key_states) == len(walk.example)
                else torch.zeros(1, dtype=torch.long)
            )
            keys, values = base.keys[layer_idx][:, :, :start], base.values[layer_idx][:, :, :start]
            return torch.cat([keys[here], key_states], 2), torch.cat([values[here], value_states], 2)

    cache = Earlier()
    for i, (k, v) in enumerate(zip(base.keys, base.values, strict=True)):
        DynamicCache.update(cache, k[:1, :, :start], v[:1, :, :start], i)
    return cache


def base_of(model: TorchRunner, stack: Stack, inputs: Any, metric: Metric, prefix: bool) -> Base:
    """Run examples of one length once, and keep what branches leave from."""
    depth, count = len(stack.blocks), len(inputs)
    streams = [f"{stack.prefix}blocks.{i}.resid_pre" for i in range(depth)] + [f"{stack.prefix}blocks.{depth - 1}.resid_post"]
    heads = [f"{stack.prefix}blocks.{i}.attn.{n}" for i in range(depth) for n in ("k_rot", "v")] if prefix else []
    recording: Recording = model.run(inputs, read=[*streams, *heads], metrics={"metric": metric})
    first = {k: v.to(model.device) for k, v in inputs.select([0]).numbered(0).batch.arguments.items()}

    def dense(name: str) -> Tensor:
        return recording[name].tensor.unflatten(0, (count, -1))

    keys, values = ([dense(n).transpose(1, 2) for n in heads[at::2]] for at in (0, 1))
    encoded = None
    if stack.name == "decoder":
        taken = inputs.spaces["encoder"].argument
        with torch.no_grad():
            encoded = model.torch_module.get_encoder()(inputs.batch.arguments[taken].to(model.device)).last_hidden_state
        first.pop(taken)
    return Base(first, [dense(n) for n in streams], recording.metric["metric"].double().cpu().numpy(), keys, values, encoded)
