"""Features of sites and what their dictionaries leave out: codes, errors, and effects that add up to those of the whole site."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.sides import wide
from activarium.branches import Branches
from activarium.errors import InputError
from activarium.protocols import Dictionary


@dataclass(frozen=True)
class Coder:
    """A dictionary at its site. Its nodes are its features, and one more for the error.

    Attributes:
        site: Where it reads.
        dictionary: Encodes and decodes.
    """

    site: str
    dictionary: Dictionary

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Features `row feature` in the dictionary's own type, and the error `row …` that it leaves, both in the graph of `values`.

        Raises:
            InputError: It does not give features of rows, or not values of the same shape.
        """
        codes = self.dictionary.encode(values)
        made = self.dictionary.decode(codes)
        if codes.ndim != 2 or made.shape != values.shape:
            raise InputError(
                f"The dictionary at {self.site} makes codes {tuple(codes.shape)} and values {tuple(made.shape)} of rows {tuple(values.shape)}; "
                "wanted codes 'row feature' and values of the same shape. Is it another site's?"
            )
        return codes, wide(values) - wide(made)

    def count(self, row: Tensor) -> int:
        """How many features it has, asked with one row."""
        with torch.no_grad():
            return self.parts(row)[0].shape[-1]

    def pull(self, codes: Tensor, slope: Tensor) -> Tensor:
        """Gradient `row feature` at the codes from that at the values."""
        with torch.enable_grad():
            leaf = codes.detach().requires_grad_()
            made = self.dictionary.decode(leaf)
            return wide(torch.autograd.grad(made, leaf, slope.to(made.dtype))[0])


@dataclass(frozen=True, eq=False)
class FeatureBranches(Branches):
    """Variants in which one feature, or the error, is that of the other run.

    Attributes:
        coder: The dictionary.
    """

    coder: Coder

    @cached_property
    def _sides(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        with torch.no_grad():
            return self.coder.parts(self.base), self.coder.parts(self.source)

    def differing(self) -> np.ndarray:
        """Boolean `row feature`, the error last: do base and source differ in a bit?"""
        (codes, error), (other, rest) = self._sides
        return torch.cat([codes != other, (error != rest).any(-1, keepdim=True)], -1).cpu().numpy()

    def replaced(self, rows: Tensor, part: Tensor) -> Tensor:
        """Base values of these rows with one feature, or the error, of the source."""
        (codes, error), (other, rest) = self._sides
        feature, new = part < codes.shape[-1], self.base[rows].clone()
        mixed, lines = codes[rows[feature]], torch.arange(int(feature.sum()), device=rows.device)
        mixed[lines, part[feature]] = other[rows[feature], part[feature]]
        with torch.no_grad():
            # The error of the base run stays: the values change by what the dictionary writes differently.
            change = self.coder.dictionary.decode(mixed) - self.coder.dictionary.decode(codes[rows[feature]])
        new[feature] += change.to(new.dtype)
        new[~feature] += (rest - error)[rows[~feature]].to(new.dtype)
        return new


class Held:
    """One site in one batch of pairs: its nodes are the features of its dictionary, and one more for the error.

    Attributes:
        coder: The dictionary.
        base: Values `row …` in the run that is patched.
        source: Values in the run that patches come from.
        slope: Gradient of the metric at the site, as if there were no dictionary anywhere.
        codes: Features in the base run.
        change: Features of the source run less those of the base run.
        error_change: The same for errors.
    """

    def __init__(self, coder: Coder, base: Tensor, source: Tensor, slope: Tensor) -> None:
        self.coder, self.base, self.source, self.slope = coder, base.detach(), source.detach(), wide(slope.detach())
        with torch.no_grad():
            (self.codes, error), (codes, other) = coder.parts(self.base), coder.parts(self.source)
            self.change, self.error_change = wide(codes) - wide(self.codes), other - error

    def through(self, slope: Tensor) -> Tensor:
        """`row node`: the change of each feature and, last, of the error, times a gradient at the site."""
        features = self.change * self.coder.pull(self.codes, slope)
        error = (self.error_change * slope).flatten(1).sum(1, keepdim=True)
        return torch.cat([features, error], 1)

    @property
    def whole(self) -> Tensor:
        """`row`: effect of the site as a whole, which the nodes of a row add up to."""
        return ((wide(self.source) - wide(self.base)) * self.slope).flatten(1).sum(1)


@dataclass(frozen=True)
class Grouping:
    """Which rows of a batch make a node together: all of them, or those at one position.

    Attributes:
        index: Group of each row.
        count: How many groups.
    """

    index: Tensor
    count: int

    def sums(self, values: Tensor) -> np.ndarray:
        """Values `row node` added up, `group node`."""
        made = values.new_zeros(self.count, values.shape[1]).index_add(0, self.index.to(values.device), values)
        return made.detach().double().cpu().numpy()


def grouping(lengths: np.ndarray, aggregation: str) -> Grouping:
    """Groups of the rows of a batch.

    Raises:
        InputError: Positions are asked for and pairs have different lengths, or another aggregation.
    """
    if aggregation == "sum":
        return Grouping(torch.zeros(int(lengths.sum()), dtype=torch.long), 1)
    if aggregation != "none":
        raise InputError(f"aggregation={aggregation!r} is not known; 'sum' adds positions up, 'none' keeps them apart.")
    if len(set(lengths.tolist())) > 1:
        raise InputError(
            f"aggregation='none' needs pairs of one length; these have {sorted(set(lengths.tolist()))} rows. Group them, or use 'sum'."
        )
    return Grouping(torch.arange(int(lengths[0])).repeat(len(lengths)), int(lengths[0]))
