"""Only the rest of a forward: blocks before a boundary stand aside, the model's own code does what follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from activarium.activations import Activations
from activarium.capture._cuts import replace_first
from activarium.capture._inputs import Batch, Inputs
from activarium.capture._probe import Stack
from activarium.capture._trace import first_tensor
from activarium.errors import InputError, MissingSite, unknown
from activarium.recording import Recording

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


class Resume:
    """Resumed forwards of one model."""

    def __init__(self, model: TorchRunner) -> None:
        self.model = model

    def run(
        self,
        inputs: Inputs,
        at: str,
        values: Tensor | Activations,
        read: Any,
        *,
        edits: Sequence[Any],
        metrics: Any,
        grad: bool,
        start: int,
        cached_kv: Recording | None,
    ) -> Recording:
        """See `TorchRunner.resume`."""
        stack, depth = self._boundary(at)
        batch = inputs.batch
        padded = self._padded(batch, stack, values.tensor if isinstance(values, Activations) else values, start)
        extra: dict[str, Any] = {}
        if start:
            extra = self._prefix(batch, stack, cached_kv, start)

        def forward(arguments: dict[str, Tensor]) -> Any:
            if start:
                arguments = {k: v[:, start:] if v.ndim == 2 else v for k, v in arguments.items()}
            with standing_aside({stack.name: (stack, depth, padded)}, self.model):
                return self.model.call(**arguments, **{**self.model._encoder.quiet, **extra})

        if start:
            batch = _tail(inputs, start)
            whole = inputs.batch
            return self.model._run(batch, read, edits, metrics, grad, None, lambda _: forward(dict(whole.arguments)))
        return self.model._run(batch, read, edits, metrics, grad, None, forward)

    def readout(self, resid: Tensor) -> Tensor:
        """See `TorchRunner.readout`."""
        model = self.model
        if "logits" in model.sites.missing:
            raise MissingSite(f"{model.name} has no head to read out with: {model.sites.missing['logits']}.")
        site = model.sites["logits"]
        if site.place is None or site.place.argument != "logits":
            raise MissingSite(f"{model.name} compares two towers; it has no head that reads one row.")
        name = site.rows if site.rows in model.anatomy.stacks else next(iter(model.anatomy.stacks))
        width = model.anatomy.stacks[name].blocks[0].sizes["d_model"]
        if resid.ndim != 2 or resid.shape[-1] != width:
            raise InputError(f"readout takes rows 'row d_model' with {width} features; found shape {tuple(resid.shape)}.")
        rows = resid.to(model.device, model.dtype)[:, None]
        aside = {s.name: (s, len(s.blocks), rows if s.name == name else None) for s in model.anatomy.stacks.values()}
        with standing_aside(aside, model), torch.set_grad_enabled(torch.is_grad_enabled() and resid.requires_grad):
            output = model.call(**self._dummies(len(rows)), **model._encoder.quiet)
        logits = output.logits
        logits = logits[:, -1] if logits.ndim == 3 else logits
        if len(logits) != len(rows) or not torch.isfinite(logits[torch.isfinite(rows[:, 0]).all(-1)]).all():
            raise InputError(
                f"The head of {model.name} pools several rows, so one row alone has no answer. Use resume(inputs, at='…resid_post', values=…)."
            )
        return logits

    def _dummies(self, count: int) -> dict[str, Tensor]:
        """Inputs of one row each: nothing of them reaches the head."""
        made: dict[str, Tensor] = {}
        for space in self.model._encoder.spaces.values():
            if space.modality == "text":
                made[space.argument] = torch.full((count, 1), int(space.pad == 0), dtype=torch.long, device=self.model.device)
            elif all(s.image_token is None for s in self.model._encoder.spaces.values()):
                made[space.argument] = torch.zeros(1, *space.image, device=self.model.device, dtype=self.model.dtype)
        return made

    def _boundary(self, at: str) -> tuple[Stack, int]:
        """The stack, and how many of its blocks stand aside."""
        site = self.model.sites[at]
        stack = self.model.anatomy.stacks.get(site.rows)
        parts = at.split(".")
        if stack is not None and parts[-1] in ("resid_pre", "resid_post"):
            return stack, int(parts[-2]) + (parts[-1] == "resid_post")
        if stack is not None and parts[-1] == "embed":
            return stack, 0
        known = [f"{s.prefix}blocks.{i}.resid_pre" for s in self.model.anatomy.stacks.values() for i in range(len(s.blocks))]
        raise unknown("block boundary to resume at", at, known)

    def _padded(self, batch: Batch, stack: Stack, values: Tensor, start: int) -> Tensor:
        count, width = batch.shape[stack.name]
        index = batch.index[stack.name]
        rows = count * (width - start) if index is None else len(index)
        if values.ndim != 2 or len(values) != rows:
            raise InputError(f"resume wants values for {rows} rows of {stack.prefix or 'the '}stack; found shape {tuple(values.shape)}.")
        values = values.to(self.model.device, self.model.dtype)
        if index is None:
            return values.reshape(count, width - start, -1)
        return values.new_zeros(count * width, values.shape[-1]).index_put((index,), values).reshape(count, width, -1)

    def _prefix(self, batch: Batch, stack: Stack, cached: Recording | None, start: int) -> dict[str, Any]:
        """Earlier keys and values as the model's own cache, and the positions that go on from there."""
        from transformers import DynamicCache

        count, width = batch.shape[stack.name]
        if stack.name or batch.index[stack.name] is not None or len(self.model.anatomy.stacks) > 1:
            raise InputError(
                "Resuming from a later position needs a causal single-stack model and texts of one length; drop start=, or group texts by length."
            )
        if cached is None:
            raise InputError(
                "Resuming from a later position needs cached_kv: a recording of the same inputs with blocks.*.attn.k_rot and blocks.*.attn.v."
            )
        if any(not spec.causal for spec in cached.attention.values()) or not cached.attention:
            raise InputError("This attention looks both ways, so later positions change earlier ones; drop start=.")
        cache = DynamicCache()
        for i in range(len(stack.blocks)):
            k, v = (cached[f"blocks.{i}.attn.{n}"].tensor.unflatten(0, (count, width))[:, :start].transpose(1, 2) for n in ("k_rot", "v"))
            cache.update(k, v, i)
        positions = torch.arange(start, width, device=self.model.device).expand(count, -1)
        return {"past_key_values": cache, "use_cache": True, "position_ids": positions}


