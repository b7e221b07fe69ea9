"""Where a Result came from: the call, its arguments, the ids of its inputs, versions and time."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What can change a number. Only those already loaded are asked, so that writing a version down imports nothing.
PACKAGES = ("activarium", "torch", "transformers", "numpy", "jax", "sae_lens", "transformer_lens", "scipy", "sklearn")
IDS = ("id", "plan", "manifest", "hash")  # where a Recording's provenance keeps its id, the best first


def recorded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same analysis, whose Result says how it was made.

    Args:
        function: An analysis.
        name: Its qualified public name, `activarium.analyses.lazy_neurons`.
    """

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **options)
        if not hasattr(result, "with_"):
            return result
        given = _bound(function, args, options)
        return _stamped(result, describe(name, given, time.perf_counter() - started))

    return call


def _stamped(result: Any, provenance: Mapping[str, Any]) -> Any:
    """A Result and, if it is a Report, its parts with their provenance: each of them may be shown on its own."""
    # What the analysis itself wrote down wins: it may know more (a derived seed, the exact pairs used).
    marked = result.with_(provenance={**provenance, **result.provenance})
    if not hasattr(result, "parts"):
        return marked
    return marked.with_(parts={n: _stamped(p, {**provenance, "part": n}) for n, p in result.parts.items()})


def describe(name: str, given: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
    """The provenance of one call: JSON-able, and made without reading a tensor.

    Args:
        name: Qualified name of what was called.
        given: Arguments by name, defaults included.
        seconds: How long it took.
    """
    made: dict[str, Any] = {
        "analysis": name,
        "arguments": {key: plain(value) for key, value in given.items() if input_id(value) is None},
        "inputs": {key: found for key, value in given.items() if (found := input_id(value)) is not None},
        "seed": plain(given["seed"]) if "seed" in given else None,
        "versions": versions(),
    }
    return made if seconds is None else made | {"seconds": round(seconds, 6)}


def input_id(value: Any) -> str | None:
    """The id of a Recording, Activations, Result or model: the hash it already carries, never a rehash of tensors."""
    model = getattr(value, "identity", None)  # a live model: computed once and kept
    if isinstance(model, Mapping):
        return f"{model.get('name', '')}@{model.get('weight_hash') or digest(model)}"
    origin = getattr(value, "provenance", None)
    if not isinstance(origin, Mapping):
        return None
    known = next((str(origin[key]) for key in IDS if origin.get(key) and not isinstance(origin[key], Mapping)), None)
    site = getattr(value, "site", "")
    return f"{known or digest(origin)}{'#' + site if site else ''}"


def digest(words: Any) -> str:
    """A short stable id of JSON-able words."""
    text = json.dumps(plain(words), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that are loaded and can change a number."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        if package in sys.modules:
            found[package] = _version(package)
    return found


def plain(value: Any) -> Any:
    """A value as JSON can hold it; what cannot be held is named by its type and shape."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [plain(v) for v in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    return _named(value)


def _named(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    if shape is not None:  # an array: its numbers do not belong into a provenance record
        if not tuple(shape) and hasattr(value, "item"):
            return value.item()
        return f"{type(value).__name__}{tuple(int(n) for n in shape)} {str(getattr(value, 'dtype', '')).removeprefix('torch.')}".strip()
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def _bound(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(function).bind(*args, **options)
    bound.apply_defaults()
    return dict(bound.arguments)


def _version(package: str) -> str:
    given = getattr(sys.modules[package], "__version__", None)
    if given:
        return str(given)
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "unknown"
