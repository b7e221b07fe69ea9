"""A reference that knows nothing of our site finder: what transformers itself returns, and what modules are called."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

CLOSE = 2e-5
# Names of other roles: a query that is read off a module called `k_proj` is wrong, whatever adds up.
CALLED = {
    "attn.q": ("q", "query", "wq", "q_proj", "q_lin", "query_proj", "q_attn", "q_b_proj"),
    "attn.k": ("k", "key", "wk", "k_proj", "k_lin", "key_proj"),
    "attn.v": ("v", "value", "wv", "v_proj", "v_lin", "value_proj"),
    "mlp.pre": ("gate_proj", "w1", "wi_0", "gate", "fc1", "intermediate.dense", "c_fc", "lin1"),
    "mlp.up": ("up_proj", "w3", "wi_1"),
    "mlp.proj": ("down_proj", "w2", "wo", "fc2", "lin2"),
}


def ask(runner: TorchRunner) -> dict[str, str]:
    """States, patterns and names, each `agree`, `differ …` or `not offered …`."""
    from activarium.capture._certify import probe_inputs

    inputs = probe_inputs(runner).select([0])
    return {"states": _states(runner, inputs), "patterns": _patterns(runner, inputs), "names": _names(runner)}


def _plain(model: Any, runner: TorchRunner, inputs: Any, **more: Any) -> Any:
    with torch.no_grad():
        return model(**inputs.batch.arguments, **runner._encoder.quiet, **more)


FIELDS = {
    "": ("hidden_states",), "encoder": ("encoder_hidden_states",), "decoder": ("decoder_hidden_states",),
    "vision": ("vision_model_output.hidden_states", "image_hidden_states"), "text": ("text_model_output.hidden_states",),
}  # fmt: skip


def _offered(output: Any, stack: str, what: str) -> Any:
    for name in FIELDS[stack]:
        value = output
        for part in name.replace("hidden_states", what).split("."):
            value = getattr(value, part, None)
        if value is not None:
            return value
    return None


def _states(runner: TorchRunner, inputs: Any) -> str:
    try:
        output = _plain(runner.torch_module, runner, inputs, output_hidden_states=True)
    except Exception as error:
        return f"not offered: {type(error).__name__}"
    seen = 0
    for stack in runner.anatomy.stacks.values():
        states = _offered(output, stack.name, "hidden_states")
        if states is None:
            continue
        rec = runner.run(inputs, [f"{stack.prefix}blocks.*.resid_post", f"{stack.prefix}embed", f"{stack.prefix}final_norm"])
        ours = [rec[f"{stack.prefix}embed"].tensor] + [rec[f"{stack.prefix}blocks.{i}.resid_post"].tensor for i in range(len(stack.blocks))]
        if len(states) != len(ours):
            return f"differ: {len(states)} states for {len(stack.blocks)} blocks{_in(stack.name)}"
        for i, (mine, theirs) in enumerate(zip(ours, states, strict=True)):
            last = i == len(stack.blocks)
            # The last state is the normed one in most classes.
            also = rec[f"{stack.prefix}final_norm"].tensor if last and runner.sites[f"{stack.prefix}final_norm"].rows == stack.name else None
            if not _close(mine, theirs) and not (also is not None and _close(also, theirs)):
                return f"differ: state {i}{_in(stack.name)}"
            seen += 1
    return f"agree: {seen}" if seen else "not offered"


def _close(mine: Tensor, theirs: Tensor) -> bool:
    theirs = theirs.reshape(-1, theirs.shape[-1]) if theirs.shape[-1] == mine.shape[-1] else theirs.flatten(2).transpose(1, 2).flatten(0, 1)
    return mine.shape == theirs.shape and float((mine - theirs).abs().max()) <= CLOSE * float(theirs.abs().max().clamp_min(1e-6))


def _in(stack: str) -> str:
    return f" in the {stack}" if stack else ""


def _patterns(runner: TorchRunner, inputs: Any) -> str:
    twin = copy.deepcopy(runner.torch_module)
    try:
        twin.set_attn_implementation("eager")
        output = _plain(twin, runner, inputs, output_attentions=True)
    except Exception as error:
        return f"not offered: {type(error).__name__}"
    seen = 0
    for stack in runner.anatomy.stacks.values():
        for room, what in (("attn", "attentions"), ("cross", "cross_attentions")):
            theirs = getattr(output, "cross_attentions", None) if room == "cross" else _offered(output, stack.name, what)
            names = [f"{stack.prefix}blocks.{i}.{room}.pattern" for i in range(len(stack.blocks))]
            names = [n for n in names if n in runner.sites]
            if not theirs or not names:
                continue
            theirs = [t for t in theirs if isinstance(t, Tensor)]
            if len(theirs) != len(names):
                if len(names) == len(stack.blocks):
                    return f"differ: {len(theirs)} patterns for {len(names)} blocks{_in(stack.name)}"
                continue
            rec = runner.run(inputs, names)
            for name, pattern in zip(names, theirs, strict=True):
                ours = rec[name].example(rec[name].index.examples[0]).tensor  # type: ignore[union-attr]
                if ours.shape != pattern[0].shape or float((ours - pattern[0]).abs().max()) > CLOSE:
                    return f"differ: {name}"
                seen += 1
    return f"agree: {seen}" if seen else "not offered"


def _names(runner: TorchRunner) -> str:
    seen = 0
    for stack in runner.anatomy.stacks.values():
        for i, block in enumerate(stack.blocks):
            for role, called in CALLED.items():
                place = block.places.get(role)
                if place is None:
                    continue
                leaf = place.path.rpartition(".")[2]
                others = [r for r, names in CALLED.items() if leaf in names and r != role]
                if leaf not in called and others:
                    return f"differ: {stack.prefix}blocks.{i}.{role} is read off {place.path}"
                seen += leaf in called
    return f"agree: {seen}" if seen else "not offered"
