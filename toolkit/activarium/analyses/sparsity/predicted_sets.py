"""How well a set of neurons chosen beforehand covers those that a row really needs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example
from activarium.analyses.sparsity.active_sets import ActiveSets, Example, Fired

MEASURES = ("energy recall", "recall", "precision", "predicted sparsity")
FIXED, OWN, PREVIOUS, SO_FAR, GIVEN = "fixed set", "own strongest", "row before", "rows so far", "predicted"


def measured(sets: ActiveSets, counts: Fired, given: Activations | None) -> tuple[dict[str, np.ndarray], int]:
    """Predictor → its four measures, and how many rows had no active neuron; over every second sequence, which `fixed set` has not seen.

    Recall, precision and energy recall are means over rows with at least one active (for precision: predicted) neuron.
    """
    fixed, size = fixed_set(counts)
    sums: dict[str, np.ndarray] = {}
    empty = 0
    predictions = by_example(given) if given is not None else None
    for example in sets.examples():
        theirs = _aligned(sets, predictions)
        if example.number % 2 == 0:
            continue
        empty += int((~example.active.any(1)).sum())
        for name, predicted, rows in _predictions(example, fixed, size, theirs):
            sums[name] = sums.get(name, 0) + _sums(example, predicted, rows)
    return {name: np.array([_ratio(s[2 * i], s[2 * i + 1]) for i in range(len(MEASURES))]) for name, s in sums.items()}, empty


def fixed_set(counts: Fired) -> tuple[Tensor, int]:
    """The most frequent neurons of the first half, as many as a row of it uses on average; the lower index first where they are equal."""
    fires = torch.from_numpy(counts.fires[0])
    size = round(float(fires.sum() / counts.rows[0]))
    chosen = torch.zeros(len(fires), dtype=torch.bool)
    chosen[fires.argsort(descending=True, stable=True)[:size]] = True
    return chosen, size


def _predictions(example: Example, fixed: Tensor, size: int, theirs: Tensor | None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, boolean `row neuron`, and the rows for which there is a prediction."""
    active = example.active
    every = torch.ones(len(active), dtype=torch.bool)
    yield FIXED, fixed.expand_as(active), every
    own = torch.zeros_like(active).scatter(1, example.energy.argsort(dim=1, descending=True, stable=True)[:, :size], True)
    yield OWN, own, every
    yield PREVIOUS, torch.cat([active[:1], active[:-1]]), example.follows
    before = torch.cat([torch.zeros_like(active[:1], dtype=torch.int64), active[:-1].long().cumsum(0)])
    often = torch.zeros_like(active).scatter(1, before.argsort(dim=1, descending=True, stable=True)[:, :size], True)
    yield SO_FAR, often, torch.arange(len(active)) > 0
    if theirs is not None:
        yield GIVEN, theirs, every


def _sums(example: Example, predicted: Tensor, rows: Tensor) -> np.ndarray:
    """Numerator and denominator of each measure."""
    active, predicted, energy = example.active[rows], predicted[rows], example.energy[rows]
    hit, needed, chosen = active & predicted, active.sum(1), predicted.sum(1)
    kept, whole = torch.where(hit, energy, 0).sum(1), torch.where(active, energy, 0).sum(1)
    some, any_chosen = needed > 0, chosen > 0
    weighted = whole > 0
    return np.array(
        [
            float((kept[weighted] / whole[weighted]).sum()),
            int(weighted.sum()),
            float((hit.sum(1)[some] / needed[some].double()).sum()),
            int(some.sum()),
            float((hit.sum(1)[any_chosen] / chosen[any_chosen].double()).sum()),
            int(any_chosen.sum()),
            float((~predicted).sum()),
            predicted.numel(),
        ]
    )


def _aligned(sets: ActiveSets, predictions: Iterator[tuple[int, int, Tensor]] | None) -> Tensor | None:
    """The given prediction for the next example that counts."""
    if predictions is None:
        return None
    keep = np.zeros(len(sets.neurons), bool)
    keep[sets.rows()] = True
    for _, first, values in predictions:
        chosen = keep[first : first + len(values)].nonzero()[0]
        if len(chosen):
            return values[torch.from_numpy(chosen)] != 0
    return None


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")
