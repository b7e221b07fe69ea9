"""Text written by the model, read while it is written: a session for every forward of transformers' own `generate`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, StoppingCriteriaList

from activarium.capture._answers import needed, needs_kernel
from activarium.capture._inputs import Inputs
from activarium.capture._session import Session
from activarium.capture._sparse_mlp import refuse_narrow
from activarium.capture._steps import Step, Steps
from activarium.capture._stops import Ends
from activarium.edits import Edit, SkipBlock
from activarium.errors import InputError
from activarium.recording import Recording

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


@dataclass(frozen=True)
class Generation:
    """What the model wrote, and what was read while it wrote.

    Attributes:
        recording: Every row of every final text; `phase` and `step` say which were given and which were written.
        ids: Token ids that were written, per example, the stop token included.
        texts: The same as text, without special tokens.
        inputs: Prompts and what was written, together: `model.run(generation.inputs)` is one clean forward over them.
    """

    recording: Recording
    ids: list[Tensor]
    texts: list[str]
    inputs: Inputs

    def __repr__(self) -> str:
        return "\n".join(
            [f"Generation({len(self.ids)} texts, {sum(map(len, self.ids))} tokens written)", *(f"  {t!r}" for t in self.texts)]
        )


def generate(
    model: TorchRunner,
    prompts: Inputs,
    names: Sequence[str],
    edits: Sequence[Edit],
    *,
    max_new_tokens: int,
    stop: Any,
    seed: int,
    num_beams: int,
    settings: Mapping[str, Any],
) -> Generation:
    """See `TorchRunner.generate`."""
    space = _space(model, prompts, max_new_tokens, num_beams)
    refuse_narrow(model, names, edits)
    ends = Ends(model, prompts, space, stop)
    steps = Steps(model, prompts, space, names)
    chosen = {k: v for k, v in settings.items() if v is not None}
    options = {"max_new_tokens": max_new_tokens, "eos_token_id": ends.ids or None, **chosen}
    arguments = {k: v.to(model.device) for k, v in _arguments(prompts, space).items()}
    own, text, mask = model.torch_module.generate, prompts.spaces[space].argument, arguments[_mask(space)]
    given: dict[str, Any] = {
        "pad_token_id": prompts.spaces[space].pad, "use_cache": True, "return_dict_in_generate": True,
        # Whatever the model's own settings say: one text for a prompt, and all of the prompt in one forward.
        "num_beams": 1, "num_return_sequences": 1, "prefill_chunk_size": None,
    }  # fmt: skip
    if space == "decoder":
        # Made from its config, the cache would have as many layers as the encoder.
        given["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with _seeded(model, seed), _watched(model, steps, ends, edits):
        made = own(**arguments, **given, **options, stopping_criteria=StoppingCriteriaList([ends]))
        # The last token was written, but no forward has read it yet: one more does, on the same cache.
        longer = mask.new_ones(len(made.sequences), made.sequences.shape[1] - mask.shape[1])
        last = {text: made.sequences, _mask(space): torch.cat([mask, longer], 1), "past_key_values": made.past_key_values}
        own(**{**arguments, **given, **last, **steps.encoded}, max_new_tokens=1, do_sample=False)
    return _finished(model, prompts, space, steps, ends, {**options, "seed": seed})


@contextmanager
def _seeded(model: TorchRunner, seed: int) -> Iterator[None]:
    """Draws from a seed; torch's own generator is where it was afterwards."""
    kind = model.device.type
    with torch.random.fork_rng(devices=[] if kind == "cpu" else [model.device], device_type="cuda" if kind == "cpu" else kind):
        torch.manual_seed(seed)
        yield


def _finished(model: TorchRunner, prompts: Inputs, space: str, steps: Steps, ends: Ends, options: dict[str, Any]) -> Generation:
    written = [torch.stack(column) if column else torch.empty(0, dtype=torch.long) for column in steps.written]
    texts = [torch.cat([p, w]) for p, w in zip(prompts.data[space], written, strict=True)]
    inputs = replace(prompts, data={**prompts.data, space: texts})
    words = ends.tokenizer.decode if ends.tokenizer is not None else None
    said = [words(w, skip_special_tokens=True) if words else " ".join(map(prompts.words, w.tolist())) for w in written]
    return Generation(steps.recording(inputs, options), written, said, inputs)


def _space(model: TorchRunner, prompts: Inputs, more: int, beams: int) -> str:
    """The row space that grows; everything that cannot be generated is refused here."""
    kind = type(model.torch_module).__name__
    able = getattr(model.torch_module, "can_generate", None)
    if able is None or not able():
        raise InputError(f"{model.name} ({kind}) does not write text. Load a class that does (…ForCausalLM), or use run.")
    if "past_key_values" not in inspect.signature(model.torch_module.forward).parameters:
        raise InputError(
            f"{model.name} ({kind}) keeps no keys and values of earlier tokens, which generate reads with. Use run on whole texts."
        )
    if beams != 1:
        raise InputError(
            f"num_beams={beams}: several beams share and drop rows, so no row would belong to one text. Use num_beams=1, with do_sample and a seed for variety."
        )
    if more < 1:
        raise InputError(f"max_new_tokens is {more}; ask for at least one token, or use run.")
    if model.torch_module.training:
        raise InputError(f"{model.name} is in training mode, where dropout changes what is read. Call model.torch_module.eval() first.")
    spaces = set(prompts.spaces)
    if not (len(spaces) == 1 or spaces == {"encoder", "decoder"}):
        raise InputError(f"{model.name} takes {' and '.join(sorted(spaces))}; generate serves models of text alone.")
    space = "decoder" if "decoder" in spaces else next(iter(spaces))
    longest, limit = int(prompts.rows_of(space).max()), prompts.spaces[space].limit
    if limit and longest + more > limit:
        raise InputError(
            f"The longest prompt has {longest} tokens and max_new_tokens is {more}; this model has {limit} positions. Ask for at most {limit - longest}."
        )
    ragged = len(set(prompts.rows_of(space).tolist())) > 1
    if ragged and model.eager and model.dtype == torch.float64:
        raise InputError(
            f"{model.name} runs eager attention in float64, where the padding of texts of different length gives NaN. Generate one length at a time, or use sdpa."
        )
    return space


