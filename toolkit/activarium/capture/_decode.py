"""The bare loop of writing: the prompt in one forward, then one token after the other, each step timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from activarium.capture._inputs import Inputs
from activarium.errors import InputError

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the loop wrote.

    Attributes:
        ids: Tokens, `(example, step)`.
        logits: What chose each of them, `(example, step, vocab)`; the first is the prompt's own.
        prefill: Seconds of the prompt.
        seconds: Seconds of every further step.
        processor: The same in processor time, of all threads: what a busy machine blurs less.
        inputs: Prompts and what was written, together.
    """

    ids: Tensor
    logits: Tensor
    prefill: float
    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    inputs: Inputs


def decode(model: TorchRunner, prompts: Inputs, max_new_tokens: int, tokens: Any) -> Decoded:
    """See `TorchRunner.decode`."""
    space = "decoder" if "decoder" in prompts.spaces else next(iter(prompts.spaces))
    forced = None if tokens is None else torch.as_tensor(tokens, dtype=torch.long).to(model.device)
    steps = max_new_tokens if forced is None else forced.shape[1]
    _check(model, prompts, space, steps)
    given = {prompts.spaces[s].argument: torch.stack(list(d)).to(model.device) for s, d in prompts.data.items()}
    text = prompts.spaces[space].argument
    written, logits, seconds, processor = [], [], [], []
    for step in range(steps):
        started, busy = time.perf_counter(), time.process_time()
        output = model.torch_module(**given, use_cache=True)
        logits.append(output.logits[:, -1])
        token = logits[-1].argmax(-1) if forced is None else forced[:, step]
        written.append(token.cpu())  # waits for the device, so that the clock is right
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - busy)
        given = {text: token[:, None], "past_key_values": output.past_key_values}
        if space == "decoder":
            given["encoder_outputs"] = (output.encoder_last_hidden_state,)
    ids = torch.stack(written, 1)
    whole = replace(prompts, data={**prompts.data, space: [torch.cat([p, w]) for p, w in zip(prompts.data[space], ids, strict=True)]})
    return Decoded(ids, torch.stack(logits, 1), seconds[0], tuple(seconds[1:]), tuple(processor[1:]), whole)


def _check(model: TorchRunner, prompts: Inputs, space: str, steps: int) -> None:
    lengths = (
        {int(n) for s in prompts.spaces for n in prompts.rows_of(s)} if space != "decoder" else set(map(int, prompts.rows_of("encoder")))
    )
    if len(lengths) > 1:
        raise InputError(
            f"The bare loop pads nothing; the prompts have {sorted(lengths)} tokens. Decode one length at a time, or use generate."
        )
    if steps < 1:
        raise InputError("There is no token to decode; ask for at least one.")
    limit, first = prompts.spaces[space].limit, int(prompts.rows_of(space).max())
    if limit and first + steps > limit:
        raise InputError(
            f"The prompt has {first} tokens and {steps} are to follow; this model has {limit} positions. Ask for at most {limit - first}."
        )
    if model.torch_module.training:
        raise InputError(f"{model.name} is in training mode, where dropout changes what is written. Call model.torch_module.eval() first.")
