"""Dictionaries at nodes of a model: which rows a node has in each example, and runs in which those rows are others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.dictionaries import FeatureDictionary, SupervisedDictionary, as_dictionary
from activarium.dictionaries.attributes import Attributes
from activarium.edits import Replace
from activarium.errors import InputError, OtherModel, unknown
from activarium.metrics import Metric
from activarium.pairs import Pairs

AFFINE = 1e-4  # of the largest value: how far decode(encode(x)) may be from forward(x)
Place = str | int | Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Nodes:
    """One dictionary for each node of a cross-section: together they stand for what passes there.

    Attributes:
        name: How they are called in results.
        parts: Site → dictionary.
    """

    name: str
    parts: Mapping[str, FeatureDictionary]

    @property
    def supervised(self) -> bool:
        """Is every one of them made from attributes?"""
        return all(isinstance(d, SupervisedDictionary) for d in self.parts.values())


def nodes_of(model: Any, dictionaries: Mapping[str, Any]) -> list[Nodes]:
    """Name → a dictionary, or several of different sites, checked against the model.

    Raises:
        InputError: There is none, one does not say where it reads, two read one site, one writes another site than it reads, or its width
            is not the site's.
        OtherModel: One was trained on a model with other weights.
    """
    if not dictionaries:
        raise InputError("There are no dictionaries. Give {'sae': sae}, or for several nodes at once {'sae': [one, other]}.")
    made = []
    for name, given in dictionaries.items():
        several = given if isinstance(given, (list, tuple)) else [given]
        parts: dict[str, FeatureDictionary] = {}
        for one in map(as_dictionary, several):
            site = one.origin.site
            if not site:
                raise InputError(
                    f"{name!r} does not say where it reads: its origin.site is empty. Make it with origin=Origin(site='blocks.2.resid_post')."
                )
            if site in parts:
                raise InputError(f"{name!r} has two dictionaries of {site}. Give one for each node.")
            _check(model, name, one)
            parts[site] = one
        made.append(Nodes(name, parts))
    return made


def _check(model: Any, name: str, one: FeatureDictionary) -> None:
    if one.transcoder:
        raise InputError(
            f"{name!r} is a transcoder: it writes another site than it reads and stands for no node. Give a dictionary of one site."
        )
    site = model.sites.find(one.origin.site) if hasattr(model.sites, "find") else model.sites[one.origin.site]
    width = int(np.prod(site.shape))
    if width != one.d_in:
        raise InputError(f"{name!r} reads rows of {one.d_in} numbers; {one.origin.site} of {model.name} has {width}. Is it another site's?")
    trained, found = one.origin.weight_hash, str(getattr(model, "identity", {}).get("weight_hash", ""))
    if trained and found and trained != found:
        raise OtherModel(f"{name!r} was trained on weights {trained[:12]}…; {model.name} has {found[:12]}…. Train one on this model.")


def sites_of(nodes: Sequence[Nodes]) -> list[str]:
    """Every site that any of them stands at."""
    return list(dict.fromkeys(site for one in nodes for site in one.parts))


@dataclass(frozen=True, eq=False)
class Bench:
    """Pairs on which nodes are replaced, a few at a time.

    Attributes:
        model: The model; left as it was.
        pairs: Clean inputs are run; the corrupted ones give counterfactual rows.
        at: Row of each pair.
        batch: Pairs in one forward.
    """

    model: Any
    pairs: Pairs
    at: np.ndarray
    batch: int = 64

    @staticmethod
    def of(model: Any, pairs: Pairs, place: Place, batch: int) -> Bench:
        """With the row of each pair looked up.

        Raises:
            UnknownName: The pairs have no place of this name.
            InputError: A position is not in its example, or a forward over no pairs.
        """
        if batch < 1:
            raise InputError(f"batch={batch}: a forward takes at least one pair.")
        if isinstance(place, str) and place not in pairs.places:
            raise unknown("place in these pairs", place, pairs.places)
        lengths = pairs.clean.lengths
        wanted = np.broadcast_to(np.asarray(pairs.places[place] if isinstance(place, str) else place), (len(pairs),))
        at = np.where(wanted < 0, wanted + lengths, wanted)
        wrong = np.flatnonzero((at < 0) | (at >= lengths))
        if len(wrong):
            raise InputError(f"Position {wanted[wrong[0]]} is not in pair {wrong[0]}, which has {lengths[wrong[0]]} rows.")
        return Bench(model, pairs, at, batch)

    def read(self, sites: Sequence[str], *, corrupt: bool = False) -> dict[str, Tensor]:
        """Site → rows `pair d_in` in float32 at the place, of the clean or the corrupted inputs."""
        found: dict[str, list[Tensor]] = {site: [] for site in sites}
        for chosen in self._chunks():
            side = (self.pairs.corrupt if corrupt else self.pairs.clean).select(chosen).numbered(0)
            with torch.no_grad():
                recording = self.model.run(side, read=list(sites))
            rows = self._rows(chosen)
            for site in sites:
                found[site].append(recording[site].tensor[rows.to(recording[site].tensor.device)].flatten(1).float().cpu())
        return {site: torch.cat(parts) for site, parts in found.items()}

    def answers(self, values: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """The metric of each pair and its top answer, with these rows `pair d_in` in place of the clean ones."""
        metric, top = [], []
        for chosen in self._chunks():
            pairs, rows = self.pairs.select(chosen), self._rows(chosen)
            edits = [Replace(site, _put(rows, new[torch.as_tensor(chosen)])) for site, new in values.items()]
            asked = {
                "metric": pairs.metric,
                "top": Metric(lambda logits: logits.argmax(-1).double(), pairs.metric.position, chosen=pairs.metric.chosen),
            }
            with torch.no_grad():
                found = self.model.run(pairs.clean, edits=edits, metrics=asked).metric
            metric.append(found["metric"].double().cpu().numpy())
            top.append(found["top"].cpu().numpy().astype(np.int64))
        return np.concatenate(metric), np.concatenate(top)

    def _chunks(self) -> list[np.ndarray]:
        numbers = np.arange(len(self.pairs))
        return np.split(numbers, range(self.batch, len(numbers), self.batch))

    def _rows(self, chosen: np.ndarray) -> Tensor:
        """Numbers of the place's rows among all rows of these examples: pads are no rows."""
        lengths = self.pairs.clean.lengths[chosen]
        return torch.as_tensor(np.cumsum(lengths) - lengths + self.at[chosen])


