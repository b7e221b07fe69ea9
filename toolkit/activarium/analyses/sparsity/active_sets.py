"""Which neurons are active in each row of a layer, counted example by example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, examples_of, refuse_strange
from activarium.analyses.sparsity.definitions import energy_below
from activarium.analyses.sparsity.dropped import AT_ONCE
from activarium.analyses.sparsity.row_kinds import some_kept
from activarium.errors import InputError

ALMOST_ALL = 0.999  # share of neurons that are not zero above which nothing rectifies


@dataclass(frozen=True, eq=False)
class Example:
    """The rows of one example that count.

    Attributes:
        number: Its place among the examples, from 0.
        active: Boolean `row neuron`.
        energy: Squared contributions `row neuron`, float64.
        follows: Boolean per row: the row before it is the one right before it in the example.
        rows: Where they stand in the recording.
    """

    number: int
    active: Tensor
    energy: Tensor
    follows: Tensor
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class ActiveSets:
    """One layer with its rule of what is active.

    Attributes:
        neurons: Values `row d_mlp`.
        share: Active are the neurons that hold this share of a row's energy; None: those that are not zero.
        norms: Norm of what a unit of each neuron writes, `(d_mlp,)`, or ones.
        exclude: Row kinds left out.
    """

    neurons: Activations
    share: float | None
    norms: Tensor
    exclude: Sequence[str]

    @property
    def width(self) -> int:
        return self.neurons.shape[1]

    def rows(self) -> np.ndarray:
        """Indices of the rows that count."""
        return some_kept(self.neurons, self.exclude).nonzero()[0]

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Active neurons and squared contributions of rows `row neuron`."""
        contribution = values.double() * self.norms
        active = values != 0 if self.share is None else energy_below(contribution) > 1 - self.share + 1e-12
        return active, contribution.square()

    def examples(self) -> Iterator[Example]:
        """Example by example, so that no number depends on how the rows were cut."""
        keep = some_kept(self.neurons, self.exclude)
        number = -1
        for _, first, values in by_example(self.neurons):
            chosen = first + keep[first : first + len(values)].nonzero()[0]
            if not len(chosen):
                continue
            number += 1
            some = values[torch.from_numpy(chosen - first)]
            if not bool(some.isfinite().all()):
                refuse_strange(self.neurons, "It would count as active.")
            follows = np.concatenate([[False], np.diff(chosen) == 1])
            yield Example(number, *self.of(some), torch.from_numpy(follows), chosen)


@dataclass(frozen=True, eq=False)
class Fired:
    """Counts of one layer.

    Attributes:
        fires: Rows in which each neuron is active, `(half, neuron)`; a half is every second sequence.
        rows: Rows of each half.
        sums: Per sequence: active neurons, neurons in all, and over rows that follow another: active in both, active.
        contribution: Σ over the rows in which each neuron is active of |contribution|.
        energy: Σ over all rows of its squared contribution.
    """

    fires: np.ndarray
    rows: np.ndarray
    sums: np.ndarray
    contribution: np.ndarray
    energy: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """Share of all rows in which each neuron is active."""
        return self.fires.sum(0) / self.rows.sum()

    @property
    def density(self) -> float:
        return float(self.sums[:, 0].sum() / self.sums[:, 1].sum())

    @property
    def reuse(self) -> float:
        """Share of the active neurons that were active in the row before."""
        return float(self.sums[:, 2].sum() / self.sums[:, 3].sum()) if self.sums[:, 3].sum() else float("nan")

    @property
    def reuse_by_chance(self) -> float:
        """Σr² / Σr: what it would be if every row drew its neurons anew with these rates."""
        return float((self.rates**2).sum() / self.rates.sum()) if self.rates.sum() else float("nan")


