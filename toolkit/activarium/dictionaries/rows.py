"""Rows to train on, from memory or straight from a store: the same rows in the same order, mixed over the whole of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.errors import InputError, NotFinite

EXCLUDED = ("bos", "cls", "register", "special")
BLOCK = 256  # rows that are read together
MIXED = 64  # blocks of which a batch is drawn: rows of one text lie in few of them
MEASURED = 100_000  # rows that the statistics are taken of
HELD = 20_000  # of them, those that are kept where medians or clusters are wanted


class RowSource:
    """The rows of a site (and of the site that a transcoder writes) that a dictionary is trained on.

    Attributes:
        inputs: What is read, axes `row …`; further axes are flattened.
        targets: What is written, or None for the same.
        chosen: Numbers of the rows, ascending.
        dropped: How many rows each excluded kind took away.
    """

    def __init__(self, inputs: Activations, targets: Activations | None = None, exclude: Sequence[str] = EXCLUDED) -> None:
        for one in filter(None, (inputs, targets)):
            if one.axes[0] != "row" and one.axes[0] != "example":
                raise InputError(
                    f"{one.site or 'This'} has axes {' '.join(one.axes)!r}; a dictionary is trained on 'row …', one site of one layer."
                )
        if targets is not None and len(targets) != len(inputs):
            raise InputError(
                f"{inputs.site} has {len(inputs):,} rows and {targets.site} {len(targets):,}. A transcoder needs both on the same rows."
            )
        self.inputs, self.targets = inputs, targets
        kinds = (
            np.asarray(inputs.index["kind"]).astype(str)
            if inputs.index is not None and "kind" in inputs.index
            else np.full(len(inputs), "token")
        )
        self.dropped = {kind: int((kinds == kind).sum()) for kind in exclude if (kinds == kind).any()}
        self.chosen = np.flatnonzero(~np.isin(kinds, list(exclude)))

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def width(self) -> int:
        """Numbers in a row that is read."""
        return int(np.prod(self.inputs.shape[1:]))

    @property
    def target_width(self) -> int:
        """Numbers in a row that is written."""
        return int(np.prod((self.targets or self.inputs).shape[1:]))

    def read(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows and targets in float32, `row d_in` and `row d_out`.

        Raises:
            NotFinite: NaN or infinity among them; the message names the row.
        """
        index = np.sort(index)
        made = [_flat(one.rows(index), one, index) for one in filter(None, (self.inputs, self.targets))]
        return made[0], made[-1]

    def pieces(self, rows: int = 4096) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Every row once, in order: numbers of the rows in the recording, what is read and what is written."""
        for first in range(0, len(self), rows):
            index = self.chosen[first : first + rows]
            yield index, *self.read(index)

    def batches(self, batch: int, seed: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end, epoch after epoch, each in an order of its own.

        Args:
            batch: Rows in each. What is too little for a last one stays out of that epoch.
            seed: Of the order.
            first: Begin with this batch: what was trained on before a pause is not read again.
        """
        each = len(self) // batch
        epoch, skip = divmod(first, each)
        while True:
            for number, index in enumerate(self._order(batch, seed, epoch)):
                if number >= skip:
                    yield self.read(index)
            epoch, skip = epoch + 1, 0

    def _order(self, batch: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
        generator = np.random.default_rng([seed, epoch])
        starts = generator.permutation(range(0, len(self), BLOCK))
        rest = np.empty(0, np.int64)
        mixed = max(MIXED, -(-batch // BLOCK))
        for at in range(0, len(starts), mixed):
            blocks = [self.chosen[s : s + BLOCK] for s in starts[at : at + mixed]]
            pool = generator.permutation(np.concatenate([rest, *blocks]))
            whole = len(pool) - len(pool) % batch
            yield from np.split(pool[:whole], whole // batch) if whole else ()
            rest = pool[whole:]

    def statistics(self, seed: int, *, keep: bool = False) -> Statistics:
        """Mean, length and spread over at most 100 000 rows, drawn evenly over the whole; at most 20 000 of them are kept if asked."""
        index = self.chosen
        if len(index) > MEASURED:
            index = np.sort(np.random.default_rng([seed, 1 << 20]).choice(index, MEASURED, replace=False))
        sums: list[list[Tensor]] = [[], []]
        for piece in np.array_split(index, -(-len(index) // 4096)):
            for side, values in zip(sums, self.read(piece), strict=True):
                wide = values.double()
                side.append(torch.cat([wide.sum(0), wide.square().sum(0), wide.norm(dim=1).sum()[None]]))
        sides = [torch.stack(side).sum(0) / len(index) for side in sums]
        held = self.read(index[:: -(-len(index) // HELD)]) if keep else (None, None)
        return Statistics(*(_Side.of(side, rows) for side, rows in zip(sides, held, strict=True)), rows=len(index))


@dataclass(frozen=True)
class _Side:
    mean: Tensor
    variance: Tensor
    length: float
    rows: Tensor | None = None

    @staticmethod
    def of(sums: Tensor, rows: Tensor | None) -> _Side:
        width = (len(sums) - 1) // 2
        mean = sums[:width]
        return _Side(mean, (sums[width : 2 * width] - mean.square()).clamp_min(0), float(sums[-1]), rows)

    def centre(self, name: str) -> Tensor:
        """The mean of each number, its median over the kept rows, or zero."""
        if name == "median" and self.rows is not None:
            return self.rows.median(dim=0).values.double()
        return self.mean if name == "mean" else torch.zeros_like(self.mean)


@dataclass(frozen=True)
class Statistics:
    """What the rows are like before training.

    Attributes:
        inputs: Mean and variance per number, and mean length, of what is read.
        targets: The same of what is written.
        rows: How many rows were looked at.
    """

    inputs: _Side
    targets: _Side
    rows: int

    @property
    def severity(self) -> float:
        """‖mean‖ / ‖standard deviation‖: far above 1, most features begin dead unless rows are centred (arXiv:2605.31518)."""
        return float(self.inputs.mean.norm() / self.inputs.variance.sum().sqrt().clamp_min(1e-300))


def _flat(values: Tensor, site: Activations, index: np.ndarray) -> Tensor:
    found = values.flatten(1).float()
    if not bool(found.isfinite().all()):
        at = int((~found.isfinite()).any(1).nonzero()[0])
        row, name = int(index[at]), site.site or "the rows"
        if values.dtype == torch.float16 and not bool(found[at].isnan().any()):
            raise NotFinite(
                f"Row {row:,} of {name} was kept in float16, which ends at 65,504: what was larger is infinite now. "
                "Capture again with dtype='bfloat16' or 'float32', or leave that example out: store.select(…)."
            )
        raise NotFinite(
            f"Row {row:,} of {name} holds NaN or infinity, from which nothing can be learnt. "
            "Capture in float32 or bfloat16, or leave that example out: store.select(…)."
        )
    return found
