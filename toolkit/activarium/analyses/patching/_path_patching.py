"""Path patching: what one part tells another directly, with every other head held as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.grids import grid
from activarium.analyses.patching.nodes import Columns, Family, Positions, family
from activarium.analyses.patching.routes import Receiver, Receivers, held_sites, place, reaches, receivers_of, stop_after
from activarium.analyses.patching.sides import Sides, Totals, joined, measured
from activarium.analyses.patching.zeros import known_zero
from activarium.edits import Edit, Set
from activarium.errors import InputError
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Grid

LONG = 200  # senders from which a progress bar is shown


def path_patching(
    model: Runner,
    pairs: Pairs,
    senders: str | Sequence[str] = "blocks.*.attn.z",
    receivers: Receivers = "logits",
    *,
    direction: str = "denoise",
    positions: Positions = "all",
    freeze_mlps: bool = False,
    normalise: bool = False,
    batch: int = 32,
    progress: bool = True,
) -> Grid:
    """How much of the answer does each head change through the given receivers alone?

    Four runs: both inputs; the base inputs with one sender taken from the source run and every other head held at its base value,
    in which the receivers' inputs are read; and the base inputs with those inputs put in. The score is what the metric changes.

    Args:
        model: A loaded model.
        pairs: Clean and corrupted inputs, from `act.pairs`.
        senders: Sites that write: `blocks.*.attn.z` (heads), `blocks.*.mlp.out`, `embed`.
        receivers: Sites that read: patterns of `blocks.*.attn.q` (or `k`, `v`, `in`) and `blocks.*.mlp.in`, or a mapping from them to
            head numbers, `{"blocks.3.attn.q": [0, 2]}`; or `"logits"`, for what goes to the answer directly. Several receivers are
            set together. Grouped keys and values have fewer heads; one serves a group of query heads.
        direction: `denoise` takes the sender from the clean run, into the corrupted one; `noise` the reverse.
        positions: Rows in which the sender is replaced: `"all"` together, `"each"`, the pairs' `"places"`, or numbers.
        freeze_mlps: Hold the MLPs as well, so that only what the sender writes into the stream itself arrives. Otherwise they are computed
            anew and pass on what they make of it. The two answers differ.
        normalise: Give shares of M+ - M-.
        batch: Pairs in one forward.
        progress: Show a bar when there are many senders.

    Returns:
        A grid `layer head` (with `position` where asked for) of the mean change of the metric, with `per_example`; `known_zero` marks
        senders that come after all receivers, or cannot reach the answer. `diagnostics` say what the MLPs did.

    Raises:
        UnknownSite: No such site.
        InputError: A sender that does not write, a receiver that does not read, or `logits` beside others.
        MissingSite: A head cannot be held.

    Source:
        Wang et al. 2022, Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small, arXiv:2211.00593.

    Differs:
        With `freeze_mlps=True` the path is a single edge: the receiver's input is the base run's stream plus the sender's change, through
        the true norm rather than one with a frozen scale.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> grid = path_patching(model, pairs, receivers={"blocks.1.attn.v": [0]})
        >>> grid.values.shape, bool((grid.values[1:] == 0).all())
        ((3, 4), True)
    """
    found, ends, sides = family(model, senders), receivers_of(model, receivers), Sides(pairs, direction)
    if found.coder is not None:
        raise InputError(f"Features of {found.sites[0]} cannot send: paths start at heads or whole rows. Give the name of the site.")
    columns = Columns(pairs, found.space, positions)
    blocked = np.array([not any(reaches(model, site, end.site) for end in ends) for site in found.sites])
    zero = known_zero(model, sides, found, columns) | blocked[:, None]
    held = held_sites(model, freeze_mlps)
    effects, totals, start = np.full((*zero.shape, found.size), np.nan), [], 0
    with progress_bar(progress and effects[0].size >= LONG, "following", effects.size, "paths") as advance:
        for chunk in sides.chunks(batch):
            paths = _Paths(model, chunk, found, ends, held, positions)
            totals.append(paths.totals)
            some = slice(start, start + len(chunk.pairs))
            for layer, column, node in np.ndindex(*effects.shape[1:]):
                if column < paths.width:
                    effects[some, layer, column, node] = paths.effect(layer, column, node, bool(zero[some, layer, column].all()))
                advance(len(chunk.pairs))
            start = some.stop
    effects[np.broadcast_to(zero[..., None], effects.shape)] = 0.0
    if columns.index is not None:
        effects[np.broadcast_to((columns.index < 0)[:, None, :, None], effects.shape)] = np.nan
    notes = {"receivers": "; ".join(map(str, ends)), "mlps": "held" if freeze_mlps else "computed anew"}
    return grid(found, columns, effects, zero, sides, joined(totals), title="Path patching", normalise=normalise, notes=notes)


class _Paths:
    """The paths of a few pairs. All runs have the same batch, so what changes nothing gives exactly the same numbers."""

    def __init__(
        self, model: Any, sides: Sides, family: Family, receivers: Sequence[Receiver], held: Sequence[str], positions: Positions
    ) -> None:
        self.model, self.sides, self.family, self.receivers, self.held = model, sides, family, receivers, held
        self.columns = Columns(sides.pairs, family.space, positions)
        self.width = 1 if self.columns.index is None else self.columns.index.shape[1]
        self.base = sides.run(model, sides.base, [*dict.fromkeys([*held, *family.sites])])
        self.source = sides.run(model, sides.source, family.sites)
        self.stop = None if receivers[0].site == "logits" else stop_after(model, receivers)
        self.totals = Totals(measured(self.base), measured(self.source))

    def effect(self, layer: int, column: int, node: int, skip: bool) -> np.ndarray:
        """Change of the metric per pair when one sender goes through the receivers."""
        site = self.family.sites[layer]
        values = None if skip else self._mixed(site, column, node)
        if values is None:
            return np.zeros(len(self.sides.pairs))
        edits = [*self._holding(site), Set(site, values)]
        if self.receivers[0].site == "logits":  # what the logits are read from, put into the base run, gives the logits of this run
            return measured(self.sides.run(self.model, self.sides.base, edits=edits)) - self.totals.base
        told = self._told(edits)
        put = [Set(r.site, told[r.site].tensor, where=r.where) for r in self.receivers]
        return measured(self.sides.run(self.model, self.sides.base, edits=put)) - self.totals.base

    def _told(self, edits: list[Edit]) -> Any:
        """What the receivers are given."""
        self.sides.counts.forwards += 1
        return self.model.run(self.sides.base, [r.site for r in self.receivers], edits=edits, stop_after=self.stop)

    def _mixed(self, site: str, column: int, node: int) -> Tensor | None:
        """The base run's values with one node of one column from the source run; None if that changes nothing."""
        base, source = self.base[site].tensor.detach(), self.source[site].tensor.detach()
        rows = self._rows(column).to(base.device)
        chosen = (rows, node if self.family.units is None else int(self.family.units[node])) if self.family.parts else (rows,)
        values = base.clone()
        values[chosen] = source[chosen]
        return None if torch.equal(values, base) else values

    def _rows(self, column: int) -> Tensor:
        index = self.columns.index
        if index is None:
            return torch.arange(int(self.columns.lengths.sum()))
        here = index[:, column]
        return torch.as_tensor((here + self.columns.starts)[here >= 0])

    def _holding(self, site: str) -> Iterator[Edit]:
        """What comes after the sender stays as it was; what comes before or beside it does so by itself."""
        for held in self.held:
            if place(self.model, held) > place(self.model, site):
                yield Set(held, self.base[held].tensor.detach())