def fired(sets: ActiveSets) -> Fired:
    """Count one layer.

    Raises:
        InputError: All but no neurons are not zero, so that this is no set.
    """
    fires, rows, sums = np.zeros((2, sets.width), np.int64), np.zeros(2, np.int64), []
    contribution, energy = np.zeros((2, sets.width))
    for example in sets.examples():
        active, half = example.active, example.number % 2
        fires[half] += active.sum(0).cpu().numpy()
        rows[half] += len(active)
        contribution += torch.where(active, example.energy.sqrt(), 0).sum(0).cpu().numpy()
        energy += example.energy.sum(0).cpu().numpy()
        both = (active[1:] & active[:-1])[example.follows[1:]]
        sums.append([int(active.sum()), active.numel(), int(both.sum()), int(active[example.follows].sum())])
    found = Fired(fires, rows, np.array(sums), contribution, energy)
    if sets.share is None and found.density >= ALMOST_ALL:
        raise InputError(
            f"{sets.neurons.site}: {100 * found.density:.2f} % of the neurons are not zero, as after a smooth activation (GELU, SiLU). "
            "Say what is active: active=0.9 takes the neurons that hold 90 % of a row's energy."
        )
    return found


def fires_by(sets: ActiveSets, name: str) -> dict[str, np.ndarray]:
    """Value of a row column → rows in which each neuron is active.

    Raises:
        InputError: The rows have no such column.
    """
    if sets.neurons.index is None or name not in sets.neurons.index:
        have = ", ".join(sets.neurons.index.columns) if sets.neurons.index is not None else "no row table"
        raise InputError(f"{sets.neurons.site} has no row column {name!r} to tell domains apart; it has {have}. Record with labels.")
    values = sets.neurons.index[name].astype(str)
    found = {str(v): np.zeros(sets.width, np.int64) for v in np.unique(values[sets.rows()])}
    for example in sets.examples():
        here = values[example.rows]
        for value in np.unique(here):
            found[str(value)] += example.active[torch.from_numpy(here == value)].sum(0).cpu().numpy()
    return found


def union_density(sets: ActiveSets, sizes: Sequence[int], draws: int, seed: int, *, together: bool) -> np.ndarray:
    """Mean share of neurons that at least one row of a batch needs, per batch size; NaN where there are too few rows.

    Args:
        sets: The layer.
        sizes: Rows in a batch.
        draws: Batches per size.
        seed: Draws them.
        together: Rows that follow one another in one example (a prompt), rather than one row of each of several examples (decoding).
    """
    rows = sets.rows()
    spans = np.split(rows, np.flatnonzero(np.diff(examples_of(sets.neurons)[rows])) + 1)
    generator = np.random.default_rng(seed)
    found = []
    for size in sizes:
        fitting = [s for s in spans if len(s) >= size]
        if (together and not fitting) or (not together and len(spans) < size):
            found.append(np.nan)
            continue
        chosen = np.stack([_on_end(fitting, size, generator) if together else _one_each(spans, size, generator) for _ in range(draws)])
        at_once = max(1, AT_ONCE // (size * sets.width))
        counts = [_in_use(sets, chosen[i : i + at_once]) for i in range(0, draws, at_once)]
        found.append(sum(counts) / (draws * sets.width))
    return np.array(found)


def _on_end(spans: Sequence[np.ndarray], size: int, generator: np.random.Generator) -> np.ndarray:
    """Rows on end of one example."""
    span = spans[int(generator.integers(len(spans)))]
    start = int(generator.integers(len(span) - size + 1))
    return span[start : start + size]


def _one_each(spans: Sequence[np.ndarray], size: int, generator: np.random.Generator) -> np.ndarray:
    """One row of each of several examples."""
    return np.array([generator.choice(spans[i]) for i in generator.choice(len(spans), size, replace=False)])


def _in_use(sets: ActiveSets, batches: np.ndarray) -> int:
    """Neurons that at least one row of a batch needs, summed over batches `(batch, row)`."""
    active, _ = sets.of(sets.neurons.rows(batches.ravel()))
    return int(active.unflatten(0, batches.shape).any(1).sum())
