"""MLPs that run with some of their neurons alone while a model writes on: gathered rows in the place of whole matrices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from activarium.edits import Edit
from activarium.errors import InputError, MissingSite

if TYPE_CHECKING:
    from activarium.capture._block import Block
    from activarium.capture._runner import TorchRunner

NARROW = ("mlp.pre", "mlp.act", "mlp.up", "mlp.post")  # sites that hold fewer numbers while their layer is sparse


@dataclass(eq=False)
class SparseMLPs:
    """What runs sparsely, and whether it did.

    Attributes:
        cores: `blocks.3.mlp.post` → the neurons that run, ascending.
        share: Neurons that run over neurons, in these layers together.
        forwards: How many forwards ran sparsely so far.
        on: The present forward does.
    """

    cores: dict[str, Tensor]
    share: float
    forwards: int = 0
    on: bool = False


@dataclass(frozen=True, eq=False)
class _Gathered:
    """One linear map with a part of its rows or columns."""

    path: str
    weight: Tensor  # `out in`, contiguous: read from end to end at every token
    bias: Tensor | None


@contextmanager
def sparse_mlps(model: TorchRunner, cores: Mapping[str, Any], means: Mapping[str, Any] | None) -> Iterator[SparseMLPs]:
    """See `TorchRunner.sparse`."""
    _check_model(model)
    chosen = {post: _neurons(model, post, neurons) for post, neurons in _by_post(model, cores).items()}
    offsets = _by_post(model, means or {})
    strange = [post for post in offsets if post not in chosen]
    if strange:
        raise InputError(
            f"means= names {strange[0]}, which has no core neurons here. Give means for {', '.join(chosen) or 'no site'} alone."
        )
    gathered = [g for post, neurons in chosen.items() for g in _gathered(model, post, neurons, offsets.get(post))]
    widths = [model.sites[post].shape[-1] for post in chosen]
    state = SparseMLPs(chosen, sum(map(len, chosen.values())) / max(1, sum(widths)))
    with ExitStack() as stack:
        for hook in (_before(state), _after(state)):
            stack.callback(hook(model.torch_module).remove)
        for one in gathered:
            stack.enter_context(_in_place(model.module(one.path), one, state))
        yield state


def refuse_narrow(model: TorchRunner, names: Sequence[str], edits: Sequence[Edit]) -> None:
    """Raise for what would be read or edited in a layer that runs with a part of its neurons.

    Raises:
        InputError: With the site.
    """
    asked = [*names, *(site for e in edits if (site := getattr(e, "site", None)) is not None)]
    for name in asked:
        site = model.sites.find(name).name if name in model.sites else name
        stem, _, leaf = site.rpartition(".mlp.")
        if f"mlp.{leaf}" in NARROW and any(f"{stem}.mlp.post" in s.cores for s in model.running_sparse):
            raise InputError(
                f"{name} has only its core neurons while {stem} runs sparsely, so it cannot be read or edited. Read mlp.out, or generate densely."
            )


def _check_model(model: TorchRunner) -> None:
    forward = inspect.signature(model.torch_module.forward).parameters
    if "past_key_values" not in forward:
        kind = type(model.torch_module).__name__
        raise InputError(
            f"{model.name} ({kind}) keeps no keys and values of earlier tokens, so nothing tells its prompt from what it writes. "
            "Load a class that writes text (…ForCausalLM)."
        )


def _by_post(model: TorchRunner, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same by the name under which the neurons of a layer are kept."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        post = model.sites.find(name).name
        if not post.endswith(".mlp.post"):
            raise InputError(f"{name} is not where an MLP's neurons are. Give core neurons by blocks.i.mlp.post.")
        if post.startswith(("encoder.", "vision.")):
            raise InputError(f"{post} runs once, with the prompt, which stays dense. Give the layers that write: {_writing(model)}.")
        if any(post in s.cores for s in model.running_sparse):
            raise InputError(f"{post} runs sparsely already. Leave the outer `with` first, or give other layers.")
        found[post] = value
    return found


def _writing(model: TorchRunner) -> str:
    return next((n.replace(".0.", ".*.") for n in model.sites if n.endswith("blocks.0.mlp.post") and not n.startswith("encoder.")), "none")


def _neurons(model: TorchRunner, post: str, neurons: Any) -> Tensor:
    """Core neurons as ascending indices."""
    width = model.sites[post].shape[-1]
    given = torch.as_tensor(neurons if isinstance(neurons, Tensor) else list(neurons), dtype=torch.long).flatten()
    wrong = [n for n in given.tolist() if not 0 <= n < width]
    if wrong:
        raise InputError(f"{post} has {width} neurons, numbered from 0; its core names {wrong[0]}.")
    if len(given.unique()) != len(given):
        raise InputError(f"The core of {post} names a neuron twice, which would count it twice. Give each once.")
    return given.sort().values.to(model.device)


def _gathered(model: TorchRunner, post: str, neurons: Tensor, mean: Any) -> list[_Gathered]:
    """The linear maps of one MLP with these neurons alone: rows of what leads in, columns of what leads out."""
    stem = post.removesuffix(".post")
    block = _block(model, stem)
    roles = [f"{stem}.{r}" for r in ("W_gate", "W_in") if f"mlp.{r}" in block.weights]
    if not roles:
        reason = block.missing.get("mlp.pre", "the modules that lead to its neurons are not known")
        raise MissingSite(f"{post} cannot run sparsely: {reason}.")
    parts: dict[str, list[tuple[int, str]]] = {}
    for name in roles:
        path, cut = block.weights["mlp." + name.rpartition(".")[2]]
        parts.setdefault(path, []).append((int(cut[1]) if cut else 0, name))  # a fused module holds its branches one after the other
    found = [_Gathered(path, *_rows(model, [name for _, name in sorted(names)], neurons)) for path, names in parts.items()]
    down, bias = model.weight(f"{stem}.W_down"), _bias(model, f"{stem}.b_down")
    if mean is not None:
        bias = _corrected(post, down, bias, neurons, mean)
    found.append(_Gathered(block.weights["mlp.W_down"][0], down[neurons].T.contiguous(), bias))
    owners = [p for s in model.anatomy.stacks.values() for b in s.blocks for p in {path for path, _ in b.weights.values()}]
    shared = next((g.path for g in found if owners.count(g.path) > 1), None)
    if shared:
        raise InputError(f"{post} shares its weights ({shared}) with other blocks, which would run with the same neurons. It stays dense.")
    return found


def _block(model: TorchRunner, stem: str) -> Block:
    prefix, _, number = stem.removesuffix(".mlp").rpartition("blocks.")
    return model.anatomy.stacks[prefix.rstrip(".")].blocks[int(number)]


def _rows(model: TorchRunner, names: Sequence[str], neurons: Tensor) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([model.weight(name)[:, neurons].T for name in names]).contiguous()
    biases = [_bias(model, name.replace("W_", "b_")) for name in names]
    return weight, None if biases[0] is None else torch.cat([b[neurons] for b in biases if b is not None])


def _bias(model: TorchRunner, name: str) -> Tensor | None:
    return model.weight(name) if name in model.weights else None


def _corrected(post: str, down: Tensor, bias: Tensor | None, neurons: Tensor, mean: Any) -> Tensor:
    """The bias of the down projection with what the other neurons give on average."""
    mean = torch.as_tensor(mean).to(down.device, down.dtype)
    if mean.shape != down.shape[:1]:
        raise InputError(f"means= has shape {tuple(mean.shape)} for {post}; wanted ({len(down)},), one mean for each neuron.")
    rest = torch.ones(len(down), dtype=torch.bool, device=down.device).index_fill(0, neurons, False)
    offset = mean[rest] @ down[rest]
    return offset if bias is None else bias + offset


def _before(state: SparseMLPs) -> Callable[[nn.Module], Any]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A prompt has no earlier keys, whatever its length; the number of its tokens would not tell it from the next one.
        cache = kwargs.get("past_key_values")
        state.on = cache is not None and int(cache.get_seq_length()) > 0
        state.forwards += state.on

    return lambda module: module.register_forward_pre_hook(before, with_kwargs=True)


def _after(state: SparseMLPs) -> Callable[[nn.Module], Any]:
    def after(*_: Any) -> None:
        state.on = False  # whoever calls a block by itself gets the whole of it

    return lambda module: module.register_forward_hook(after, always_call=True)


@contextmanager
def _in_place(module: nn.Module, gathered: _Gathered, state: SparseMLPs) -> Iterator[None]:
    """The module multiplies by the gathered rows while a forward is sparse; weights and all else are left alone."""
    own, forward = module.__dict__.get("forward"), module.forward

    def called(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return functional.linear(x, gathered.weight, gathered.bias) if state.on else forward(x, *args, **kwargs)

    module.forward = called  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own