def _put(rows: Tensor, new: Tensor) -> Callable[[Tensor], Tensor]:
    def put(values: Tensor) -> Tensor:
        made = values.clone()
        here = rows.to(values.device)
        made[here] = new.to(values.device, values.dtype).reshape(made[here].shape)
        return made

    return put


def codes_of(one: FeatureDictionary, rows: Tensor, attributes: Attributes | None) -> Tensor:
    """Codes `row feature`; of a supervised dictionary those of the values that are known, where they are given."""
    with torch.no_grad():
        if attributes is not None and isinstance(one, SupervisedDictionary):
            return one.of_values({name: attributes[name] for name in one.table if name in attributes})
        return one.encode(rows)


def check_affine(one: FeatureDictionary, rows: Tensor, name: str) -> None:
    """Refuse dictionaries whose codes do not add up to what they make of a row: features cannot be changed one by one there.

    Raises:
        InputError: decode(encode(x)) is not forward(x).
    """
    with torch.no_grad():
        made, whole = one.decode(one.encode(rows)), one.forward(rows)
    gap = float((made - whole).abs().max()) / max(float(whole.abs().max()), 1e-30)
    if not gap <= AFFINE:
        raise InputError(
            f"{name!r} rescales each row, so that its features write other rows than decode(codes) ({gap:.2g} of the largest value apart) and "
            "cannot be changed one by one. Use one that was trained on rows as they are."
        )
