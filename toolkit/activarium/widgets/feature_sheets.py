"""Pages of features as bytes: their words as JSON, their numbers in pools, an array that comes again kept once."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from activarium.errors import InputError
from activarium.widgets import payload

Table = list[dict[str, Any]]

IMAGE_SIDE = 512  # a larger picture is shown at every second, third, … pixel
_OTHERS = ("neighbours", "together", "correlated", "neurons")
_SECTIONS = {"histogram", "promoted", "suppressed", "contexts", *_OTHERS}
_PLACE = ("band", "example", "position", "value", "cls", "at")  # `at`: the place of the position among the tokens shown
_POOLS = {"float32": "f4", "float64": "f8", "uint8": "u1"}


class Book:
    """Pages that travel together.

    Attributes:
        features: Whose pages are in it, in the order they were added.
        size: About how many deflated bytes they need, never less than they will.
    """

    def __init__(self) -> None:
        self.features: list[int] = []
        self.size = 0
        self._pages: list[dict[str, Any]] = []
        self._pools: dict[str, list[np.ndarray]] = {short: [] for short in _POOLS.values()}
        self._lengths = dict.fromkeys(self._pools, 0)
        self._known: dict[bytes, list[Any]] = {}
        self._fresh: list[bytes] = []  # keys that the page being added brought

    def add(self, feature: int, page: Mapping[str, Any], figures: Mapping[str, Any], budget: float = math.inf) -> bool:
        """Take one page in, unless the book would grow over `budget` deflated bytes; the first page always goes in.

        Raises:
            InputError: A part of the page is not as the protocol `Pages` says.
        """
        self._fresh = []
        try:
            sheet = _sheet(feature, page, figures, self._keep)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            self._forget()
            raise InputError(f"The page of feature {feature} is not as activarium.protocols.Pages says: {error}.") from error
        raw = [json.dumps(sheet).encode(), *(self._pools[self._known[key][0]][self._known[key][3]].tobytes() for key in self._fresh)]
        # Pieces deflated one by one are never smaller than the same pieces together.
        size = self.size + len(zlib.compress(b"".join(raw), 1))
        if size > budget and self.features:
            self._forget()
            return False
        self.size = size
        self.features.append(int(feature))
        self._pages.append(sheet)
        return True

    def pack(self) -> tuple[Table, bytes]:
        """A table and the deflated bytes it describes: `words` is JSON, a place in a pool is `[pool, start, shape]`."""
        words = np.frombuffer(json.dumps(self._pages, ensure_ascii=False, allow_nan=False).encode(), np.uint8)
        pools = {short: np.concatenate([part.ravel() for part in parts]) for short, parts in self._pools.items() if parts}
        return payload.pack({"words": words, **pools})

    def _keep(self, values: np.ndarray) -> list[Any]:
        """Where these numbers lie: pool, first item, shape."""
        short = _POOLS[values.dtype.name]
        key = hashlib.blake2b(np.ascontiguousarray(values).tobytes() + repr((short, values.shape)).encode(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = [short, self._lengths[short], list(values.shape), len(self._pools[short])]
            self._pools[short].append(values)
            self._lengths[short] += values.size
            self._fresh.append(key)
        return self._known[key][:3]

    def _forget(self) -> None:
        """Take back what the last page brought."""
        for key in reversed(self._fresh):
            short = self._known.pop(key)[0]
            self._lengths[short] -= self._pools[short].pop().size


Keep = Callable[[np.ndarray], list[Any]]


def _sheet(feature: int, page: Mapping[str, Any], figures: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    """A page as the browser reads it; what is not known is not there."""
    more = {name: value for name, value in page.items() if name not in _SECTIONS and np.ndim(value) == 0 and not isinstance(value, Mapping)}
    sheet: dict[str, Any] = {"feature": int(feature), "figures": [[str(n), _plain(v)] for n, v in {**figures, **more}.items()]}
    if "histogram" in page:
        bars = {name: _floats(page["histogram"][name]) for name in ("edges", "counts")}
        if len(bars["edges"]) != len(bars["counts"]) + 1:
            raise ValueError(f"its histogram has {len(bars['edges'])} edges for {len(bars['counts'])} counts")
        sheet["histogram"] = {name: keep(values) for name, values in bars.items()}
    for name in ("promoted", "suppressed"):
        if name in page:
            sheet[name] = {"words": [str(token) for token, _ in page[name]], "values": keep(_floats([logit for _, logit in page[name]]))}
    for name in _OTHERS:
        if name in page:
            sheet[name] = {"numbers": [int(n) for n, _ in page[name]], "values": keep(_floats([figure for _, figure in page[name]]))}
    if "contexts" in page:
        sheet["contexts"] = [_context(context, keep) for context in page["contexts"]]
    return sheet


def _context(context: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    values = _floats(context["values"]).ravel()
    plain = {name: _plain(context[name]) for name in _PLACE if context.get(name) is not None}
    if "tokens" in context:
        tokens = [str(token) for token in context["tokens"]]
        if len(tokens) != len(values):
            raise ValueError(f"a context has {len(tokens)} tokens and {len(values)} values")
        return plain | {"tokens": tokens, "values": keep(values)}
    grid = [int(n) for n in context["grid"]]
    if len(grid) != 2 or grid[0] * grid[1] != len(values):
        raise ValueError(f"an image of {grid} patches has {len(values)} values")
    return plain | {"image": keep(_pixels(np.asarray(context["image"]))), "grid": grid, "values": keep(values)}


def _pixels(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image is uint8 'height width 3'; got {image.dtype} {image.shape}")
    step = -(-max(image.shape[:2]) // IMAGE_SIDE)
    return np.ascontiguousarray(image[::step, ::step])


def _floats(values: Any) -> np.ndarray:
    return payload.floats(np.asarray(values)) if len(values) else np.empty(0, np.float32)


def _plain(value: Any) -> Any:
    """Words and numbers for JSON, which has no NaN: `Number("NaN")` reads it back."""
    if isinstance(value, (bool, np.bool_, str)):
        return value if isinstance(value, str) else bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value) if abs(int(value)) < 1 << 53 else str(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else "NaN" if math.isnan(number) else f"{'-' if number < 0 else ''}Infinity"
    return str(value)