def _arguments(prompts: Inputs, space: str) -> dict[str, Tensor]:
    """Prompts as transformers' `generate` wants them: the text that grows is padded on the left."""
    made = dict(prompts.batch.arguments)
    own, texts = prompts.spaces[space], prompts.data[space]
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), own.pad)
    mask = torch.zeros(len(texts), width, dtype=torch.long)
    for i, text in enumerate(texts):
        ids[i, width - len(text) :], mask[i, width - len(text) :] = text, 1
    made[own.argument] = ids
    made[_mask(space)] = mask
    return made


def _mask(space: str) -> str:
    return "decoder_attention_mask" if space == "decoder" else "attention_mask"


@contextmanager
def _watched(model: TorchRunner, steps: Steps, ends: Ends, edits: Sequence[Edit]) -> Iterator[None]:
    """Every forward of the block runs in a session of its own; the model is as before however the block ends."""
    hf, watch = model.torch_module, needs_kernel(steps.names)
    reads = list(dict.fromkeys(needed(model, steps.names, False)))
    early = [n for n in reads if n.startswith("encoder.")]
    # A decoder asks its encoder once: keys and values of cross-attention come from the cache afterwards.
    once = [n for n in reads if n.startswith("decoder.") and model.site(n).rows == "encoder"]
    keys: dict[str, Tensor] = {}

    def session(step: Step, wanted: Sequence[str], changes: Sequence[Edit]) -> Session:
        return Session(model, step, wanted, changes, grad=False, stop_after=None, watch=watch, edited_keys=keys)

    def encoder(forward: Any, *args: Any, **kwargs: Any) -> Any:
        one = session(steps.before(), early, [e for e in edits if _site(e).startswith("encoder.")])
        with one.hooked():
            output = forward(*args, **kwargs)
        one.check_fired()
        steps.take(one, output, early)
        steps.encoded = {"encoder_outputs": output}
        return output

    def decoder(forward: Any, *args: Any, **kwargs: Any) -> Any:
        step = steps.next(kwargs[steps.argument], ends.real)
        if step is None:
            return forward(*args, **kwargs)
        if "logits" in reads_of_answer:
            kwargs.pop("logits_to_keep", None)
        wanted = [n for n in reads if n not in early and (step.number == 0 or n not in once)]
        changes = [e for e in edits if not _site(e).startswith("encoder.") and (step.number == 0 or not _once(model, e))]
        one = session(step, wanted, changes)
        one.turns.update(passed)
        with one.hooked():
            output = forward(*args, **kwargs)
        one.check_fired()
        steps.take(one, output, [*wanted, *reads_of_answer])
        return output

    # Modules that both stacks run, such as a shared embedding, have been passed by the encoder before the decoder comes.
    places = [s.place for n, s in model.sites.items() if n.startswith("encoder.") and s.place is not None]
    passed = {(p.path, p.side): 1 + max(o.turn for o in places if (o.path, o.side) == (p.path, p.side)) for p in places}
    reads_of_answer = [n for n in steps.names if model.site(n).kind == "answer"]
    with torch.no_grad():
        if "encoder" in steps.prompts.spaces:
            with _replaced(hf.get_encoder(), encoder), _replaced(hf, decoder):
                yield
        else:
            with _replaced(hf, decoder):
                yield


@contextmanager
def _replaced(module: nn.Module, substitute: Any) -> Iterator[None]:
    own, forward = module.__dict__.get("forward"), module.forward

    # `generate` looks at the signature to see what a model takes.
    @functools.wraps(forward)
    def called(*args: Any, **kwargs: Any) -> Any:
        return substitute(forward, *args, **kwargs)

    module.forward = called  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            module.__dict__.pop("forward", None)  # the class's own forward shows again
        else:
            module.forward = own  # somebody had replaced it already


def _site(edit: Edit) -> str:
    return edit.site + "." if isinstance(edit, SkipBlock) else edit.site  # type: ignore[attr-defined]


def _once(model: TorchRunner, edit: Edit) -> bool:
    """Is this an edit of cross-attention keys or values as they are projected, which happens in the first forward alone?"""
    name = _site(edit)
    if isinstance(edit, SkipBlock) or name.startswith("module:"):
        return False
    site = model.sites.find(name)
    return site.kind == "place" and site.rows == "encoder" and name.startswith("decoder.")
