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
    "mlp.pre": ("gate_proj", "wi_0"),
    "mlp.up": ("up_proj", "wi_1"),
    "mlp.proj": ("down_proj", "wo", "fc2", "lin2"),
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
        problem = _compare(runner, inputs, stack, states)
        if problem:
            return f"differ: {problem}{_in(stack.name)}"
        seen += len(states)
    return f"agree: {seen}" if seen else "not offered"


def _compare(runner: TorchRunner, inputs: Any, stack: Any, states: Any) -> str:
    """Empty if every state that transformers returns is one of ours, in order."""
    post, embed, final = f"{stack.prefix}blocks.*.resid_post", f"{stack.prefix}embed", f"{stack.prefix}final_norm"
    rec = runner.run(inputs, [post, embed, final])
    blocks = [rec[f"{stack.prefix}blocks.{i}.resid_post"].tensor for i in range(len(stack.blocks))]
    pooled = runner.sites[final].rows != stack.name
    # The last state is the normed one in most classes; state-space models return no first one.
    ends = [blocks[-1:], *([] if pooled else [[rec[final].tensor]])]
    orders = [[rec[embed].tensor, *blocks[:-1], *end] for end in ends] + ([] if pooled else [[*blocks, rec[final].tensor]])
    if len(states) != len(orders[0]):
        return f"{len(states)} states for {len(blocks)} blocks"
    wrong = [next((i for i, (a, b) in enumerate(zip(o, states, strict=True)) if not _close(a, b)), None) for o in orders]
    return "" if None in wrong else f"state {max(w for w in wrong if w is not None)}"


def _close(mine: Tensor, theirs: Tensor) -> bool:
    theirs = theirs.reshape(-1, theirs.shape[-1])[: len(mine)]  # what follows the rows are pads
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
                if rec.attention[name.removesuffix(".pattern")].sinks is not None and float((pattern.sum(-1) - 1).abs().max()) < CLOSE:
                    ours = ours / ours.sum(-1, keepdim=True)  # they return the shares before the sink takes its own
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
                if role == "mlp.pre" and "mlp.up" not in block.places:
                    continue  # without a gate, the branch goes by many names
                leaf = place.path.rpartition(".")[2]
                others = [r for r, names in CALLED.items() if leaf in names and r != role and r[:4] == role[:4]]
                if leaf not in called and others:
                    return f"differ: {stack.prefix}blocks.{i}.{role} is read off {place.path}"
                seen += leaf in called
    return f"agree: {seen}" if seen else "not offered"
