"""Results on disk: arrays as safetensors, words as JSON in the same file's header. Nothing is ever executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from activarium.errors import InputError

if TYPE_CHECKING:
    from activarium.results import Result

FORMAT = 1


def save(result: Result, path: Path) -> Path:
    """Write one Result, whole or not at all."""
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    words = json.dumps(_encode(result, "result", arrays))
    temporary = path.with_name(path.name + ".part")
    save_file(arrays or {"empty": np.empty(0)}, temporary, metadata={"activarium": words, "format": str(FORMAT)})
    temporary.replace(path)
    return path


def load(path: Path, kinds: Mapping[str, type[Result]]) -> Result:
    """Read one Result back."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InputError(f"{path.name} is not a saved Result: {error}. Save one with result.save(path).") from error
    if "activarium" not in header:
        raise InputError(f"{path.name} is a safetensors file, but not a saved Result. Save one with result.save(path).")
    if int(header.get("format", 0)) > FORMAT:
        raise InputError(f"{path.name} has Result format {header['format']}; this version reads up to {FORMAT}. Upgrade activarium.")
    return _decode(json.loads(header["activarium"]), arrays, kinds)


def _encode(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        return {"strings": [str(v) for v in value.ravel()], "shape": list(value.shape)}
    if isinstance(value, np.ndarray):
        arrays[place] = np.ascontiguousarray(value)
        return {"array": place}
    if hasattr(value, "provenance"):
        inside = {f.name: _encode(getattr(value, f.name), f"{place}.{f.name}", arrays) for f in fields(value)}
        return {"kind": type(value).__name__, "fields": inside}
    if isinstance(value, Mapping):
        return {"mapping": [[k, _encode(v, f"{place}.{k}", arrays)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"tuple": [_encode(v, f"{place}.{i}", arrays) for i, v in enumerate(value)]}
    return value.item() if isinstance(value, np.generic) else value


def _decode(value: Any, arrays: Mapping[str, np.ndarray], kinds: Mapping[str, type[Result]]) -> Any:
    if not isinstance(value, dict):
        return value
    if "strings" in value:
        return np.array(value["strings"], dtype=object).reshape(value["shape"])
    if "array" in value:
        return arrays[value["array"]]
    if "mapping" in value:
        return {k: _decode(v, arrays, kinds) for k, v in value["mapping"]}
    if "tuple" in value:
        return tuple(_decode(v, arrays, kinds) for v in value["tuple"])
    if value.get("kind") not in kinds:
        raise InputError(f"No kind of Result called {value.get('kind')!r}. Known: {', '.join(kinds)}.")
    return kinds[value["kind"]](**{k: _decode(v, arrays, kinds) for k, v in value["fields"].items()})
