"""What is patched: sites from bottom to top, their heads or units, and the columns that rows fall into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.features import Coder
from activarium.errors import InputError, MissingSite
from activarium.features import Features
from activarium.pairs import Pairs

Positions = str | Sequence[int]
Nodes = str | Sequence[str] | Features
INSTEAD = {"head_out": "z", "scores": "q and k", "pattern": "q, k or z"}


@dataclass(frozen=True)
class Family:
    """Sites whose rows have as many nodes each, `blocks.*.attn.z`, from bottom to top.

    Attributes:
        name: What they have in common, `attn.z` or `attn.out + mlp.out`; with the stack before it where there are several.
        sites: Their names.
        space: Their row space.
        parts: Names of the axes that make nodes of one row: `()`, `("head",)` or, for units, the name of the last axis.
        size: How many nodes one row has along that axis; 1 without one.
        units: Which units are nodes, if units are; the number of features stands for a dictionary's error.
        coder: The dictionary whose features are nodes, if they are.
    """

    name: str
    sites: tuple[str, ...]
    space: str
    parts: tuple[str, ...]
    size: int
    units: np.ndarray | None = None
    coder: Coder | None = None

    @property
    def unit_labels(self) -> list[str]:
        """Name of each unit."""
        assert self.units is not None
        return [str(u) for u in self.units] if self.coder is None else [*(str(u) for u in self.units[:-1]), "error"]

    def nodes(self, values: Tensor) -> Tensor:
        """Values `row …` arranged as `row node feature`."""
        if self.units is not None:
            return values[:, torch.as_tensor(self.units, device=values.device), None]
        return values if self.parts else values[:, None]


def family(model: Any, nodes: Nodes, units: str | Sequence[int] | None = None) -> Family:
    """The nodes for site names and patterns. Several kinds may share a grid, as long as a row has as many nodes in each.

    Args:
        model: The runner.
        nodes: Site names and patterns, `blocks.*.attn.z` or `["blocks.*.attn.out", "blocks.*.mlp.out"]`, or `Features` of one site.
        units: `"all"` or unit numbers: every such feature of a row is a node of its own (neurons).

    Raises:
        UnknownSite: A name that does not exist.
        InputError: A derived site, kinds that do not fit into one grid, or units of a site whose nodes are heads.
    """
    if isinstance(nodes, Features):
        return _features(model, nodes, units)
    found = [_one(model, name, units) for name in model.sites.select(nodes)]
    first = found[0]
    other = next((f for f in found if (f.space, f.parts, f.size) != (first.space, first.parts, first.size)), None)
    if other is not None:
        raise InputError(
            f"{first.sites[0]} has {_counted(first)}, {other.sites[0]} has {_counted(other)}: they do not fit into one grid. Ask for one kind at a time."
        )
    sites = tuple(f.sites[0] for f in sorted(found, key=lambda f: _depth(f.sites[0])))
    return Family(" + ".join(dict.fromkeys(f.name for f in found)), sites, first.space, first.parts, first.size, first.units)


def _features(model: Any, nodes: Features, units: Any) -> Family:
    one, coder = _one(model, nodes.site, None), Coder(nodes.site, nodes.dictionary)
    if units is not None or one.parts:
        raise InputError(
            f"Features of {nodes.site} are nodes themselves, of sites without heads; choose them with Features(…, features=[…])."
        )
    width = model.sites.find(nodes.site).shape[-1]
    count = coder.count(torch.zeros(1, width, dtype=model.dtype, device=model.device))
    chosen = _numbers(nodes.features, count, f"The dictionary at {nodes.site} has features", "features=")
    return Family(f"features of {one.name}", (nodes.site,), one.space, ("feature",), len(chosen) + 1, np.r_[chosen, count], coder)


def _numbers(given: str | Sequence[int], count: int, what: str, argument: str) -> np.ndarray:
    if isinstance(given, str) and given != "all":
        raise InputError(f"{argument}{given!r} is not known; give 'all' or numbers.")
    chosen = np.arange(count) if isinstance(given, str) else np.asarray(given, dtype=int)
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
        raise InputError(f"{what} 0 to {count - 1}; {argument} gives {chosen.tolist()}.")
    return chosen


def kind_of(name: str) -> str:
    """What sites of all blocks have in common: `attn.z` of `blocks.3.attn.z`."""
    parts = name.split(".")
    return ".".join(p for i, p in enumerate(parts) if not p.isdigit() and not (p == "blocks" and parts[i + 1].isdigit()))


def _counted(one: Family) -> str:
    rows = f"rows of {one.space!r}" if one.space else "rows"
    return f"{one.size} {one.parts[0] if one.parts else 'node'}{'s' if one.size > 1 else ''} per row ({rows})"


def _depth(name: str) -> int:
    return next((int(p) for p in name.split(".") if p.isdigit()), -1)


def _one(model: Any, name: str, units: Any) -> Family:
    if name.startswith("module:"):
        raise InputError(f"{name} is no certified site, so it is not patched. Choose sites of model.sites.")
    site, leaf = model.sites.find(name), name.rpartition(".")[2]
    if leaf in INSTEAD or site.kind == "answer" or not site.axes.startswith("row"):
        other = f"Patch {INSTEAD[leaf]} instead." if leaf in INSTEAD else "Choose sites with rows."
        raise InputError(f"{name} has axes {site.axes!r} and is no node of one row. {other}")
    axes = site.axes.split()[1:]
    if "expert" in site.axes or "slot" in site.axes:
        raise MissingSite(f"{name} belongs to experts, whose rows differ between runs. Patch mlp.out.")
    if len(axes) == 2:
        if units is not None:
            raise InputError(f"{name} has axes {site.axes!r}: its nodes are heads; leave out units=.")
        return Family(kind_of(name), (name,), site.rows, ("head",), site.shape[0])
    if units is None:
        return Family(kind_of(name), (name,), site.rows, (), 1)
    chosen = _numbers(units, site.shape[-1], f"{name} has units", "units=")
    return Family(kind_of(name), (name,), site.rows, (axes[0],), len(chosen), chosen)


class Columns:
    """Which rows of each pair make which column of a grid.

    Attributes:
        index: Row number of each pair and column, counted from the pair's first row; -1 where the pair has none. None: all rows
            together make one node, and the grid has no position axis.
        labels: Name of each column.
        lengths: Rows of each pair.
        asked: What was asked for: `each`, `all`, `places` or position numbers.
    """

    def __init__(self, pairs: Pairs, space: str, positions: Positions) -> None:
        self.asked: Positions = positions if isinstance(positions, str) else [int(p) for p in positions]
        self.lengths = np.asarray(pairs.clean.rows_of(space))
        self.starts = np.r_[0, np.cumsum(self.lengths)[:-1]]
        self.index, self.labels = self._index(pairs, space, positions)

    def _index(self, pairs: Pairs, space: str, positions: Positions) -> tuple[np.ndarray | None, tuple[str, ...]]:
        longest = int(self.lengths.max())
        if positions == "all":
            return None, ()
        if positions == "each":
            index = np.where(np.arange(longest) < self.lengths[:, None], np.arange(longest), -1)
            return index, _texts(pairs, space, longest)
        if positions == "places":
            if not pairs.places:
                raise InputError("These pairs name no places. Give places={'S2': [9, 11, …]} to act.pairs, or use positions='each'.")
            return np.stack(list(pairs.places.values()), 1), tuple(pairs.places)
        if isinstance(positions, str):
            raise InputError(f"positions={positions!r} is not known; give 'each', 'all', 'places' or position numbers.")
        wanted = np.asarray(positions, dtype=int)
        index = np.where(wanted < 0, wanted + self.lengths[:, None], wanted)
        if not ((index >= 0) & (index < self.lengths[:, None])).any():
            raise InputError(f"No pair has any of the positions {wanted.tolist()}; they have {self.lengths.min()} to {longest} rows.")
        return np.where((index >= 0) & (index < self.lengths[:, None]), index, -1), tuple(str(p) for p in wanted)

    def per_pair(self, values: Tensor) -> np.ndarray:
        """Values `row …` as `pair column …` in float64, NaN where a pair has no such row; summed over rows without columns."""
        rows = values.detach().double().cpu().numpy()
        if self.index is None:
            return np.add.reduceat(rows, self.starts, axis=0)
        picked = rows[np.where(self.index < 0, 0, self.index) + self.starts[:, None]]
        picked[self.index < 0] = np.nan
        return picked


def _texts(pairs: Pairs, space: str, longest: int) -> tuple[str, ...]:
    """A position's token where all pairs have the same one, else its number."""
    main = space.removesuffix("patch").removesuffix(".")
    if main not in pairs.clean.data or main != space:
        return tuple(str(i) for i in range(longest))
    words = pairs.words(space)
    labels = []
    for i in range(longest):
        here = {w[i] for w in words if i < len(w)}
        labels.append(f"{i} {next(iter(here))}" if len(here) == 1 else str(i))
    return tuple(labels)
