"""The id of a dictionary: a hash of its numbers and of what it does with them, the same wherever it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from activarium.dictionaries.dictionary import FeatureDictionary


def fingerprint(dictionary: FeatureDictionary) -> str:
    """blake2b over its kind, its design and all of its tensors, 32 hex digits. What it was trained on does not count."""
    hashed = hashlib.blake2b(digest_size=16)
    design = getattr(dictionary, "design", None)
    words = asdict(design) if is_dataclass(design) and not isinstance(design, type) else {}
    hashed.update(json.dumps([type(dictionary).__name__, words], sort_keys=True, default=str).encode())
    for name, tensor in sorted(_tensors(dictionary), key=lambda pair: pair[0]):
        values = tensor.detach().cpu().contiguous()
        hashed.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        hashed.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _tensors(dictionary: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(dictionary, nn.Module):
        yield from dictionary.state_dict().items()
        return
    held = {name: value for name, value in vars(dictionary).items() if isinstance(value, Tensor)}
    yield from (held or {"directions": dictionary.directions}).items()
