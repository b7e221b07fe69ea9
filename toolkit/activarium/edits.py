"""Interventions as plain data: what to change, at which site, where. A runner applies them in list order, never in place.

Scores and patterns are `head query key` of one example: `where.positions` and `where.kinds` choose queries, `where.keys` keys. What the
model's mask hides stays hidden, and an edited pattern is not normalised again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError
from activarium.rows import KINDS, PHASES, Rows


@dataclass(frozen=True)
class Where:
    """Which rows, heads and features an edit touches; None means all.

    Attributes:
        examples: Example numbers.
        positions: Positions in the example; negative ones count from the last real row (in `generate`: of the text so far).
        kinds: Row kinds (`token bos special cls register patch image`).
        phases: `prompt` or `response`, for rows of `generate`.
        heads: Head numbers, for sites with a `head` axis.
        features: Indices along the last axis.
        keys: Key positions, for scores and patterns; negative ones count from the last key.
    """

    examples: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    kinds: tuple[str, ...] | None = None
    phases: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    features: tuple[int, ...] | None = None
    keys: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                object.__setattr__(self, item.name, (value,) if isinstance(value, (int, str)) else tuple(value))
        strange = [k for k in self.kinds or () if k not in KINDS]
        if strange:
            raise InputError(f"No row kind called {strange[0]!r}. Known: {', '.join(KINDS)}.")
        strange = [p for p in self.phases or () if p not in PHASES]
        if strange:
            raise InputError(f"No phase called {strange[0]!r}. Known: {', '.join(PHASES)}.")

    @property
    def rows_chosen(self) -> bool:
        """Does it name rows, rather than touch all of them?"""
        return any(chosen is not None for chosen in (self.examples, self.positions, self.kinds, self.phases))


EVERYWHERE = Where()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What every edit has: a site and a place. `change` maps values to new values of the same shape.

    Attributes:
        where: Rows, heads and features that are touched.
    """

    where: Where = EVERYWHERE

    @property
    def idle(self) -> bool:
        """True if it changes nothing: the runner then leaves the tensor object alone, bit for bit."""
        return False

    def change(self, values: Tensor) -> Tensor:
        """New values `… features` in the dtype of `values`."""
        raise TypeError(f"{type(self).__name__} is not applied to values; the runner handles it.")

    def to_json(self) -> dict[str, Any]:
        """Plain data; tensors as nested lists of float32."""
        return {"edit": type(self).__name__} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @property
    def hash(self) -> str:
        """Same edit, same hash."""
        return hashlib.blake2b(json.dumps(self.to_json(), sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Add(Edit):
    """`h + strength * vector`."""

    site: str
    vector: Any
    strength: float = 1.0

    @property
    def idle(self) -> bool:
        return self.strength == 0

    def change(self, values: Tensor) -> Tensor:
        return values + (self.strength * _like(self.vector, values)).to(values.dtype)


@dataclass(frozen=True)
class Set(Edit):
    """Replace by `values`, which broadcast against the rows that are touched."""

    site: str
    values: Any

    def change(self, values: Tensor) -> Tensor:
        return _like(self.values, values).to(values.dtype).expand_as(values)


@dataclass(frozen=True)
class Zero(Edit):
    """Replace by zero."""

    site: str

    def change(self, values: Tensor) -> Tensor:
        return torch.zeros_like(values)


@dataclass(frozen=True)
class Mean(Edit):
    """Replace by a mean that was measured elsewhere; `provenance` says on which data."""

    site: str
    vector: Any
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def change(self, values: Tensor) -> Tensor:
        return _like(self.vector, values).to(values.dtype).expand_as(values)


@dataclass(frozen=True)
class Scale(Edit):
    """`factor * h`."""

    site: str
    factor: float

    @property
    def idle(self) -> bool:
        return self.factor == 1

    def change(self, values: Tensor) -> Tensor:
        return values * self.factor


@dataclass(frozen=True)
class ProjectOut(Edit):
    """`h - strength * (h · u) u` with the unit vector u along `vector`."""

    site: str
    vector: Any
    strength: float = 1.0

    @property
    def idle(self) -> bool:
        return self.strength == 0

    def change(self, values: Tensor) -> Tensor:
        wide = _wide(values)
        unit = torch.nn.functional.normalize(_like(self.vector, wide), dim=-1)
        return (wide - self.strength * (wide * unit).sum(-1, keepdim=True) * unit).to(values.dtype)


@dataclass(frozen=True)
class Affine(Edit):
    """`(1 - strength) h + strength (weight ⊙ h + bias)`; a 2-D weight is a matrix acting on the last axis."""

    site: str
    weight: Any
    bias: Any = 0.0
    strength: float = 1.0

    @property
    def idle(self) -> bool:
        return self.strength == 0

    def change(self, values: Tensor) -> Tensor:
        wide = _wide(values)
        weight = _like(self.weight, wide)
        moved = (wide @ weight.T if weight.ndim == 2 else wide * weight) + _like(self.bias, wide)
        return ((1 - self.strength) * wide + self.strength * moved).to(values.dtype)


@dataclass(frozen=True)
class Keep(Edit):
    """Keep the `top_k` largest values of each row by size and set the others to zero."""

    site: str
    top_k: int

    def change(self, values: Tensor) -> Tensor:
        kept = values.abs().topk(min(self.top_k, values.shape[-1]), dim=-1).indices
        return torch.zeros_like(values).scatter(-1, kept, values.gather(-1, kept))


@dataclass(frozen=True)
class Threshold(Edit):
    """Set every value to zero whose size is not above `threshold`: a number, or one per feature.

    Attributes:
        signed: Compare the value itself rather than its size, so that everything below zero goes as well (FATReLU).
    """

    site: str
    threshold: Any
    signed: bool = False

    def change(self, values: Tensor) -> Tensor:
        wide = _wide(values)
        return torch.where((wide if self.signed else wide.abs()) > _like(self.threshold, wide), values, torch.zeros_like(values))


@dataclass(frozen=True)
class Replace(Edit):
    """Replace by what a function makes of the values, `row …` to the same shape. The only edit that is no plain data.

    The function is called in the forward, in the order of the sites, so it may also look at values and remember them.
    """

    site: str
    by: Callable[[Tensor], Tensor]

    def change(self, values: Tensor) -> Tensor:
        new = self.by(values)
        if new.shape != values.shape:
            raise InputError(f"Replace at {self.site} made shape {tuple(new.shape)} of {tuple(values.shape)}; wanted the same.")
        return new.to(values.dtype)

    def to_json(self) -> dict[str, Any]:
        raise InputError(f"Replace at {self.site} holds a function, which cannot be saved. Use Set, Add or Affine for edits that travel.")


@dataclass(frozen=True)
class Detach(Edit):
    """Let values pass and block the gradient."""

    site: str

    def change(self, values: Tensor) -> Tensor:
        return values.detach()


@dataclass(frozen=True)
class SkipBlock(Edit):
    """Take a block's input for its output, at the rows of `where`. The block still runs on all rows.

    Its keys and values at skipped rows are therefore computed from the state that is carried past it, and other rows go on
    attending to them. Hiding them is not offered: set the scores of those keys to minus infinity for that
    (`Set("blocks.3.attn.scores", -inf, where=Where(keys=…))`). No time is saved.

    Attributes:
        site: The block, `blocks.3`.
    """

    site: str


def row_mask(where: Where, rows: Rows, last: np.ndarray) -> np.ndarray:
    """Boolean per row: does `where` touch it? `last` is the number of rows that the row's example has (so far)."""
    mask = np.ones(len(rows), dtype=bool)
    if where.examples is not None:
        mask &= np.isin(rows["example"], where.examples)
    if where.positions is not None:
        wanted, position = np.asarray(where.positions), rows["position"]
        mask &= ((position[:, None] == wanted) | (position[:, None] - last[:, None] == wanted)).any(1)
    if where.kinds is not None:
        mask &= np.isin(rows["kind"].astype(str), where.kinds)
    if where.phases is not None:
        if "phase" not in rows:
            raise InputError("Where(phases=…) chooses rows of generate; these rows have no phase. Choose positions=… or kinds=….")
        mask &= np.isin(rows["phase"].astype(str), where.phases)
    return mask


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _like(value: Any, values: Tensor) -> Tensor:
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    made = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    made = made.to(values.device, dtype)
    if made.ndim and made.shape[-1] not in (1, values.shape[-1]):
        raise InputError(f"The edit's values have {made.shape[-1]} features in their last axis; the site has {values.shape[-1]}.")
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, Where):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, (Tensor, np.ndarray)):
        return torch.as_tensor(value).detach().cpu().double().tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value
