"""What every summary is: the state of one batch, and a way to join two states. The rest follows from these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.errors import AxisError, CapacityError, InputError, NotFinite
from activarium.results import Result
from activarium.rows import Rows

State = dict[str, Tensor]
LARGEST = 2 << 30  # bytes that one state may take
CELLS = 1 << 16  # numbers in work at a time: they stay in the processor's cache from one step to the next


class Summary(ABC):
    """A statistic of one site that is gathered batch by batch, in any order, by any number of workers.

    The law that all of them keep: any split of the same rows, in any order, merged in any way, ends in the same state;
    bit for bit for whole numbers and for rows that are chosen, to rounding in float64 for sums.

    Attributes:
        settings: What it was made with; states of other settings do not merge.
        state: Name → tensor; empty before the first row.
        site: Site it summarises.
        axes: Axes of one row, `d_mlp` or `head d_head`.
        shape: Sizes of one row's axes; a state counts them flat, as features.
    """

    version: ClassVar[int] = 1
    needs_rows: ClassVar[bool] = False  # does it name examples and positions?

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = settings
        self.state: State = {}
        self.site, self.axes, self.shape = "", (), ()
        self.axes: tuple[str, ...]
        self.shape: tuple[int, ...]

    # --- what a summary says of itself

    @abstractmethod
    def _of(self, values: Tensor, rows: Tensor | None) -> State:
        """The state of one batch alone: values `row feature`, rows `row (example, position)`."""

    @abstractmethod
    def _join(self, into: State, other: State) -> None:
        """Make `into` the state of both; `other` stays as it is."""

    @abstractmethod
    def result(self, rows: Rows | None = None) -> Result:
        """What was found.

        Args:
            rows: Row table for readable context, where the summary names rows.
        """

    def _bytes(self, width: int) -> int:
        """Bytes that the state takes."""
        return 64 * width

    # --- what all of them do

    def fresh(self) -> Self:
        """The same summary before any row."""
        return type(self)(**self.settings)

    @property
    def name(self) -> str:
        """Under which a survey lists it."""
        return type(self).__name__

    @property
    def width(self) -> int:
        """Numbers per row."""
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows taken in."""
        return int(self.state["rows"]) if self.state else 0

    def update(self, values: Activations) -> Self:
        """Take in more rows; from a store, shard by shard.

        Args:
            values: A row-wise site: `row …` or `example …`.

        Raises:
            AxisError: Another width than before, or a site without rows.
            InputError: The summary names rows, and these have no row table.
            NotFinite: NaN or infinity where it needs numbers.
        """
        self._admit(values)
        for batch, rows in _batches(values, self.needs_rows):
            if len(batch):
                self._take(batch.flatten(1) if batch.ndim > 1 else batch[:, None], rows)
        return self

    def _take(self, batch: Tensor, rows: Tensor | None) -> None:
        part = self._of(batch.detach(), rows)
        if self.state:
            self._join(self.state, part)
        else:
            self.state = part

    def merge(self, other: Summary) -> Self:
        """Take in all that another one has seen, of other rows of the same site.

        Raises:
            AxisError: It has another width, or is another kind of summary.
            InputError: It was made with other settings.
        """
        if type(other) is not type(self):
            raise AxisError(f"{self.name} and {other.name} are different summaries and cannot be merged. Merge summaries of one kind.")
        if other.settings != self.settings:
            raise InputError(
                f"These summaries {self.name} have the settings {self.settings} and {other.settings}. Merge only those made alike."
            )
        if not other.state:
            return self
        self._admit_shape(other.site, other.axes, other.shape)
        if self.state:
            self._join(self.state, other.state)
        else:
            self.state = {key: value.clone() for key, value in other.state.items()}
        return self

    def _admit(self, values: Activations) -> None:
        if not values.axes or values.axes[0] not in ("row", "example"):
            raise AxisError(
                f"{values.site or 'These values'} have axes {' '.join(values.axes)!r}; a summary goes over rows. "
                "Choose a site whose first axis is `row` or `example`."
            )
        if self.needs_rows and values.index is None:
            raise InputError(f"{self.name} names examples and positions; {values.site or 'these values'} have no row table (index=…).")
        self._admit_shape(values.site, values.axes[1:], values.shape[1:])
        size = self._bytes(self.width)
        if not self.state and size > LARGEST:
            raise CapacityError(
                f"{self.name} of {values.site or 'a site'} with {self.width:,} numbers a row takes {size:,} bytes, more than {LARGEST:,}. "
                "Choose a narrower site, or a summary whose state grows with the width only."
            )

    def _admit_shape(self, site: str, axes: Sequence[str], shape: Sequence[int]) -> None:
        if not self.shape and not self.state:
            self.site, self.axes, self.shape = site, tuple(axes) or ("feature",), tuple(shape) or (1,)
        elif (tuple(shape) or (1,)) != self.shape:
            raise AxisError(
                f"{self.name} of {self.site or 'a site'} counts rows of shape {self.shape}; found {tuple(shape)}{f' at {site}' if site else ''}. "
                "Summarise each width on its own."
            )

    def _require(self) -> None:
        if not self.state:
            raise InputError(f"{self.name} of {self.site or 'no site'} has seen no row yet. Update it first.")

    def _shaped(self, values: Tensor) -> np.ndarray:
        """A statistic per feature, in the axes of the site."""
        return values.reshape(*values.shape[:-1], *self.shape).numpy()

    # --- on disk

    def describe(self) -> dict[str, Any]:
        """All of it but the tensors, as JSON."""
        words = {"version": self.version, "settings": self.settings}
        return {"kind": self.name, **words, "site": self.site, "axes": list(self.axes), "shape": list(self.shape)}

    def restore(self, words: Mapping[str, Any], state: State) -> Self:
        """Back from `describe()` and the state's tensors."""
        if int(words["version"]) > self.version:
            raise InputError(f"{self.name} has version {words['version']}; this activarium reads up to {self.version}. Upgrade it.")
        self.site, self.axes, self.shape = str(words["site"]), tuple(words["axes"]), tuple(words["shape"])
        self.state = state
        return self

    def __eq__(self, other: object) -> bool:
        """Same kind, same settings, and the same state bit for bit."""
        if not isinstance(other, Summary) or type(other) is not type(self):
            return NotImplemented
        same = (self.settings, self.shape, self.state.keys()) == (other.settings, other.shape, other.state.keys())
        return same and all(_same_bits(value, other.state[key]) for key, value in self.state.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        what = f"{self.rows:,} rows of {'×'.join(map(str, self.shape))}" if self.state else "no rows yet"
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.settings.items())}: {what}{f' at {self.site}' if self.site else ''})"


def strange(values: Tensor) -> bool:
    """Is any number NaN or infinite?"""
    # A sum is finite only if all its terms are; where a sum of large finite numbers overflows, the terms are asked.
    total = values.sum(dtype=torch.float32 if values.dtype.itemsize == 2 else None)
    return not (bool(total.isfinite()) or bool(values.isfinite().all()))


def refuse_strange(values: Tensor, what: str) -> None:
    """Are all numbers finite?

    Raises:
        NotFinite: NaN or infinity.
    """
    if strange(values):
        nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
        hint = " float16 ends at 65504: run in bfloat16 or float32." if values.dtype == torch.float16 else ""
        raise NotFinite(f"{what} met {nan:,} NaN and {infinite:,} infinite numbers; wanted finite ones.{hint}")


def _batches(values: Activations, named: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
    rows, start = _row_names(values.index) if named and values.index is not None else None, 0
    for batch in values.batches():
        yield batch, None if rows is None else rows[start : start + len(batch)]
        start += len(batch)


def _row_names(index: Rows) -> Tensor:
    """Example and position of each row."""
    position = index["position"] if "position" in index else np.zeros(len(index), np.int64)
    return torch.from_numpy(np.stack([index["example"], position], 1).astype(np.int64))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b)))
