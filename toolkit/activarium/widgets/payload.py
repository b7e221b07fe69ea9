"""Arrays as bytes for the browser: exact floats where they fit, pooled 8-bit previews where they do not."""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium import pictures

Range = tuple[float, float]

MISSING = 255  # code of NaN; codes 0 to 254 span the range
STEPS = 254
ALIGN = 8  # JavaScript's typed arrays must start at a multiple of their item size
SAMPLE = 1 << 18  # a percentile of this many values is steady, and sorting 10^8 would take seconds

_NAMES = {"float32": "f4", "float64": "f8", "uint8": "u1"}


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[list[dict[str, Any]], bytes]:
    """A table of names, types and shapes, and the deflated bytes that it describes."""
    table = [{"name": n, "dtype": _NAMES[a.dtype.name], "shape": list(a.shape)} for n, a in arrays.items()]
    raw = b"".join(_padded(np.ascontiguousarray(a).astype(a.dtype.newbyteorder("<"), copy=False).tobytes()) for a in arrays.values())
    # Level 1: the kernel's time is what a reader waits for, and higher levels win a few percent on floats.
    return table, zlib.compress(raw, 1)


def unpack(table: Sequence[Mapping[str, Any]], data: bytes) -> dict[str, np.ndarray]:
    """The arrays of `pack`, read back as the browser reads them."""
    kinds = {short: name for name, short in _NAMES.items()}
    raw, at, found = zlib.decompress(data), 0, {}
    for entry in table:
        dtype, count = np.dtype(kinds[entry["dtype"]]), int(np.prod(entry["shape"]))
        found[entry["name"]] = np.frombuffer(raw, dtype, count, at).reshape(entry["shape"])
        at += -(-count * dtype.itemsize // ALIGN) * ALIGN
    return found


def planes(values: np.ndarray) -> np.ndarray:
    """float32 `(column, row)` as bytes `(column, 4, row)`: like bytes beside each other deflate to less. `feature_browser/list.ts` undoes it."""
    rows = np.ascontiguousarray(values, "<f4").view(np.uint8).reshape(*values.shape, 4)
    return np.ascontiguousarray(np.moveaxis(rows, -1, 1))


def lines(words: Sequence[str]) -> np.ndarray:
    """Words as the UTF-8 bytes of a JSON list."""
    return np.frombuffer(json.dumps(list(words), ensure_ascii=False).encode("utf-8", "replace"), np.uint8)


def floats(values: np.ndarray) -> np.ndarray:
    """The narrowest float that holds every value exactly: float32 for what fits in it, float64 for the rest."""
    narrow = values.dtype.kind in "bfiu" and values.dtype.itemsize <= (4 if values.dtype.kind == "f" else 2)
    return np.asarray(values, np.float32 if narrow else np.float64)


def extent(values: np.ndarray) -> Range:
    """Smallest and largest finite value; (0, 0) if there is none."""
    if not values.size:
        return 0.0, 0.0
    low, high = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def ranges(values: np.ndarray) -> dict[str, Range]:
    """Colour ranges to choose from, the default first.

    `robust` leaves out the outermost half percent if that more than halves the scale, so that one massive
    activation does not turn the rest into one colour; `full` takes every value in; `tight` gives the whole ramp
    to the values between the smallest and the largest.
    """
    low, high = extent(values)
    full = pictures.colour_range(np.array([low, high]))
    robust = _robust(values, full)
    found = {"full": full} if robust == full else {"robust": robust, "full": full}
    # "tight" adds nothing where it is one of the others.
    return found | ({"tight": (low, high)} if low < high and (low, high) not in found.values() else {})


def _robust(values: np.ndarray, full: Range) -> Range:
    # A prime stride, so that the sample does not keep to a few columns.
    stride = next((p for p in (1, 7, 61, 509, 4093) if values.size // p <= SAMPLE), 32749)
    sample = np.abs(values.ravel()[::stride].astype(float))
    sample = sample[np.isfinite(sample)]
    size = float(np.quantile(sample, 0.995)) if sample.size else 0.0
    if not 0 < 2 * size < full[1]:
        return full
    return (-size, size) if full[0] < 0 else (0.0, size)


def pool(values: np.ndarray, steps: tuple[int, int]) -> np.ndarray:
    """Of each block the value furthest from 0, so that a lone peak stays visible; NaN only where a whole block is."""
    if steps == (1, 1):
        return values
    high, low = values, values
    for axis, step in enumerate(steps):
        high, low = _every(np.fmax, high, step, axis), _every(np.fmin, low, step, axis)
    return np.where(high >= -low, high, low)


def _every(keep: np.ufunc, values: np.ndarray, step: int, axis: int) -> np.ndarray:
    """Reduce blocks along one axis. Whole strided lines at a time: eight times faster here than `reduceat`."""
    lines = np.moveaxis(values, axis, 0)
    found = lines[::step].copy()
    for start in range(1, step):
        more = lines[start::step]
        keep(found[: len(more)], more, out=found[: len(more)])
    return np.moveaxis(found, 0, axis)


def quantise(values: np.ndarray, limits: Range) -> np.ndarray:
    """One byte per value: 0 to 254 over the range, what lies outside at its ends, NaN as 255."""
    low, high = limits
    missing = np.isnan(values)
    share = (np.clip(values, low, high) - low) * (STEPS / ((high - low) or 1))
    codes = np.rint(np.where(missing, 0, share)).astype(np.uint8)
    codes[missing] = MISSING
    return codes


def steps_for(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Cells per pixel along both axes so that neither is longer than `side`."""
    return -(-shape[0] // side), -(-shape[1] // side)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % ALIGN)
