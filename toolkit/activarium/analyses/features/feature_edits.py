"""Edits of rows through features: which are changed, what the rows become, and how large a part of the row was taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.value_firing import Firing
from activarium.dictionaries import FeatureDictionary
from activarium.dictionaries.attributes import Value, values_of

FOLDS = 5  # parts of the pairs; features get their meaning on the other four
AT_ONCE = 256  # features whose writing is computed together


def added_by(dictionary: FeatureDictionary, features: Tensor) -> Tensor:
    """What a code of 1 of each of these features adds, `feature d_out` in float32. Some decoders normalise their directions, so it is asked."""
    made = torch.zeros(len(features), dictionary.d_out)
    with torch.no_grad():
        nothing = dictionary.decode(torch.zeros(1, dictionary.width, dtype=dictionary.dtype))
        for first in range(0, len(features), AT_ONCE):
            some = features[first : first + AT_ONCE]
            unit = torch.zeros(len(some), dictionary.width, dtype=dictionary.dtype)
            unit[torch.arange(len(some)), some] = 1
            made[first : first + AT_ONCE] = (dictionary.decode(unit) - nothing).float()
    return made


@dataclass(frozen=True, eq=False)
class Coded:
    """Rows and their counterfactuals seen through one dictionary, with what each feature that is active in any of them writes.

    Attributes:
        dictionary: An affine one.
        x: Rows `pair d_in`.
        other: Counterfactual rows.
        codes: `pair feature`.
        other_codes: Of the counterfactual rows.
    """

    dictionary: FeatureDictionary
    x: Tensor
    other: Tensor
    codes: Tensor
    other_codes: Tensor

    @staticmethod
    def of(dictionary: FeatureDictionary, x: Tensor, other: Tensor) -> Coded:
        with torch.no_grad():
            return Coded(dictionary, x, other, dictionary.encode(x).float(), dictionary.encode(other).float())

    @cached_property
    def writes(self) -> Tensor:
        """`feature d_in`: what a code of 1 adds, zero for features that are active nowhere. Not always the directions: some decoders normalise them."""
        used = ((self.codes != 0) | (self.other_codes != 0)).any(0).nonzero()[:, 0]
        made = torch.zeros(self.codes.shape[1], self.x.shape[1])
        made[used] = added_by(self.dictionary, used)
        return made

    def edited(self, pair: int, features: Sequence[int]) -> Tensor:
        """The row with these features as in the counterfactual, and all else, the error too, as it was: `(d_in,)`."""
        chosen = list(features)
        return self.x[pair] + (self.other_codes[pair, chosen] - self.codes[pair, chosen]) @ self.writes[chosen]

    def weights(self, pair: int) -> Tensor:
        """`(feature,)`: w_i = f_i W_i · (x̂ − b) / ‖x̂ − b‖², which add up to 1 where anything is written, and are 0 where nothing is."""
        written = self.codes[pair] @ self.writes
        size = float(written.square().sum())
        return self.codes[pair] * (self.writes @ written) / size if size > 0 else torch.zeros(len(self.codes[pair]))

    def greedy(self, pair: int, most: int) -> list[int]:
        """Features in the order in which setting them to their counterfactual code brings the row nearest to the counterfactual row.

        Each step takes the feature after which ‖Σ (f' − f) W − (x' − x)‖ is smallest, and the walk ends early where every further one
        would make it larger. Of equal ones the lower feature.
        """
        change = (self.other_codes[pair] - self.codes[pair]).double()
        candidates = change.nonzero()[:, 0]
        steps = change[candidates, None] * self.writes[candidates].double()
        left = (self.other[pair] - self.x[pair]).double()
        square, open_, taken = steps.square().sum(1), torch.ones(len(candidates), dtype=torch.bool), []
        while len(taken) < most and bool(open_.any()):
            gain = torch.where(open_, 2 * steps @ left - square, -torch.inf)
            best = int(gain.argmax())
            if gain[best] <= 0:
                break
            left = left - steps[best]
            open_[best] = False
            taken.append(int(candidates[best]))
        return taken


def highest(scores: np.ndarray, active: np.ndarray, most: int) -> list[int]:
    """Up to `most` active features of the highest scores above 0; of equal ones the lower feature."""
    order = np.argsort(-np.where(active, scores, 0), kind="stable")[:most]
    return [int(i) for i in order if active[i] and scores[i] > 0]


class Aware:
    """Features by what they are known to mean: F1 of their firing for the values, taken on the pairs of the other parts."""

    def __init__(self, coded: Coded, known: Mapping[str, list[Value]], wanted: Mapping[str, list[Value]], fold: np.ndarray) -> None:
        self.known, self.wanted, self.fold = known, wanted, fold
        self.active = coded.codes.numpy() != 0, coded.other_codes.numpy() != 0
        both = np.concatenate(self.active)
        self.values = {a: values_of([*known[a], *wanted[a]]) for a in known}
        self.scores: dict[str, list[np.ndarray]] = {}
        for a, values in self.values.items():
            column = [*known[a], *wanted[a]]
            whole, twice = Firing.of(both, column, values), np.concatenate([fold, fold])
            parts = [twice == f for f in range(FOLDS)]
            self.scores[a] = [
                (whole - Firing.of(both[part], [v for v, p in zip(column, part, strict=True) if p], values)).f1 for part in parts
            ]

    def chosen(self, most: int) -> list[list[int]]:
        """Features to set to their counterfactual code, for each pair."""
        return [self._pair(i, most) for i in range(len(self.fold))]

    def _pair(self, i: int, most: int) -> list[int]:
        found: list[int] = []
        for a, values in self.values.items():
            if self.known[a][i] == self.wanted[a][i]:
                continue
            scores = self.scores[a][self.fold[i]]
            for side, value in enumerate((self.known[a][i], self.wanted[a][i])):
                found += highest(scores[values.index(value)], self.active[side][i], most)
        return sorted(set(found))
