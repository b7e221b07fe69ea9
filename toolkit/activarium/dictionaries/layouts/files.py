"""Reading weight files safely: safetensors, npz without objects, torch files with weights alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing is unpickled
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from activarium.dictionaries.design import Design, Origin
from activarium.errors import InputError
from activarium.lens_names import NORMED, lens_alias

EXPANDS = 1000  # how many times larger than its file an array may be: zeros pack well
MOST = 1 << 30  # features or numbers in a row


@dataclass(frozen=True)
class Found:
    """What a layout's files say.

    Attributes:
        design: Sizes and arithmetic.
        weights: Tensors named as the attributes of `SAE`.
        origin: What it was trained on.
        scale: What rows were multiplied by in training and the weights do not hold yet; 1 for nothing, None where it is not told.
    """

    design: Design
    weights: Mapping[str, Tensor]
    origin: Origin
    scale: float | None = 1.0


def words(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}. Download the dictionary again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {type(found).__name__}; wanted a table of settings. Is it another file?")
    return found


def tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors`, `.npz` or `.pt` file. Nothing in the file is executed.

    Raises:
        InputError: It is damaged, or holds something else than tensors.
    """
    try:
        if path.suffix == ".npz":
            _weigh(path)
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}
        if path.suffix == ".pt":
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = load_file(path)
    except UnpicklingError as error:  # torch's reader of bare weights met an object
        raise InputError(f"{path} holds something else than tensors, which is never loaded: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, EOFError, MemoryError, zipfile.BadZipFile, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}. Download the dictionary again.") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"{path} holds something else than named tensors. Is it a checkpoint of a whole training?")
    return found


def _weigh(path: Path) -> None:
    """Refuse an archive whose arrays would be larger than what it holds, before anything is allocated."""
    with zipfile.ZipFile(path) as archive:
        for inside in archive.infolist():
            with archive.open(inside) as file:
                version = np.lib.format.read_magic(file)
                head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = head(file)
            size = prod(shape) * kind.itemsize
            if size > inside.file_size or inside.file_size > EXPANDS * max(1, inside.compress_size):
                raise ValueError(
                    f"{inside.filename!r} claims {size:,} bytes, shape {shape}, and holds {inside.compress_size:,}: it is damaged or was made to harm"
                )


def whole(found: Mapping[str, Any], name: str, path: Path | str) -> int:
    """A count that a file must have, at least 1.

    Raises:
        InputError: It is missing, no whole number, or larger than any dictionary.
    """
    value = need(found, name, path)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MOST:
        raise InputError(f"{path} says {name} {value!r}; wanted a whole number from 1 to {MOST:,}. Is the file damaged?")
    return value


def first_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def need(found: Mapping[str, Any], name: str, path: Path | str) -> Any:
    """A value that a file must have.

    Raises:
        InputError: With the names that it has.
    """
    if name not in found:
        raise InputError(f"{path} has no {name!r}; it has {', '.join(sorted(found)) or 'nothing'}. Is it another layout's?")
    return found[name]


def our_site(hook: str | None) -> str:
    """Our name for a hook of TransformerLens; empty where we have none."""
    if not hook:
        return ""
    stem = ".".join(hook.split(".")[:2])
    short = hook.removeprefix(f"{stem}.")
    return lens_alias(hook) or (f"{stem}.{NORMED[short]}" if short in NORMED else "")


def filled(threshold: Tensor | float, features: int, dtype: torch.dtype) -> Tensor:
    """One threshold for every feature."""
    values = torch.as_tensor(threshold, dtype=dtype)
    return values.expand(features).clone() if values.ndim == 0 else values