@contextmanager
def standing_aside(stacks: dict[str, tuple[Stack, int, Tensor | None]], model: TorchRunner) -> Iterator[None]:
    """In each stack the first blocks do nothing and the stream continues with the given values; undone however the block ends."""
    bound: list[tuple[nn.Module, Any]] = []
    try:
        for stack, depth, values in stacks.values():
            for path in dict.fromkeys(b.path for b in stack.blocks):
                module = model.module(path)
                turns = {b.turn: i for i, b in enumerate(stack.blocks) if b.path == path}
                keys = {i: stack.blocks[i].places["resid_pre"].argument for i in turns.values()}
                bound.append((module, module.__dict__.get("forward")))
                # Past the module's own __setattr__: wrappers of other libraries pass what is set on to what they wrap.
                module.__dict__["forward"] = _aside(module.forward, turns, keys, depth, values, stack.container)
        yield
    finally:
        for module, own in bound:
            if own is None:
                module.__dict__.pop("forward", None)  # the class's own forward shows again
            else:
                module.__dict__["forward"] = own  # somebody had replaced it already


def _aside(forward: Any, turns: dict[int, int], keys: dict[int, int | str], depth: int, values: Tensor | None, container: bool) -> Any:
    seen = [0]

    def substitute(*args: Any, **kwargs: Any) -> Any:
        i = turns[seen[0]]
        seen[0] += 1
        key = keys[i]
        stream = args[key] if isinstance(key, int) else kwargs[key]
        if i == depth and values is not None:
            args, kwargs = (
                (tuple(values if j == key else a for j, a in enumerate(args)), kwargs)
                if isinstance(key, int)
                else (args, {**kwargs, key: values})
            )
        if i >= depth:
            return forward(*args, **kwargs)
        given = values if i == depth - 1 and values is not None else stream
        if not container:
            return given
        # Blocks that return tuples hand on more than the stream (T5's position bias, made by the first block).
        output = forward(*args, **kwargs)
        assert first_tensor(output) is not None
        return replace_first(output, given)

    return substitute


def _tail(inputs: Inputs, start: int) -> Batch:
    """The batch of the positions that are run."""
    (name, texts), *_ = inputs.data.items()
    shorter = replace(inputs, data={name: [t[start:] for t in texts]})
    return shorter.batch
