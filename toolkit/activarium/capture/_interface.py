"""Our seat in Hugging Face's attention interface: the same kernel, watched. One implementation serves every family."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "activarium_"
Kernel = Callable[..., tuple[Tensor, Tensor | None]]


class Watcher(Protocol):
    """Who wants to see, and may change, what enters and leaves an attention kernel."""

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernel: Kernel, options: dict[str, Any]
    ) -> Any: ...


# The interface table belongs to the process, so the function finds its run here, per thread and task.
_watcher: ContextVar[Watcher | None] = ContextVar("activarium_watcher", default=None)


def own_configs(model: nn.Module) -> None:
    """Give the model copies of its configs: two models built from one config object would share its attention setting."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if hasattr(config, "_attn_implementation_internal"):
            module.config = copies.setdefault(id(config), None) or _copied(config, copies)


def _copied(config: Any, copies: dict[int, Any]) -> Any:
    # One deepcopy with a shared memo keeps `config.vision_config is vision_model.config`.
    made = copy.deepcopy(config, memo := {})
    copies[id(config)] = made
    for old in _nested(config):
        copies[id(old)] = memo.get(id(old), copies.get(id(old)))
    return made


def _nested(config: Any) -> list[Any]:
    below = [getattr(config, k) for k in config.sub_configs if getattr(config, k, None) is not None]
    return [*below, *(c for b in below for c in _nested(b))]


@contextmanager
def watching(model: nn.Module, watcher: Watcher) -> Iterator[None]:
    """Route every attention of the model through `watcher.attend`; the settings come back however the block ends."""
    configs: dict[int, Any] = {
        id(m.config): m.config for m in model.modules() if hasattr(m.__dict__.get("config"), "_attn_implementation_internal")
    }
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    token = _watcher.set(watcher)
    try:
        for key, config in configs.items():
            config._attn_implementation_internal = _registered(before[key] or "eager")
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
        _watcher.reset(token)


def _registered(base: str) -> str:
    """Our name for a watched kernel; its mask function is the base's own, so masks stay what they were."""
    name = base if base.startswith(PREFIX) else PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():

        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any) -> Any:
            kernel = _eager(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
            watcher = _watcher.get()
            if watcher is None:
                return kernel(module, query, key, value, attention_mask, **options)
            return watcher.attend(module, query, key, value, attention_mask, kernel, options)

        AttentionInterface.register(name, attend)
        if base in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _eager(module: nn.Module) -> Kernel:
    """Eager attention is not in the table: each modelling file has its own."""
    return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
