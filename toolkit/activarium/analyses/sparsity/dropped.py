"""How many numbers each definition of sparsity drops, layer by layer: calibrated on some sequences, counted on others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import examples_of, refuse_strange
from activarium.analyses.sparsity.definitions import Definition
from activarium.analyses.sparsity.exact_quantiles import ExactQuantiles
from activarium.analyses.sparsity.row_kinds import some_kept

AT_ONCE = 2**22  # numbers in work at a time
Plan = Mapping[Definition, Sequence[Activations]]  # definition → the site of each layer


@dataclass(frozen=True, eq=False)
class Dropped:
    """Numbers dropped and numbers seen per sequence: `(sequence, setting)` and `(sequence,)`."""

    dropped: np.ndarray
    seen: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Share of all numbers that is dropped, per setting."""
        return self.dropped.sum(0) / self.seen.sum()


def calibrated(plan: Plan, shares: Sequence[float], exclude: Sequence[str], chosen: np.ndarray | None) -> dict[Definition, np.ndarray]:
    """Thresholds `(share, layer)` at which each definition drops these shares of the rows of the `chosen` examples (None: of all)."""
    searches = {d: [ExactQuantiles(shares) for _ in range(1 if d.shared else len(sites))] for d, sites in plan.items()}
    for step in (ExactQuantiles.count, ExactQuantiles.refine):  # two passes over the activations
        for activations, uses in _by_site(plan).items():
            for values, _ in pieces(activations, exclude, chosen):
                for definition, layer in uses:
                    step(searches[definition][0 if definition.shared else layer], definition.score(values))
    found = {d: np.array([s.answers() for s in many]).T for d, many in searches.items()}
    return {d: np.repeat(found[d], len(sites), 1) if d.shared else found[d] for d, sites in plan.items()}


def counted(
    plan: Plan, thresholds: Mapping[Definition, np.ndarray], exclude: Sequence[str], chosen: np.ndarray | None
) -> dict[Definition, list[Dropped]]:
    """What each definition drops in each layer, in the rows of the `chosen` examples."""
    found: dict[Definition, list[Dropped]] = {d: [] for d in plan}
    for definition, sites in plan.items():
        for layer, activations in enumerate(sites):
            limits = thresholds[definition][:, layer]

            def below(values: Tensor, definition: Definition = definition, limits: np.ndarray = limits) -> Iterator[Tensor]:
                scores = definition.score(values)
                return (scores <= float(limit) for limit in limits)

            found[definition].append(count_rows(activations, below, len(limits), exclude, chosen))
    return found


def count_rows(
    activations: Activations,
    dropped: Callable[[Tensor], Iterator[Tensor]],
    settings: int,
    exclude: Sequence[str],
    chosen: np.ndarray | None = None,
) -> Dropped:
    """Count per sequence what `dropped` marks: boolean `row neuron` for each setting in turn."""
    wanted = examples_of(activations)[some_kept(activations, exclude)]
    sequences = np.unique(wanted if chosen is None else wanted[np.isin(wanted, chosen)])
    counts, seen = np.zeros((len(sequences), settings), np.int64), np.zeros(len(sequences), np.int64)
    for values, examples in pieces(activations, exclude, chosen):
        at = np.searchsorted(sequences, examples)
        for i, marked in enumerate(dropped(values)):
            np.add.at(counts[:, i], at, marked.sum(1).cpu().numpy())
        np.add.at(seen, at, values.shape[1])
    return Dropped(counts, seen)


def pieces(activations: Activations, exclude: Sequence[str], chosen: np.ndarray | None = None) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Values `row feature` of the rows that count, some at a time, and their examples.

    Raises:
        NotFinite: NaN or infinity among them.
    """
    keep, examples, start = some_kept(activations, exclude), examples_of(activations), 0
    if chosen is not None:
        keep &= np.isin(examples, chosen)
    for batch in activations.batches():
        rows = keep[start : start + len(batch)].nonzero()[0]
        for some in torch.from_numpy(rows).split(max(1, AT_ONCE // max(1, batch[0].numel()))) if len(rows) else ():
            values = batch[some.to(batch.device)].flatten(1)
            if not bool(values.isfinite().all()):
                refuse_strange(activations, "It has no place in a ranking by size.")
            yield values, examples[start + some.numpy()]
        start += len(batch)


def even_blocks(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same rows in blocks of one size, so that no rounding depends on how they were cut; the last block may be shorter."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= size:
            joined = torch.cat(waiting)
            whole = len(joined) - len(joined) % size
            yield from joined[:whole].split(size)
            waiting = [joined[whole:]]
    if sum(map(len, waiting)):
        yield torch.cat(waiting)


def _by_site(plan: Plan) -> dict[Activations, list[tuple[Definition, int]]]:
    """Site → who asks for it and as which layer, so that each site is read once per pass."""
    found: dict[Activations, list[tuple[Definition, int]]] = {}
    for definition, sites in plan.items():
        for layer, activations in enumerate(sites):
            found.setdefault(activations, []).append((definition, layer))
    return found
